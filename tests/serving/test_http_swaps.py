"""Releases come and go under load over HTTP: no request fails, no list is of two bundles, and nothing but the state folder is needed for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import http_load
import pytest
import served_shop
import swap_lab
from served_lists import Quiet, Whole

from pipelines.config import REPOSITORY, Home
from pipelines.registry import bundle, releases

USERS = [f"u{at:08d}" for at in range(64)]
SECONDS = 60.0  # until all workers serve what was released, on a machine that does other things, too
NOWHERE = {  # what a rollback must not need
    "RELOOP_MLFLOW_URI": "http://127.0.0.1:9",
    "RELOOP_AIRFLOW_URL": "http://127.0.0.1:9",
}


def rolled_back(home: Home) -> dict[str, Any]:
    """Roll back as a person does, where neither MLflow nor Airflow can be reached."""
    command = [sys.executable, "-m", "pipelines.cli", "rollback", "--reason", "the test", "--json"]
    environment = {**os.environ, **NOWHERE, "RELOOP_HOME": str(home.root)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_over_http_fails_or_is_mixed_while_releases_are_promoted_and_rolled_back(served: Home, tmp_path: Path) -> None:
    home = http_load.configured(served_shop.copied(served, tmp_path / "var"))
    first, second = swap_lab.versions(home)
    digests = {1: second} | {version: swap_lab.marked(home, first if version % 2 else second, version) for version in range(2, 6)}
    parts = {version: bundle.facts(home, digest)["parts"] for version, digest in digests.items()}
    assert set(parts[2].items()).isdisjoint(parts[3].items()), "bundles that share a part could be mixed unseen"
    quiet = Quiet(home, digests, USERS)
    assert sum(quiet.lists[2, user] == quiet.lists[3, user] for user in USERS) < len(USERS) // 4, (
        "lists that are alike could be mixed unseen"
    )
    took: dict[str, list[float]] = {"promoted": [], "rolled back": []}

    with http_load.serving(home, tmp_path / "serve.log", **NOWHERE) as service:
        service.taken(1, time.perf_counter())
        with http_load.Clients(service.port, 20.0, USERS, look=Whole(quiet)) as clients:
            time.sleep(1.0)
            for turn in range(15):
                version, begun = turn % 4 + 2, time.perf_counter()
                if releases.pointer(home).version != version:
                    swap_lab.promoted(home, version, digests[version])
                    took["promoted"].append(service.taken(version, begun)[0])
                named = service.get(f"/v1/users/{USERS[turn]}/recommendations")["request_id"]
                told = service.get(f"/v1/requests/{named}/explanation")
                assert told["parts"] == parts[version]
                if turn % 5 == 4:
                    begun = time.perf_counter()
                    back = rolled_back(home)
                    took["rolled back"].append(service.taken(back["champion_after"], begun)[0])

    assert clients.wrong == []
    assert clients.failed == 0, [one for one in clients.done if one.status != 200]
    assert clients.closed == []
    assert {one.version for one in clients.done} >= {1, 2, 3, 4, 5}
    assert len(clients.done) > 300
    assert len(took["promoted"]) >= 12
    assert len(took["rolled back"]) == 3
    assert max(max(one) for one in took.values()) < SECONDS, took


def test_a_list_of_two_bundles_is_caught() -> None:
    lists = {(1, "u"): ["x", "y"], (2, "u"): ["y", "x"]}
    two: Any = SimpleNamespace(digests={1: "a", 2: "b"}, lists=lists, asked=lambda version, user, as_of: lists[version, user])
    whole = Whole(two)

    def body(version: int, bundle: str, items: list[str]) -> dict[str, Any]:
        shown, at = [{"item_id": item} for item in items], "2025-03-01T12:00:00Z"
        return {"model": {"version": version, "bundle": bundle}, "rung": "full", "degraded": [], "items": shown, "as_of": at}

    assert whole("u", body(1, "a", ["x", "y"])) is None
    assert whole("u", body(2, "b", ["y", "x"])) is None
    assert whole("u", body(1, "b", ["x", "y"])) == "version 1 with bundle b"
    assert whole("u", body(2, "b", ["x", "y"])) == "version 2 gave u ['x', 'y'], and not ['y', 'x']"
