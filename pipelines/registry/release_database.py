"""The database of releases: one pointer row with a fence, the ledger, and what MLflow was last told.

SQLite in the state folder, or what RELOOP_RELEASES_URL names (PostgreSQL, where several machines decide).
Triggers refuse to change or remove ledger entries; whoever drops the triggers is found out by the chain
(`registry.ledger`). The database's own clock stamps entries, in UTC.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from pipelines.config import Home
from pipelines.errors import StateError

NAME: Final = "reloop"
GENESIS: Final = "0" * 64
_ATTEMPTS: Final = 10  # of the first start, where others start at the same time


class _Now(FunctionElement[Any]):
    """The database's clock in UTC, without a zone."""

    type = sa.DateTime()
    inherit_cache = True


@compiles(_Now)  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _now(*_: Any, **__: Any) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(_Now, "postgresql")  # type: ignore[no-untyped-call, untyped-decorator, unused-ignore]
def _now_postgresql(*_: Any, **__: Any) -> str:
    return "timezone('utc', CURRENT_TIMESTAMP)"


NOW: Final = _Now()

_TABLES: Final = sa.MetaData()
POINTER: Final = sa.Table(
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
LEDGER: Final = sa.Table(
    "ledger",
    _TABLES,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("key", sa.String(200), unique=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("recorded_at", sa.DateTime, server_default=NOW),
)
# What MLflow was told last, by name (`alias/champion`, `tag/3/validation_status`), so that a value which lags
# is told apart from one that a person set. `intended` is written before MLflow is asked, `told` after.
PROJECTION: Final = sa.Table(
    "projection",
    sa.MetaData(),  # made last: where it is there, so are the triggers
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("intended", sa.Text),
    sa.Column("told", sa.Text),
)

_REFUSAL: Final = "the ledger is append-only"
_TRIGGERS: Final[dict[str, tuple[str, ...]]] = {
    "sqlite": tuple(
        f"CREATE TRIGGER IF NOT EXISTS ledger_no_{verb.lower()} BEFORE {verb} ON ledger BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    "postgresql": (
        f"CREATE OR REPLACE FUNCTION ledger_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$",
        "DROP TRIGGER IF EXISTS ledger_no_change ON ledger",
        "CREATE TRIGGER ledger_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger FOR EACH STATEMENT EXECUTE FUNCTION ledger_refuse()",
    ),
}


@contextmanager
def opened(home: Home) -> Iterator[sa.Engine]:
    """Open the database, with its tables and the pointer's row."""
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
    for attempt in range(_ATTEMPTS):
        if _is_ready(engine):
            return
        try:
            with engine.begin() as connection:
                if engine.dialect.name == "postgresql":  # else the second of two makers fails, and may not try again
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7263)"))
                _TABLES.create_all(connection)
                for statement in _TRIGGERS.get(engine.dialect.name, ()):
                    connection.execute(sa.text(statement))
                if connection.execute(sa.select(POINTER.c.fence).where(POINTER.c.name == NAME)).first() is None:
                    connection.execute(sa.insert(POINTER).values(name=NAME, fence=0, head=GENESIS))
                PROJECTION.create(connection, checkfirst=True)
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError) as error:
            if attempt == _ATTEMPTS - 1:
                raise StateError(
                    f"database of releases {engine.url.render_as_string(hide_password=True)}",
                    found=str(error.orig).strip().partition("\n")[0],
                    allowed="one that can be opened and written",
                    hint="RELOOP_RELEASES_URL names it; without that it is releases.db in the state folder",
                ) from error
            time.sleep(0.1)


def _is_ready(engine: sa.Engine) -> bool:
    try:
        with engine.connect() as connection:
            connection.execute(sa.select(PROJECTION.c.name).limit(1))
            return connection.execute(sa.select(POINTER.c.fence).where(POINTER.c.name == NAME)).first() is not None
    except (sa.exc.OperationalError, sa.exc.ProgrammingError):  # no such table yet; or no such server, which the making says
        return False


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a transaction that holds the pointer row from its first statement, so writers queue instead of clashing."""
    with engine.begin() as connection:
        connection.execute(sa.update(POINTER).where(POINTER.c.name == NAME).values(fence=POINTER.c.fence))
        yield connection


def told(home: Home) -> dict[str, frozenset[str]]:
    """Return what MLflow may say by our doing: name -> the value it was told last, and the one it was about to be told."""
    with opened(home) as engine, engine.connect() as connection:
        rows = connection.execute(sa.select(PROJECTION)).all()
    return {row.name: frozenset(value for value in (row.told, row.intended) if value is not None) for row in rows}


def note(home: Home, name: str, *, intended: str | None = None, done: str | None = None) -> None:
    """Note what MLflow is about to be told, or has been told."""
    change = {"intended": intended} if done is None else {"told": done, "intended": done}
    with opened(home) as engine, engine.begin() as connection:
        if connection.execute(sa.update(PROJECTION).where(PROJECTION.c.name == name).values(**change)).rowcount == 0:
            connection.execute(sa.insert(PROJECTION).values(name=name, **change))
