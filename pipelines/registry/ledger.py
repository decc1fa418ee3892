"""The ledger of releases: every decision and every flip, appended, hash-chained, anchored, never changed.

An entry holds the digest of the one before it, and the pointer row the digest of the last, so a changed,
dropped or slipped-in entry breaks the chain. A chain that was rewritten as a whole is sound in itself: what
betrays it, or a backup that was restored, is the anchor, the newest (seq, hash) known outside the database
(`reports/ledger.json`, and a tag of MLflow's registered model).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry.release_database import GENESIS, LEDGER, NAME, NOW, POINTER, opened, writing
from pipelines.window import utc

PROMOTED: Final = "promoted"
KEPT: Final = "kept"
REFUSED: Final = "refused"
ROLLED_BACK: Final = "rolled back"
BY_HAND: Final = "by hand in MLflow"
WAITING: Final = "waiting for review"
REJECTED: Final = "rejected"
APPROVED: Final = "approved"
UNANSWERED: Final = "unanswered"
RECOVERED: Final = "recovered"
SHADOW: Final = "shadow"  # a challenger answers silently (`rollouts`)
CANARY: Final = "canary"  # it answers some of the users
ENDED: Final = "rollout ended"  # and the champion answers all of them again
KINDS: Final = (PROMOTED, KEPT, REFUSED, ROLLED_BACK, BY_HAND, WAITING, REJECTED, APPROVED, UNANSWERED, RECOVERED, SHADOW, CANARY, ENDED)
REIGNS: Final = frozenset({PROMOTED, ROLLED_BACK, BY_HAND})  # what moved the pointer: a reign begins
JUDGED: Final = frozenset({KEPT, WAITING})  # the gate has spoken, and the champion stays so far


@dataclass(frozen=True)
class Anchor:
    """What is known of the ledger outside its database: entry `seq` had the digest `hash`."""

    seq: int
    hash: str


def anchor_file(home: Home) -> Path:
    """Return where the newest anchor is kept."""
    return home.reports / "ledger.json"


def anchor(home: Home) -> Anchor | None:
    """Return the anchor kept beside the reports, None before the first entry."""
    file = anchor_file(home)
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    return Anchor(int(found["seq"]), str(found["hash"]))


def newest(home: Home) -> Anchor | None:
    """Return seq and hash of the last entry, None of an empty ledger."""
    with opened(home) as engine, engine.connect() as connection:
        return _newest(connection)


def _newest(connection: sa.Connection) -> Anchor | None:
    last = connection.execute(sa.select(LEDGER.c.seq, LEDGER.c.hash).order_by(LEDGER.c.seq.desc()).limit(1)).first()
    return None if last is None else Anchor(last.seq, last.hash)


@contextmanager
def recording(home: Home) -> Iterator[sa.Connection]:
    """Open a transaction to `append` in; once it is committed, the anchor follows."""
    with opened(home) as engine:
        with writing(engine) as connection:
            yield connection
            last = _newest(connection)
        held = anchor(home)
        if last is not None and (held is None or held.seq < last.seq):
            with suppress(OSError):  # what is committed has happened; the next entry's anchor covers this one
                publish.write_json(anchor_file(home), {"seq": last.seq, "hash": last.hash})


def digest(previous: str, seq: int, kind: str, key: str | None, body: str) -> str:
    """Return the digest of an entry: sha256 over the one before it and all that it says."""
    return hashlib.sha256(json.dumps([previous, seq, kind, key, body], ensure_ascii=False).encode()).hexdigest()


def append(connection: sa.Connection, kind: str, key: str | None, body: Mapping[str, Any]) -> int:
    """Append an entry in a transaction of `recording`; return its number."""
    last = _newest(connection)
    seq, previous = (last.seq + 1, last.hash) if last is not None else (1, GENESIS)
    text = publish.to_json(dict(body))
    head = digest(previous, seq, kind, key, text)
    connection.execute(sa.insert(LEDGER).values(seq=seq, kind=kind, key=key, body=text, previous=previous, hash=head))
    connection.execute(sa.update(POINTER).where(POINTER.c.name == NAME).values(head=head))
    return seq


def holds(connection: sa.Connection, key: str) -> bool:
    """Tell whether there is an entry under a key."""
    return connection.execute(sa.select(LEDGER.c.seq).where(LEDGER.c.key == key)).first() is not None


def record(home: Home, kind: str, key: str | None, body: Mapping[str, Any]) -> bool:
    """Append an entry that moves nothing; return False where its key is there already, which is no second entry."""
    with recording(home) as connection:
        if key is not None and holds(connection, key):
            return False
        append(connection, kind, key, body)
        return True


def entry(row: Any) -> dict[str, Any]:
    """Return a row as JSON values."""
    return {
        "seq": row.seq,
        "kind": row.kind,
        "key": row.key,
        "recorded_at": None if row.recorded_at is None else row.recorded_at.isoformat(),
        "hash": row.hash,
        **json.loads(row.body),
    }


def decision(home: Home, key: str) -> dict[str, Any] | None:
    """Return the entry under a key, or None: what makes a rerun find its own decision."""
    with opened(home) as engine, engine.connect() as connection:
        row = connection.execute(sa.select(LEDGER).where(LEDGER.c.key == key)).first()
    return None if row is None else entry(row)


def history(home: Home) -> list[dict[str, Any]]:
    """Return the ledger, oldest first: seq, kind, key, recorded_at, hash, and what was recorded."""
    with opened(home) as engine, engine.connect() as connection:
        rows = connection.execute(sa.select(LEDGER).order_by(LEDGER.c.seq)).all()
    return [entry(row) for row in rows]


def clock(home: Home) -> datetime:
    """Return what time the database says it is, in UTC: what `recorded_at` is measured against."""
    with opened(home) as engine, engine.connect() as connection:
        return utc(connection.execute(sa.select(NOW)).scalar_one())


def spoken(found: Mapping[str, Any]) -> bool:
    """Tell whether an entry is the gate's word on a challenger, by which nothing has moved yet: kept, waiting, or to be rolled out."""
    return found["kind"] in JUDGED or (found["kind"] in {SHADOW, CANARY} and "verdict" in found)


def versions(found: Mapping[str, Any]) -> set[str]:
    """Return the model versions that an entry is about."""
    named = (found.get(name) for name in ("version", "challenger", "champion_before", "champion_after"))
    return {str(version) for version in named if version is not None}


def query(
    home: Home,
    *,
    kinds: Iterable[str] = (),
    version: str | int | None = None,
    since: datetime | None = None,
    as_of: datetime | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Return the entries that were asked for, oldest first; of a limit the newest.

    Args:
        kinds: of `KINDS`; none named means all.
        version: what the entry is about: challenger, champion before or after.
        since: recorded at this moment or later.
        as_of: of the cycle that was decided on.
    """
    wanted = set(kinds)
    found = [
        one
        for one in history(home)
        if (not wanted or one["kind"] in wanted)
        and (version is None or str(version) in versions(one))
        and (since is None or (one["recorded_at"] is not None and utc(one["recorded_at"]) >= utc(since)))
        and (as_of is None or (one.get("as_of") is not None and utc(one["as_of"]) == utc(as_of)))
    ]
    return found if limit is None else found[max(len(found) - limit, 0) :]


def verify(home: Home, outside: Iterable[Anchor] = ()) -> int:
    """Check the chain from the first entry to the head, and against what is known outside; return the number of entries.

    Args:
        outside: further anchors, beside the one of the reports.

    Raises:
        StateError: an entry was changed, removed or slipped in; the ledger was rewritten, or is older than an anchor.
    """
    with opened(home) as engine, engine.connect() as connection:
        head = connection.execute(sa.select(POINTER.c.head).where(POINTER.c.name == NAME)).scalar_one()
        rows = connection.execute(sa.select(LEDGER).order_by(LEDGER.c.seq)).all()
    previous = GENESIS
    for position, row in enumerate(rows, start=1):
        sound = row.seq == position and row.previous == previous and row.hash == digest(previous, row.seq, row.kind, row.key, row.body)
        if not sound:
            raise StateError(f"ledger entry {position}", found="a broken chain", allowed="entries as they were appended")
        previous = row.hash
    if previous != head:
        raise StateError(
            "ledger", found=f"{len(rows)} entries that end elsewhere than the pointer's head", allowed="every entry that was appended"
        )
    hashes = {row.seq: row.hash for row in rows}
    for known in (*filter(None, [anchor(home)]), *outside):
        _hold(known, hashes.get(known.seq), len(rows))
    return len(rows)


def check_anchor(home: Home) -> None:
    """Refuse a ledger that is not the one that was anchored; one look-up, before anything is decided on it.

    Raises:
        StateError: it was rewritten, or an older backup was restored.
    """
    known = anchor(home)
    if known is None:
        return
    with opened(home) as engine, engine.connect() as connection:
        found = connection.execute(sa.select(LEDGER.c.hash).where(LEDGER.c.seq == known.seq)).scalar()
        last = _newest(connection)
    _hold(known, found, 0 if last is None else last.seq)


def _hold(known: Anchor, found: str | None, length: int) -> None:
    if found is None:
        raise StateError(
            "ledger",
            found=f"{length} entries, but entry {known.seq} ({known.hash[:12]}) is known to have been written",
            allowed="every entry that was appended",
            hint="an older backup was restored: restore the newest one, or let what is left stand with `reloop releases recover --reason ...`",
        )
    if found != known.hash:
        raise StateError(
            f"ledger entry {known.seq}",
            found=f"digest {found[:12]}, which is not the {known.hash[:12]} that was anchored: the ledger was rewritten or has forked",
            allowed="the entry as it was appended",
            hint="restore a backup of before, or let what is there stand with `reloop releases recover --reason ...`",
        )


def recover(home: Home, *, reason: str, author: str) -> dict[str, Any]:
    """Let a ledger stand that is not the one that was anchored: says so in an entry, and anchors that.

    Raises:
        StateError: ledger and anchor agree, so there is nothing to recover.
    """
    known = anchor(home)
    try:
        check_anchor(home)
    except StateError as lost:
        body = {
            "reasons": [reason, str(lost)],
            "author": author,
            "anchored_seq": None if known is None else known.seq,
            "anchored_hash": None if known is None else known.hash,
        }
        with recording(home) as connection:
            append(connection, RECOVERED, None, body)
            last = _newest(connection)
        if last is not None:
            publish.write_json(anchor_file(home), {"seq": last.seq, "hash": last.hash})
        return body
    raise StateError("ledger", found="it is the one that was anchored", allowed="one that was rewritten, or an older backup")


def line(found: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return an entry as people read it: as_of, decision, champion before, champion after, reasons."""
    by = found.get("author")
    said = [f"{by}: {'; '.join(found['words'])}"] if by and found.get("words") else [f"by {by}"] if by else []
    because = (found.get("trigger") or {}).get("reasons") or ()
    reasons = [*([found["refusal"]] if "refusal" in found else []), *said, *found.get("reasons", ())]
    reasons += [f"trained because: {'; '.join(because)}"] if because else []
    before, after = (str(found[name]) if found.get(name) is not None else "-" for name in ("champion_before", "champion_after"))
    return str(found.get("as_of") or "-")[:16], found["kind"], before, after, "\n".join(reasons)
