"""Rollouts: a challenger answers nobody, then some users, then all; each step is an entry of the ledger, so every process follows the same.

    begin ── shadow, share 0 ── step ── canary, 1% -> 10% -> 50% of users ── promote: the pointer flips, with its fence
                                    └── end: the champion stays, the reasons are on record

A rollout lives in one reign: it names the fence that it began under, and is over once the pointer has moved, whoever moved it.
A step, the end and the promotion have keys of their own, so of two processes that take the same one at once the first counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from pipelines.config import Home
from pipelines.decision_policies import Way
from pipelines.errors import StaleFence, StateError
from pipelines.registry import bundle_folder, ledger, releases
from pipelines.registry.release_database import LEDGER, NAME, POINTER, opened
from pipelines.window import utc

RUNNING: Final = frozenset({ledger.SHADOW, ledger.CANARY})


@dataclass(frozen=True)
class Rollout:
    """A rollout as its newest entry says.

    Attributes:
        key: of the entry that began it; users are dealt out by it, so who is in at 1% stays in.
        step: entries since that one.
        kind: shadow or canary.
        share: of the users, who get the challenger.
        baseline: the pointer that it began under.
        began_at: when this step did, by the database's clock.
        author: who began it.
    """

    key: str
    step: int
    kind: str
    share: float
    version: int
    digest: str
    as_of: str | None
    baseline: releases.Pointer
    began_at: datetime
    author: str
    reasons: tuple[str, ...] = ()

    @property
    def end_key(self) -> str:
        """Return the key of the entry that ends it."""
        return end_key(self.key)


def end_key(key: str) -> str:
    """Return the key of what ends the rollout that began under a key: its promotion, or its end."""
    return f"rollout/{key}/end"


def first(way: Way, shares: Sequence[float]) -> tuple[str, float] | None:
    """Return kind and share of a rollout's first step; None where the pointer flips at once."""
    steps = {"blue-green": (ledger.CANARY, 0.0), "canary": (ledger.CANARY, shares[0]), "shadow-then-canary": (ledger.SHADOW, 0.0)}
    return steps.get(way)


@dataclass(frozen=True)
class Seen:
    """What a process that follows sees: the pointer, the rollout that runs, and the newest entry that it knows of."""

    pointer: releases.Pointer
    rollout: Rollout | None
    head: str


class Follower:
    """Asks for pointer and rollout again and again: one row a look, the ledger where that row's head has changed. Not thread-safe."""

    def __init__(self, home: Home) -> None:
        self._opened = opened(home)
        self._engine = self._opened.__enter__()
        self._last: Seen | None = None

    def look(self) -> Seen:
        """Return what stands now."""
        with self._engine.connect() as connection:
            pointer = releases.read(connection)
            head = connection.execute(sa.select(POINTER.c.head).where(POINTER.c.name == NAME)).scalar_one()
            if self._last is None or (head, pointer) != (self._last.head, self._last.pointer):
                self._last = Seen(pointer, _running(connection, pointer), head)
        return self._last

    def close(self) -> None:
        """Let the database go."""
        self._opened.__exit__(None, None, None)


def current(home: Home) -> Rollout | None:
    """Return the rollout that runs, None without one."""
    with opened(home) as engine, engine.connect() as connection:
        return _running(connection, releases.read(connection))


def runs(connection: sa.Connection, digest: str) -> bool:
    """Tell whether a bundle is being rolled out."""
    found = _running(connection, releases.read(connection))
    return found is not None and found.digest == digest


def _running(connection: sa.Connection, pointer: releases.Pointer) -> Rollout | None:
    newest = sa.select(LEDGER).where(LEDGER.c.kind.in_([*RUNNING, ledger.ENDED])).order_by(LEDGER.c.seq.desc()).limit(1)
    row = connection.execute(newest).first()
    if row is None or row.kind == ledger.ENDED:
        return None
    found = of_entry(ledger.entry(row))
    return found if found.baseline.fence == pointer.fence else None


def of_entry(entry: Mapping[str, Any]) -> Rollout:
    """Return the rollout that an entry of the ledger tells of."""
    return Rollout(
        key=entry["rollout"],
        step=entry["step"],
        kind=entry["kind"],
        share=entry["share"],
        version=entry["challenger"],
        digest=entry["challenger_digest"],
        as_of=entry["as_of"],
        baseline=releases.Pointer(**entry["baseline"]),
        began_at=utc(entry["recorded_at"]),
        author=entry.get("author") or "the gate",
        reasons=tuple(entry["reasons"]),
    )


def begin(
    home: Home,
    baseline: releases.Pointer,
    *,
    key: str,
    kind: str,
    share: float,
    version: int,
    digest: str,
    as_of: str | None,
    body: Mapping[str, Any],
) -> Rollout:
    """Begin a rollout against the champion `baseline`; one that runs is ended first, since only one can be watched.

    Args:
        key: of its first entry; a rollout that was begun under it is not begun again.
        body: `reasons`, `author` and what else is to be on record.

    Raises:
        StateError: there is no champion, it is the challenger itself, or retention has taken the bundle.
        StaleFence: another champion serves.
    """
    if baseline.version is None or baseline.digest == digest:
        raise StateError(
            f"rollout of version {version}",
            found="no champion" if baseline.version is None else "it serves already",
            allowed="a champion to compare it with",
        )
    with ledger.recording(home) as connection:
        bundle_folder.refuse_collected(home, digest)
        _hold(connection, baseline, version)
        if not ledger.holds(connection, key):
            before = _running(connection, baseline)
            if before is not None:
                _ended(connection, before, [f"version {version} is rolled out instead"], str(body.get("author") or "the gate"), {})
            said = {"rollout": key, "step": 0, "share": share, "challenger": version, "challenger_digest": digest, "as_of": as_of}
            held = {"champion_before": baseline.version, "champion_after": baseline.version, "baseline": asdict(baseline)}
            ledger.append(connection, kind, key, {**body, **said, **held})
        row = connection.execute(sa.select(LEDGER).where(LEDGER.c.key == key)).one()
    return of_entry(ledger.entry(row))


def step(home: Home, now: Rollout, *, kind: str, share: float, reasons: list[str], author: str, figures: Mapping[str, Any]) -> bool:
    """Go on to another share; False where somebody has gone on, ended it, or moved the pointer since."""
    with _still(home, now) as connection:
        if connection is None:
            return False
        body = _body(now, reasons, author, figures) | {"step": now.step + 1, "share": share}
        ledger.append(connection, kind, f"rollout/{now.key}/step {now.step + 1}", body)
        return True


def end(home: Home, now: Rollout, *, reasons: list[str], author: str, figures: Mapping[str, Any]) -> bool:
    """Let the champion answer everybody again; False where that rollout is over already."""
    with ledger.recording(home) as connection:
        if ledger.holds(connection, now.end_key):
            return False
        _ended(connection, now, reasons, author, figures)
        return True


def promote(home: Home, now: Rollout, *, reasons: list[str], author: str, figures: Mapping[str, Any]) -> bool:
    """Let the challenger answer everybody: the pointer flips; False where that rollout is over already.

    Raises:
        StaleFence: the pointer has moved since it began; the refusal is in the ledger.
    """
    if ledger.decision(home, now.end_key) is not None:
        return False
    body = _body(now, reasons, author, figures) | {"share": 1.0, "champion_after": now.version, "outcome": ledger.PROMOTED}
    try:
        releases.flip(
            home, now.baseline, version=now.version, digest=now.digest, as_of=now.as_of, key=now.end_key, body=body,
            refusal_key=f"rollout/{now.key}/refused",
        )  # fmt: skip
    except StaleFence:
        if ledger.decision(home, now.end_key) is not None:  # another process did it at the same moment
            return False
        raise
    return True


@contextmanager
def _still(home: Home, now: Rollout) -> Iterator[sa.Connection | None]:
    """Open a transaction in which a rollout still stands as it was read; None where it does not."""
    with ledger.recording(home) as connection:
        found = _running(connection, releases.read(connection))
        yield connection if found is not None and (found.key, found.step) == (now.key, now.step) else None


def _hold(connection: sa.Connection, baseline: releases.Pointer, version: int) -> None:
    now = releases.read(connection)
    if (now.version, now.fence) != (baseline.version, baseline.fence):
        raise StaleFence(
            f"rollout of version {version}",
            found=f"version {now.version} at fence {now.fence}",
            allowed=f"version {baseline.version} at fence {baseline.fence}, which it was judged against",
            hint="run the promotion again: it will be judged against the new champion",
        )


def _ended(connection: sa.Connection, now: Rollout, reasons: list[str], author: str, figures: Mapping[str, Any]) -> None:
    if not ledger.holds(connection, now.end_key):
        ledger.append(connection, ledger.ENDED, now.end_key, _body(now, reasons, author, figures) | {"outcome": ledger.ENDED})


def _body(now: Rollout, reasons: list[str], author: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rollout": now.key,
        "step": now.step,
        "share": now.share,
        "challenger": now.version,
        "challenger_digest": now.digest,
        "as_of": now.as_of,
        "champion_before": now.baseline.version,
        "champion_after": now.baseline.version,
        "baseline": asdict(now.baseline),
        "reasons": reasons,
        "author": author,
        "figures": dict(figures),
    }
