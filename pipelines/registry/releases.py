"""Which bundle serves, and how that came to be: one pointer row with a fence, changed together with its ledger entry.

MLflow's aliases have no compare-and-set: of two gates that compared with the same champion the
worse can end on top. So the champion is one database row, changed only by
`UPDATE ... WHERE version = :baseline AND fence = :fence`; the alias is a projection of it
(`registry.projection`). A flip and its ledger entry are one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from pipelines.config import Home
from pipelines.errors import StaleFence
from pipelines.registry import bundle_folder, ledger
from pipelines.registry.ledger import (
    BY_HAND,
    JUDGED,
    KEPT,
    PROMOTED,
    REFUSED,
    REIGNS,
    ROLLED_BACK,
    WAITING,
    decision,
    history,
    line,
    verify,
)
from pipelines.registry.release_database import NAME, POINTER, opened
from pipelines.window import utc

__all__ = [
    "BY_HAND", "JUDGED", "KEPT", "NAME", "PROMOTED", "REFUSED", "REIGNS", "ROLLED_BACK", "WAITING", "Champion", "Pointer",
    "champion", "champion_of", "decision", "describe", "flip", "history", "keep", "line", "pointer", "read", "verify",
]  # fmt: skip


@dataclass(frozen=True)
class Pointer:
    """What serves now.

    Attributes:
        version: the MLflow model version, None before the first release.
        digest: names the bundle folder.
        as_of: ISO 8601, the cycle that built it.
        fence: grows by one with every flip.
    """

    version: int | None
    digest: str | None
    as_of: str | None
    previous_version: int | None
    previous_digest: str | None
    fence: int


@dataclass(frozen=True)
class Champion:
    """The bundle that serves: its MLflow version, the name of its folder, and the cycle that built it (ISO 8601)."""

    version: int
    digest: str
    as_of: str


def read(connection: sa.Connection) -> Pointer:
    """Return the pointer as a connection sees it."""
    row = connection.execute(sa.select(POINTER).where(POINTER.c.name == NAME)).one()
    return Pointer(row.version, row.digest, row.as_of, row.previous_version, row.previous_digest, row.fence)


def pointer(home: Home) -> Pointer:
    """Return the pointer as it stands; its version is None before the first release."""
    with opened(home) as engine, engine.connect() as connection:
        return read(connection)


def champion(home: Home) -> Champion | None:
    """Return the bundle that serves now, or None before the first release."""
    now = pointer(home)
    if now.version is None or now.digest is None or now.as_of is None:
        return None
    return Champion(now.version, now.digest, now.as_of)


def champion_of(home: Home, as_of: datetime) -> Champion | None:
    """Return what served on a day: the champion, unless a later cycle built it; then the newest release of a cycle up to the day.

    None before the first release, and where the bundle that served was collected since.
    """
    now = champion(home)
    if now is None or utc(now.as_of) <= utc(as_of):
        return now
    then = [entry for entry in history(home) if entry["kind"] in REIGNS and utc(entry["as_of"]) <= utc(as_of)]
    if not then or not (home.bundles / then[-1]["digest"]).is_dir():
        return None
    return Champion(then[-1]["version"], then[-1]["digest"], then[-1]["as_of"])


def describe(home: Home) -> dict[str, Any]:
    """Return the pointer as JSON values."""
    return asdict(pointer(home))


def keep(home: Home, key: str, body: Mapping[str, Any]) -> None:
    """Record a decision that changes nothing; recording it again is no second entry."""
    ledger.record(home, KEPT, key, body)


def flip(
    home: Home,
    baseline: Pointer,
    *,
    version: int,
    digest: str,
    as_of: str | None,
    key: str | None,
    body: Mapping[str, Any],
    kind: str = PROMOTED,
    refusal_key: str | None = None,
) -> Pointer:
    """Make a bundle the champion if the champion is still `baseline`, and record it; both or neither.

    Args:
        key: a decision that is under this key already is not taken a second time.
        refusal_key: the key of the ledger entry if it comes to a refusal.

    Raises:
        StateError: retention has taken the bundle.
        StaleFence: another process moved the pointer since `baseline` was read, or took this decision; the refusal is in the ledger.
    """
    with ledger.recording(home) as connection:
        bundle_folder.refuse_collected(home, digest)  # a collection takes a bundle in such a transaction, too
        decided = key is not None and ledger.holds(connection, key)
        if not decided and _moved(connection, baseline, version, digest, as_of):
            now = read(connection)
            ledger.append(connection, kind, key, {**body, "version": version, "digest": digest, "fence": now.fence})
            return now
        now = read(connection)
        serving = f"version {now.version} at fence {now.fence}"
        refusal = f"stale fence: judged against version {baseline.version} at fence {baseline.fence}, but {serving} serves"
        if decided:
            refusal = f"stale fence: this was decided already, and {serving} serves"
        said = {**body, "champion_after": now.version, "version": version, "digest": digest, "refusal": refusal}
        if refusal_key is None or not ledger.holds(connection, refusal_key):
            ledger.append(connection, REFUSED, refusal_key, said)
    raise StaleFence(
        f"champion of {NAME}",
        found=f"stale fence: {serving}" + (", and the decision is in the ledger already" if decided else ""),
        allowed=f"version {baseline.version} at fence {baseline.fence}, which version {version} was judged against",
        hint="run the promotion again: it will be judged against the new champion",
    )


def _moved(connection: sa.Connection, baseline: Pointer, version: int, digest: str, as_of: str | None) -> bool:
    """Move the pointer if it still is the baseline; tell whether it was."""
    same = POINTER.c.version.is_(None) if baseline.version is None else POINTER.c.version == baseline.version
    change = sa.update(POINTER).where(POINTER.c.name == NAME, same, POINTER.c.fence == baseline.fence)
    values = {"previous_version": baseline.version, "previous_digest": baseline.digest, "fence": baseline.fence + 1}
    return connection.execute(change.values(version=version, digest=digest, as_of=as_of, **values)).rowcount == 1
