"""The topology of infra/compose.yaml, run natively: Debian's PostgreSQL and Redis on high loopback ports."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stack import FIRST, MINUTES, load_up, running

from pipelines.config import REPOSITORY, Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
PASSWORD = "only-for-this-test"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """Run PostgreSQL on a throw-away data folder and yield the start of its URLs."""
    folder = Path(tempfile.mkdtemp(prefix="reloop-postgres-"))  # not pytest's: the server's user must get in
    as_server: list[str] = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        as_server = ["runuser", "-u", "postgres", "--"]
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    tools = BINARIES[-1].parent
    init = ["--pgdata", str(folder / "data"), "--username", "reloop", "--pwfile", str(secret), "--auth", "scram-sha-256", "--no-sync"]
    subprocess.run([*as_server, str(tools / "initdb"), *init], check=True, capture_output=True, cwd=folder)
    options = ["-D", str(folder / "data"), "-h", "127.0.0.1", "-p", str(port), "-k", "", "-c", "fsync=off"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*as_server, str(tools / "postgres"), *options], stdout=log, stderr=log, cwd=folder)
    try:
        ready = [str(tools / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        _until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        ask = ["psql", "-h", "127.0.0.1", "-p", str(port), "-U", "reloop", "-d", "postgres", "-v", "ON_ERROR_STOP=1"]
        subprocess.run(
            [*ask, "-f", str(REPOSITORY / "infra" / "postgres" / "databases.sql")], check=True, capture_output=True, env=environment
        )
        yield f"postgresql+psycopg2://reloop:{PASSWORD}@127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder)


@contextmanager
def redis(port: int, folder: Path) -> Iterator[str]:
    """Run Redis with the settings of the compose file and yield what Feast connects to."""
    options = ["--port", str(port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--maxmemory-policy", "noeviction"]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(["redis-server", *options, "--save", "", "--dir", str(folder)], stdout=log, stderr=log)
    try:
        yield f"127.0.0.1:{port},password={PASSWORD}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.skipif(not BINARIES or not shutil.which("redis-server"), reason="needs Debian's postgresql and redis-server")
def test_the_loop_runs_on_postgresql_and_redis(tmp_path: Path):
    import redis as client
    import sqlalchemy as sa

    ports = load_up()
    home = Home(tmp_path / "var")
    with postgres(ports.free_port(0)) as server, redis(redis_port := ports.free_port(0), tmp_path) as online:
        settings = {
            "RELOOP_AIRFLOW_DB": f"{server}/airflow",
            "RELOOP_MLFLOW_DB": f"{server}/mlflow",
            "RELOOP_FEAST_REGISTRY": f"{server}/feast",
            "RELOOP_REDIS": online,
        }
        with running(home, settings) as stack:
            stack.trigger("reloop_ingest", FIRST)
            stack.wait("reloop_promote", 1, seconds=25 * MINUTES)

        def count(database: str, query: str) -> int:
            engine = sa.create_engine(f"{server}/{database}")
            with engine.connect() as connection:
                found = connection.execute(sa.text(query)).scalar_one()
            engine.dispose()
            return int(found)

        assert count("airflow", "select count(*) from dag_run where state = 'success'") >= 4
        assert count("mlflow", "select count(*) from model_versions where name = 'reloop'") == 1
        assert count("mlflow", "select count(*) from registered_model_aliases where alias = 'champion'") == 1
        assert count("feast", "select count(*) from feature_views") >= 3
        assert client.Redis(port=redis_port, password=PASSWORD).dbsize() > 100
    embedded = [file for name in ("airflow.db", "mlflow.db", "registry.db", "online.db") for file in home.root.rglob(name)]
    assert embedded == []
