"""`feature_repo/` under the stock `feast` command, as any Feast user expects."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.features import build, item_snapshot, repository, store
from pipelines.tables import TIMESTAMP
from pipelines.window import utc

DAY = utc("2025-02-01")
SERVICES = ("ranking_v1", "pairs_v1", "session_v1")


@pytest.fixture
def shop(home: Home) -> Home:
    """Return a home with one day of marts: user u1, item i1 of category c1, every number a 7."""
    keys = {"user_id": "u1", "item_id": "i1", "category": "c1", "brand": "c1", "other_item_id": "i1"}
    for mart in build.MARTS:
        columns = {key: pa.array([keys[key]]) for key in build.MARTS[mart]}
        for spec in (spec for service in SERVICES for spec in store.schema(home, service)):
            if spec.view == mart:
                many = pa.types.is_list(spec.dtype)
                kind = spec.dtype.value_type if many else spec.dtype
                value = "c1" if kind == pa.string() else True if kind == pa.bool_() else 7
                columns[spec.name.split("__", 1)[1]] = pa.array([[value] if many else value], spec.dtype)
        moment = pa.array([DAY], TIMESTAMP)
        publish.write_parquet(
            home.features / mart / f"as_of={DAY:%F}.parquet", pa.table({**columns, "as_of": moment, "available_at": moment})
        )
    repository.publish_configuration(home)
    return home


def test_the_configuration_with_its_passwords_is_its_owners_alone(home: Home, monkeypatch: pytest.MonkeyPatch):
    """A looser file, as an earlier run left it, is replaced by one that was never readable to others."""
    monkeypatch.setenv(repository.REDIS, "localhost:6379,password=of-the-online-store")
    home.feast.mkdir(parents=True)
    (home.feast / "feature_store.yaml").touch(0o644)
    modes = set()
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISREG((about := os.fstat(descriptor)).st_mode):
            modes.add(stat.S_IMODE(about.st_mode))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    file = repository.publish_configuration(home)
    assert "of-the-online-store" in file.read_text()
    assert modes == {stat.S_IMODE(file.stat().st_mode)} == {0o600}


def command(home: Home, *arguments: str) -> tuple[list[str], dict[str, str]]:
    executable = shutil.which("feast", path=str(Path(sys.executable).parent)) or "feast"
    environment = {
        **os.environ,
        "RELOOP_HOME": str(home.root),
        "FEAST_FS_YAML_FILE_PATH": str(home.feast / "feature_store.yaml"),
        "PYTHONWARNINGS": "ignore",
    }
    return [executable, *arguments], environment


def feast(home: Home, *arguments: str) -> str:
    """Run the stock command in feature_repo/."""
    argv, environment = command(home, *arguments)
    done = subprocess.run(argv, cwd=repository.FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_feast_apply_and_materialize_by_hand_serve_what_the_library_reads(shop: Home):
    feast(shop, "apply")
    assert "ranking_v1" in feast(shop, "feature-services", "list")
    feast(shop, "materialize", "2025-01-31T12:00:00", "2025-02-01T00:00:00")
    item_snapshot.publish_snapshot(shop, repository.open_store(shop), DAY)  # what `reloop features` does beside materializing
    (row,) = store.online(shop, pa.table({"user_id": ["u1"], "item_id": ["i1"]}), as_of=DAY).to_pylist()
    assert {value for name, value in row.items() if "__" in name} == {7, True, "c1"}


def test_without_any_environment_the_state_is_that_of_the_repository():
    config = yaml.safe_load((repository.FOLDER / "feature_store.yaml").read_text())
    default = repository.configuration(Home(REPOSITORY / "var"))
    relative = {"registry": config["registry"]["path"].removeprefix("sqlite:///"), "online": config["online_store"]["path"]}
    resolved = {name: str((repository.FOLDER / path).resolve()) for name, path in relative.items()}
    assert resolved == {
        "registry": default["registry"]["path"].removeprefix("sqlite:///"),
        "online": default["online_store"]["path"],
    }


def test_the_state_folder_of_one_and_the_registry_of_another_are_not_mixed(home: Home):
    """RELOOP_HOME alone would tell the registry beside the declarations of another folder's features."""
    environment = {**os.environ, "RELOOP_HOME": str(home.root)}
    environment.pop("FEAST_FS_YAML_FILE_PATH", None)
    done = subprocess.run(
        [sys.executable, "sources.py"], cwd=repository.FOLDER, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"export FEAST_FS_YAML_FILE_PATH={home.root}/feast/feature_store.yaml" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "path"), [("serve", "/health"), ("ui", "/")])
def test_feast_serve_and_feast_ui_show_the_repository_on_loopback_alone(shop: Home, verb: str, path: str):
    """Each serves what is declared, and no process of either listens to anything but this machine."""
    if verb == "ui":
        pytest.importorskip(
            "grpc_health", reason="`feast ui` needs grpcio-health-checking, which Feast asks for only in its extra `grpcio`"
        )
    store.apply(shop)
    store.materialize(shop, DAY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv, environment = command(shop, verb, "--host", "127.0.0.1", "--port", str(port))
    with subprocess.Popen(argv, cwd=repository.FOLDER, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            assert get(f"http://127.0.0.1:{port}{path}", server)
            assert listening(server) == {"127.0.0.1"}
            if verb == "ui":
                shown = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/feature_views?project=reloop").read())
                assert {view["spec"]["name"] for view in shown["featureViews"]} == set(build.MARTS)
                services = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/feature_services?project=reloop").read())
                assert "ranking_v1" in {service["spec"]["name"] for service in services["featureServices"]}
            if verb == "serve":
                asked = json.dumps(
                    {
                        "feature_service": "ranking_v1",
                        "entities": {"user_id": ["u1"], "item_id": ["i1"], "category": ["c1"], "brand": ["c1"]},
                        "full_feature_names": True,
                    }
                ).encode()
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/get-online-features", data=asked, headers={"Content-Type": "application/json"}
                )
                answer = json.loads(urllib.request.urlopen(request).read())
                assert [7] in [result["values"] for result in answer["results"]]
        finally:
            server.terminate()


def listening(server: subprocess.Popen) -> set[str]:
    """Return the addresses on which the server and its children accept connections."""
    parent = psutil.Process(server.pid)
    found = [place for process in [parent, *parent.children(recursive=True)] for place in process.net_connections(kind="inet")]
    return {place.laddr.ip for place in found if place.status == psutil.CONN_LISTEN}


def get(address: str, server: subprocess.Popen) -> bool:
    """Return whether the address answers before the server dies or two minutes are over."""
    for _ in range(480):
        if server.poll() is not None:
            return False
        try:
            return urllib.request.urlopen(address).status == 200
        except OSError:
            time.sleep(0.25)
    return False
