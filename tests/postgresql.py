"""Debian's PostgreSQL on a throw-away data folder and a high loopback port."""

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
from typing import Any, Final

from pipelines.config import REPOSITORY

PASSWORD: Final = "only-for-this-test"
BINARIES: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def until(holds: Any) -> None:
    """Wait for a server, a minute at most."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def postgres(port: int) -> Iterator[str]:
    """Run the server with the databases of infra/postgres and yield the start of its URLs."""
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
        until(lambda: subprocess.run(ready, capture_output=True, check=False).returncode == 0)
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
