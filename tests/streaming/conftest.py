"""A real Redis, a shop with items in its lake, and buses to try."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_folder
from streaming_world import day, events, items, table

from pipelines import lake, tables
from pipelines.config import Home
from pipelines.features import build, repository, store


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a home whose lake holds the two weeks, its marts built in two runs, of which the second resumes the first."""

    def live(folder: Path) -> None:
        home = Home(folder)
        lake.land_tables(home, events=table("events", events()), items=items())
        build.build(home, day(8))
        build.build(home, day(13))

    return Home(shared_folder.once(shared_folder.root(tmp_path_factory) / "streamed", live))


@pytest.fixture
def lived(built: Home, home: Home) -> Home:
    """Return a home with the lake and the marts of the two weeks, the views applied, nothing online yet."""
    for part in ("lake", "features"):
        shutil.copytree(built.root / part, home.root / part)
    store.apply(home)
    return home


@pytest.fixture
def shop(home: Home) -> Home:
    """Return a home with items in its lake and the views applied; nothing has happened in it yet."""
    lake.land_tables(home, events=tables.EVENTS.empty_table(), items=items())
    store.apply(home)
    return home


@pytest.fixture
def bus_address(redis: str) -> str:
    """Return the address of an empty bus."""
    return f"redis://{redis}/3"


@pytest.fixture(params=["sqlite", "redis"])
def online_store(request: pytest.FixtureRequest, home: Home, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the online store be SQLite, then Redis."""
    if request.param == "redis":
        monkeypatch.setenv(repository.REDIS, request.getfixturevalue("redis"))
    return str(request.param)


@pytest.fixture
def kafka_cluster() -> Iterator[str]:
    """Return HOST:PORT of librdkafka's built-in mock cluster: real sockets on loopback, no broker to install."""
    kafka = pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
    host = kafka.Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = host.list_topics(timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    del host
