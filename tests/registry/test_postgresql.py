"""The pointer and the ledger on PostgreSQL, where several machines decide; MLflow's books beside them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from pointer_lab import KILLED, bundle, quality, race, release, started_together
from postgresql import BINARIES, postgres
from processes import in_child

from pipelines.config import Home
from pipelines.errors import StaleFence, StateError
from pipelines.registry import ledger, projection, releases, rollback, rollouts, tracking

pytestmark = [pytest.mark.skipif(not BINARIES, reason="needs Debian's postgresql"), pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with postgres(port) as url:
        yield url


@pytest.fixture
def shared(server: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a state folder whose releases are in an empty database of the server."""
    emptied(server)
    monkeypatch.setenv("RELOOP_RELEASES_URL", f"{server}/releases")
    return home


def emptied(server: str) -> None:
    engine = sa.create_engine(f"{server}/releases", poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()


def run(url: str, statement: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as connection:
            connection.execute(sa.text(statement))
    finally:
        engine.dispose()


@pytest.mark.parametrize("change", ["UPDATE ledger SET kind = 'kept'", "DELETE FROM ledger", "TRUNCATE ledger"])
def test_the_database_refuses_to_change_or_drop_an_entry(shared: Home, change: str) -> None:
    release(shared, 1)
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        run(os.environ["RELOOP_RELEASES_URL"], change)
    assert releases.verify(shared) == 1


def test_flip_refusal_rollback_and_tampering_are_as_on_sqlite(shared: Home) -> None:
    stale = release(shared, 1)
    release(shared, 2)
    with pytest.raises(StaleFence):
        release(shared, 3, baseline=stale)
    assert rollback.roll_back(shared)["champion_after"] == 1
    assert [entry["kind"] for entry in ledger.history(shared)] == ["promoted", "promoted", "refused", "rolled back"]
    assert 0 <= (ledger.clock(shared) - ledger.utc(ledger.history(shared)[0]["recorded_at"])).total_seconds() < 60
    assert releases.verify(shared) == 4
    url = os.environ["RELOOP_RELEASES_URL"]
    run(url, "ALTER TABLE ledger DISABLE TRIGGER ALL; UPDATE ledger SET body = replace(body, 'reason 1', 'reason 9')")
    with pytest.raises(StateError, match="broken chain"):
        releases.verify(shared)


@pytest.mark.slow
def test_the_first_start_of_many_processes_makes_one_database(shared: Home) -> None:
    assert started_together(shared) == [0] * 8
    assert releases.pointer(shared).fence == 0


def test_of_eight_processes_that_promote_at_once_the_best_wins(shared: Home) -> None:
    versions = list(range(1, 9))
    race(shared, versions, dying={2, 5})
    assert releases.pointer(shared).version == max(versions, key=quality)
    assert releases.verify(shared) == len(ledger.history(shared))


def test_killed_inside_a_flip_the_lock_is_freed_and_nothing_has_moved(shared: Home) -> None:
    release(shared, 1)

    def dying() -> None:
        import signal

        ledger.digest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
        release(shared, 2)

    assert in_child(dying) == KILLED
    assert releases.pointer(shared).version == 1
    assert release(shared, 3).version == 3


@pytest.mark.slow
def test_the_alias_in_mlflow_on_postgresql_comes_to_rest_at_the_row(shared: Home, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELOOP_MLFLOW_URI", f"{server}/mlflow")
    tracking.ensure_model(shared)
    books = tracking.client(shared)
    for version in (1, 2, 3):
        books.create_model_version(tracking.MODEL, f"file:///nowhere/{version}")
        release(shared, version)
    projection.sync(shared)
    assert str(books.get_registered_model(tracking.MODEL).aliases["champion"]) == "3"
    rollback.roll_back(shared, reason="clicks fell")
    projection.sync(shared)
    assert {name: str(found) for name, found in books.get_registered_model(tracking.MODEL).aliases.items()} == {
        "champion": "2",
        "previous_champion": "3",
    }
    assert books.get_model_version(tracking.MODEL, "3").tags["rolled_back"] == "to version 2: clicks fell"
    assert projection.anchored(shared) == ledger.newest(shared)


@pytest.mark.slow
def test_of_eight_processes_the_best_wins_a_hundred_times_out_of_a_hundred(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELOOP_RELEASES_URL", f"{server}/releases")
    for trial in range(100):
        emptied(server)
        home = Home(tmp_path / str(trial))
        versions = [100 * trial + place for place in range(1, 9)]
        race(home, versions, dying={versions[trial % 8], versions[(trial + 3) % 8]})
        assert releases.pointer(home).version == max(versions, key=quality)
        assert releases.verify(home) == len(ledger.history(home))


def test_a_rollout_is_followed_step_by_step_and_flips_the_pointer(shared: Home) -> None:
    release(shared, 1)
    follower = rollouts.Follower(shared)
    assert follower.look().rollout is None
    now = rollouts.begin(
        shared, releases.pointer(shared), key="r", kind=ledger.CANARY, share=0.01, version=2, digest=bundle(shared, "v2"), as_of="2025-03-02",
        body={"reasons": ["asked for"], "author": "ada"},
    )  # fmt: skip
    assert follower.look().rollout == now
    assert rollouts.step(shared, now, kind=ledger.CANARY, share=0.1, reasons=["healthy"], author="reloop", figures={})
    assert not rollouts.step(shared, now, kind=ledger.CANARY, share=0.5, reasons=["late"], author="reloop", figures={})
    seen = follower.look().rollout
    assert seen is not None
    assert seen.share == 0.1
    assert rollouts.promote(shared, seen, reasons=["healthy"], author="reloop", figures={})
    assert (follower.look().rollout, follower.look().pointer.version) == (None, 2)
    follower.close()
    ledger.verify(shared)
