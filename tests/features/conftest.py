"""The small shop's features, built once a test run, however many processes share the tests."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shared_folder
from feast import FeatureStore, RepoConfig
from feature_world import END, day, events, items, table, users
from shops_world import declared

from pipelines import lake
from pipelines.config import Home
from pipelines.features import build, store


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a home that lived the 40 days: three landings, three builds, one of them after a week of silence.

    The second landing brings events that were received days before: the days since are built again.
    """
    return Home(shared_folder.once(shared_folder.root(tmp_path_factory) / "lived", lambda folder: _live(Home(folder))))


def _live(home: Home) -> None:
    log = events()
    held_back = {event["event_id"] for event in log if day(12) <= event["received_at"] < day(20)} & {f"e{n}" for n in range(0, 900, 3)}
    first = [event for event in log if event["received_at"] < day(20) and event["event_id"] not in held_back]
    second = [event for event in log if event["received_at"] < day(27) and event not in first]
    third = [event for event in log if event not in first and event not in second]
    for batch, as_of in ((first, day(20)), (second, day(27)), (third, END)):
        lake.land_tables(home, events=table("events", batch), items=table("items", items()), users=table("users", users()))
        build.build(home, as_of)
    store.apply(home)


@pytest.fixture
def lived(built: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a copy of the home that lived, for a test to change."""
    shutil.copytree(built.root, tmp_path / "var")
    monkeypatch.setenv("RELOOP_HOME", str(tmp_path / "var"))
    return Home(tmp_path / "var")


@pytest.fixture
def open_repo(tmp_path: Path) -> Callable[..., FeatureStore]:
    """Return a maker of the shops' repository, given settings of the offline store."""

    def opened(**offline: Any) -> FeatureStore:
        config = RepoConfig(
            project="shops",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{tmp_path}/registry.db"},
            offline_store={
                "type": "pipelines.features.offline_store.DuckDBAsofOfflineStore",
                "temp_directory": str(tmp_path / "spill"),
                **offline,
            },
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "On demand feature view is an experimental", RuntimeWarning)
            store.apply(declared(tmp_path))
        return store

    return opened


@pytest.fixture
def repo(open_repo: Callable[..., FeatureStore]) -> FeatureStore:
    """Return the shops' repository."""
    return open_repo()
