"""The environment that Airflow runs in: one answer for headless runs, `make up`, tests and images.

Everything lies under the state folder, everything listens on loopback, secrets are made at the first start.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError

DAGS: Final = Path(__file__).resolve().parent
LOOPBACK: Final = "127.0.0.1"
ADMIN: Final = "admin"
PASSWORD_LENGTH: Final = 12


def keys(home: Home) -> dict[str, str]:
    """Return the keys of this installation, made at the first start and readable by their owner alone."""
    file = home.airflow / "keys.json"
    if not file.is_file():
        made = {
            "fernet": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "session": secrets.token_urlsafe(32),
            "jwt": secrets.token_urlsafe(64),
        }
        _write_once(file, json.dumps(made))
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def passwords(home: Home, chosen: str | None = None) -> Path:
    """Return the file with the password of the user `admin`: the chosen one, else one made at the first start."""
    file = home.airflow / "passwords.json"
    if chosen and file.is_file() and json.loads(file.read_text(encoding="utf-8")) != {ADMIN: chosen}:
        file.unlink()
    if not file.is_file():
        _write_once(file, json.dumps({ADMIN: chosen or secrets.token_urlsafe(12)}))
    return file


def address(base: Mapping[str, str]) -> str:
    """Return the address to listen on: RELOOP_BIND, by default loopback.

    Raises:
        StateError: it is reachable from outside, and nobody has chosen a password.
    """
    bind = base.get("RELOOP_BIND", LOOPBACK)
    if bind not in {LOOPBACK, "::1", "localhost"} and len(base.get("RELOOP_ADMIN_PASSWORD", "")) < PASSWORD_LENGTH:
        raise StateError(
            "RELOOP_BIND",
            found=f"{bind}, which others can reach, without a RELOOP_ADMIN_PASSWORD of {PASSWORD_LENGTH} characters",
            allowed=f"{LOOPBACK}, or any address once that password is chosen",
            hint="and put a proxy that asks who is there in front of MLflow, which asks nobody",
        )
    return bind


def _write_once(file: Path, text: str) -> None:
    """Write a private file whole or not at all; who comes second keeps what the first wrote."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    try:
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def environment(home: Home, *, port: int = 8080, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the whole environment of an Airflow process of this state folder.

    Read from `base`: RELOOP_AIRFLOW_DB (SQLAlchemy URL of the metadata database; default SQLite in the state
    folder), RELOOP_BIND (address to listen on; default loopback), RELOOP_ADMIN_PASSWORD (default: made at the first
    start), RELOOP_AIRFLOW_URL (where other processes reach the API server; default that address and port). AIRFLOW
    settings of another installation are dropped.
    """
    bind = address(base)
    url = base.get("RELOOP_AIRFLOW_URL", f"http://{bind}:{port}")
    made = keys(home)
    inherited = {name: value for name, value in base.items() if not name.startswith("AIRFLOW_")}
    path = os.pathsep.join([str(DAGS), str(REPOSITORY), *filter(None, [base.get("PYTHONPATH")])])
    return inherited | {
        "RELOOP_HOME": str(home.root),
        "PYTHONPATH": path,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), base.get("PATH", os.defpath)]),
        "AIRFLOW_HOME": str(home.airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__MAX_MAP_LENGTH": "4096",
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",  # no look-up over the network
        "AIRFLOW__CORE__FERNET_KEY": made["fernet"],
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{ADMIN}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords(home, base.get("RELOOP_ADMIN_PASSWORD"))),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": base.get("RELOOP_AIRFLOW_DB", f"sqlite:///{home.airflow / 'airflow.db'}"),
        "AIRFLOW__API__HOST": bind,
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": made["session"],
        "AIRFLOW__API_AUTH__JWT_SECRET": made["jwt"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home.airflow / "logs"),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        # A worker that died is noticed within a minute, not five; the tasks heartbeat every few seconds.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_HOST": LOOPBACK,
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }
