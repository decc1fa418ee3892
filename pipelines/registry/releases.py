"""Which bundle serves, and how that came to be: one pointer row with a fence, and a hash-chained ledger.

MLflow's aliases have no compare-and-set: of two gates that compared with the same champion the
worse can end on top. So the champion is one database row, changed only by
`UPDATE ... WHERE version = :baseline AND fence = :fence`; the alias is a projection of it that `sync`
applies again whenever asked. A flip and its ledger entry are one transaction. An entry holds the
digest of the one before it, and the pointer row the digest of the last, so neither a changed nor a
dropped entry goes unseen. The database's own clock stamps entries, outside the chain.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import sqlalchemy as sa

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StaleFence, StateError

NAME: Final = "reloop"
GENESIS: Final = "0" * 64
PROMOTED: Final = "promoted"
KEPT: Final = "kept"
REFUSED: Final = "refused"
ROLLED_BACK: Final = "rolled back"

_TABLES: Final = sa.MetaData()
_POINTER: Final = sa.Table(
    "pointer",
    _TABLES,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer),
    sa.Column("digest", sa.String(64)),
    sa.Column("as_of", sa.String(40)),
    sa.Column("previous_version", sa.Integer),
    sa.Column("previous_digest", sa.String(64)),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("head", sa.String(64), nullable=False),
)
_LEDGER: Final = sa.Table(
    "ledger",
    _TABLES,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("key", sa.String(200), unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("recorded_at", sa.DateTime, server_default=sa.text("CURRENT_TIMESTAMP")),
)


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


@contextmanager
def _database(home: Home) -> Iterator[sa.Engine]:
    """Open the release database, with its tables and the pointer's row."""
    url = os.environ.get("RELOOP_RELEASES_URL")
    if url is None:
        home.releases.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{home.releases}"
    connect = {"timeout": 30} if url.startswith("sqlite") else {}
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect)
    try:
        _prepare(engine)
        yield engine
    finally:
        engine.dispose()


def _prepare(engine: sa.Engine) -> None:
    """Make what is missing; two first starts at once are both right."""
    for attempt in range(3):
        try:
            with engine.connect() as connection:
                if connection.execute(sa.select(_POINTER.c.fence).where(_POINTER.c.name == NAME)).first() is not None:
                    return
        except sa.exc.DBAPIError:  # no such table yet
            pass
        try:
            _TABLES.create_all(engine)
            with engine.begin() as connection:
                connection.execute(sa.insert(_POINTER).values(name=NAME, fence=0, head=GENESIS))
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError):
            if attempt == 2:
                raise


@contextmanager
def _writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a transaction that holds the pointer row from its first statement, so writers queue instead of clashing."""
    with engine.begin() as connection:
        connection.execute(sa.update(_POINTER).where(_POINTER.c.name == NAME).values(fence=_POINTER.c.fence))
        yield connection


def _read(connection: sa.Connection) -> Pointer:
    row = connection.execute(sa.select(_POINTER).where(_POINTER.c.name == NAME)).one()
    return Pointer(row.version, row.digest, row.as_of, row.previous_version, row.previous_digest, row.fence)


def _hash(previous: str, seq: int, kind: str, key: str | None, body: str) -> str:
    return hashlib.sha256(json.dumps([previous, seq, kind, key, body], ensure_ascii=False).encode()).hexdigest()


def _append(connection: sa.Connection, kind: str, key: str | None, body: Mapping[str, Any]) -> None:
    last = connection.execute(sa.select(_LEDGER.c.seq, _LEDGER.c.hash).order_by(_LEDGER.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last is not None else (1, GENESIS)
    text = publish.to_json(dict(body))
    head = _hash(previous, seq, kind, key, text)
    connection.execute(sa.insert(_LEDGER).values(seq=seq, kind=kind, key=key, body=text, previous=previous, hash=head))
    connection.execute(sa.update(_POINTER).where(_POINTER.c.name == NAME).values(head=head))


def pointer(home: Home) -> Pointer:
    """Return the pointer as it stands; its version is None before the first release."""
    with _database(home) as engine, engine.connect() as connection:
        return _read(connection)


def champion(home: Home) -> Champion | None:
    """Return the bundle that serves now, or None before the first release."""
    now = pointer(home)
    if now.version is None or now.digest is None or now.as_of is None:
        return None
    return Champion(now.version, now.digest, now.as_of)


def describe(home: Home) -> dict[str, Any]:
    """Return the pointer as JSON values."""
    return asdict(pointer(home))


def decision(home: Home, key: str) -> dict[str, Any] | None:
    """Return the ledger entry under a key, or None: what makes a rerun find its own decision."""
    with _database(home) as engine, engine.connect() as connection:
        row = connection.execute(sa.select(_LEDGER).where(_LEDGER.c.key == key)).first()
    return None if row is None else _entry(row)


def _entry(row: Any) -> dict[str, Any]:
    return {
        "seq": row.seq,
        "kind": row.kind,
        "key": row.key,
        "recorded_at": None if row.recorded_at is None else row.recorded_at.isoformat(),
        "hash": row.hash,
        **json.loads(row.body),
    }


def history(home: Home) -> list[dict[str, Any]]:
    """Return the ledger, oldest first: seq, kind, key, recorded_at, hash, and what was recorded."""
    with _database(home) as engine, engine.connect() as connection:
        rows = connection.execute(sa.select(_LEDGER).order_by(_LEDGER.c.seq)).all()
    return [_entry(row) for row in rows]


def keep(home: Home, key: str, body: Mapping[str, Any]) -> None:
    """Record a decision that changes nothing; recording it again is no second entry."""
    with _database(home) as engine, _writing(engine) as connection:
        if connection.execute(sa.select(_LEDGER.c.seq).where(_LEDGER.c.key == key)).first() is None:
            _append(connection, KEPT, key, body)


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
) -> Pointer:
    """Make a bundle the champion if the champion is still `baseline`, and record it; both or neither.

    Raises:
        StaleFence: another process moved the pointer since `baseline` was read; the refusal is in the ledger.
    """
    with _database(home) as engine:
        with _writing(engine) as connection:
            table = _POINTER
            same = table.c.version.is_(None) if baseline.version is None else table.c.version == baseline.version
            moved = connection.execute(
                sa.update(table)
                .where(table.c.name == NAME, same, table.c.fence == baseline.fence)
                .values(
                    version=version,
                    digest=digest,
                    as_of=as_of,
                    previous_version=baseline.version,
                    previous_digest=baseline.digest,
                    fence=baseline.fence + 1,
                )
            ).rowcount
            now = _read(connection)
            if moved == 1:
                _append(connection, kind, key, {**body, "version": version, "digest": digest, "fence": now.fence})
                return now
            refusal = f"stale fence: judged against version {baseline.version} at fence {baseline.fence}, but version {now.version} at fence {now.fence} serves"
            _append(connection, REFUSED, None, {**body, "version": version, "digest": digest, "refusal": refusal})
        raise StaleFence(
            f"champion of {NAME}",
            found=f"version {now.version} at fence {now.fence}",
            allowed=f"version {baseline.version} at fence {baseline.fence}, which version {version} was judged against",
            hint="run the promotion again: it will be judged against the new champion",
        )


def verify(home: Home) -> int:
    """Check the chain from the first entry to the head and return the number of entries.

    Raises:
        StateError: an entry was changed, removed or slipped in.
    """
    with _database(home) as engine, engine.connect() as connection:
        head = connection.execute(sa.select(_POINTER.c.head).where(_POINTER.c.name == NAME)).scalar_one()
        rows = connection.execute(sa.select(_LEDGER).order_by(_LEDGER.c.seq)).all()
    previous = GENESIS
    for position, row in enumerate(rows, start=1):
        sound = row.seq == position and row.previous == previous and row.hash == _hash(previous, row.seq, row.kind, row.key, row.body)
        if not sound:
            raise StateError(f"ledger entry {position}", found="a broken chain", allowed="entries as they were appended")
        previous = row.hash
    if previous != head:
        raise StateError(
            "ledger", found=f"{len(rows)} entries that end elsewhere than the pointer's head", allowed="every entry that was appended"
        )
    return len(rows)


def line(entry: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """Return an entry as people read it: as_of, decision, champion before, champion after, reasons."""
    reasons = [*([entry["refusal"]] if "refusal" in entry else []), *entry.get("reasons", ())]
    before, after = (str(entry[name]) if entry.get(name) is not None else "-" for name in ("champion_before", "champion_after"))
    return str(entry.get("as_of") or "-")[:16], entry["kind"], before, after, "\n".join(reasons)


def rollback(home: Home, to: str | int | None = None, *, reason: str = "asked for") -> dict[str, Any]:
    """Let an earlier champion serve again: the previous one, or version `to`. One pointer flip.

    Needs neither MLflow nor a gate: what is put back has been released before, and its bundle is
    checked byte by byte first. MLflow's aliases follow with the next `sync`.

    Returns:
        {"champion_before", "champion_after", "digest", "fence", "reasons"}.

    Raises:
        StateError: there is nothing to go back to, `to` was never released, or its bundle is damaged.
        StaleFence: somebody else moved the pointer meanwhile.
    """
    now = pointer(home)
    released = {str(entry["version"]): entry for entry in history(home) if entry["kind"] in {PROMOTED, ROLLED_BACK}}
    target = now.previous_version if to is None else to
    entry = released.get(str(target))
    if entry is None or entry["version"] == now.version:
        others = sorted(int(version) for version in released if version != str(now.version))
        found = (
            "no earlier champion"
            if target is None
            else f"version {target}, which " + ("was never released" if entry is None else "serves already")
        )
        only = f"; version {now.version}, which serves, is the only one released" if released else "; none was released yet"
        raise StateError("rollback", found=found, allowed=f"one of the versions {others}" if others else f"a second release first{only}")
    folder = home.bundles / entry["digest"]
    if publish.manifest(folder, verify=True).digest != entry["digest"]:
        raise StateError(str(folder), found="another bundle's content", allowed=f"digest {entry['digest']}")
    body = {"reasons": [reason], "as_of": entry["as_of"], "champion_before": now.version, "champion_after": entry["version"]}
    flipped = flip(home, now, version=entry["version"], digest=entry["digest"], as_of=entry["as_of"], key=None, body=body, kind=ROLLED_BACK)
    return {**body, "digest": entry["digest"], "fence": flipped.fence}


def sync(home: Home) -> None:
    """Make MLflow's aliases `champion` and `previous_champion` say what the pointer says; safe to repeat."""
    from pipelines.registry import tracking

    now = pointer(home)
    books = tracking.client(home)
    for alias, version in ((tracking.CHAMPION, now.version), (tracking.PREVIOUS, now.previous_version)):
        if version is not None:
            books.set_registered_model_alias(tracking.MODEL, alias, str(version))
