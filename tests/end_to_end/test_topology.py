"""The topology of infra/compose.yaml, run natively: Debian's PostgreSQL and Redis on high loopback ports."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgresql import BINARIES, PASSWORD, postgres
from stack import FIRST, MINUTES, load_up, running

from pipelines.config import Home

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


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
            "RELOOP_RELEASES_URL": f"{server}/releases",
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
        assert count("releases", "select count(*) from ledger where kind = 'promoted'") == 1
        assert count("feast", "select count(*) from feature_views") >= 3
        assert client.Redis(port=redis_port, password=PASSWORD).dbsize() > 100
    embedded = [file for name in ("airflow.db", "mlflow.db", "registry.db", "online.db", "releases.db") for file in home.root.rglob(name)]
    assert embedded == []
