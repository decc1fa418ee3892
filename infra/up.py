"""Start, stop and describe what a person looks at: Airflow and MLflow, all on loopback.

python infra/up.py up        start everything in the background, wait until it answers, print addresses and login
python infra/up.py down      end every process that `up` started
python infra/up.py status    say what runs
python infra/up.py serve X   be one component in the foreground (what a container runs); X as in SERVICES
python infra/up.py prepare   bring the metadata database up to date
python infra/up.py settle    create the pools and unpause the Dags of a running Airflow
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import psutil

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError

sys.path += [str(REPOSITORY / "dags"), str(REPOSITORY / "infra")]

from airflow_api import AIRFLOW, Api, is_well
from reloop_environment import ADMIN, LOOPBACK, address, environment, passwords

MLFLOW: Final = "mlflow"
SERVICES: Final = (*AIRFLOW, MLFLOW)
MARK: Final = "RELOOP_STACK"  # in the environment of every process that `up` started, so that none is forgotten
SECONDS_TO_START: Final = 300
SECONDS_TO_STOP: Final = 20
SECONDS_TO_RESTART: Final = 5


def command(service: str, home: Home, mlflow_port: int) -> list[str]:
    """Return the command line of one component."""
    binaries = Path(sys.executable).parent
    if service == MLFLOW:
        return [
            str(binaries / "mlflow"),
            "server",
            "--host",
            address(os.environ),
            "--port",
            str(mlflow_port),
            "--workers",
            "1",
            *books(home),
        ]
    # Without this switch the log servers of scheduler and triggerer listen on every address.
    silent = ["--skip-serve-logs"] if service in {"scheduler", "triggerer"} else []
    return [str(binaries / "airflow"), service, *silent]


def books(home: Home) -> list[str]:
    """Return where the MLflow server keeps its books and artifacts.

    With RELOOP_MLFLOW_DB (a SQLAlchemy URL) the server alone touches the database, and hands artifacts on over HTTP.
    """
    from pipelines.registry import tracking

    artifacts = (home.mlflow / "artifacts").as_uri()
    if database := os.environ.get("RELOOP_MLFLOW_DB"):
        return ["--backend-store-uri", database, "--artifacts-destination", artifacts]
    return ["--backend-store-uri", tracking.uri(home), "--default-artifact-root", artifacts]


def surroundings(home: Home, airflow_port: int, mlflow_port: int) -> dict[str, str]:
    """Return the environment of every component."""
    added = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1"}
    if "RELOOP_MLFLOW_DB" in os.environ:
        added["RELOOP_MLFLOW_URI"] = os.environ.get("RELOOP_MLFLOW_URI", f"http://{LOOPBACK}:{mlflow_port}")
    return environment(home, port=airflow_port) | added


def prepare(home: Home) -> None:
    """Bring Airflow's metadata database up to date."""
    airflow = [str(Path(sys.executable).parent / "airflow"), "db", "migrate"]
    done = subprocess.run(airflow, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StateError(
            "Airflow's metadata database", found=done.stderr.strip()[-500:], hint="is RELOOP_AIRFLOW_DB right, and does it answer?"
        )


def supervise(home: Home, airflow_port: int, mlflow_port: int) -> None:
    """Run every component until told to stop; one that ends is started again. Runs in a session of its own."""
    logs = home.root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen[bytes]] = {}
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    while not stopping:
        for service in SERVICES:
            if service not in running or running[service].poll() is not None:
                with (logs / f"{service}.log").open("ab") as log:
                    running[service] = subprocess.Popen(
                        command(service, home, mlflow_port),
                        env=surroundings(home, airflow_port, mlflow_port),
                        cwd=REPOSITORY,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
        for _ in range(SECONDS_TO_RESTART * 10):
            if stopping:
                break
            time.sleep(0.1)
    for process in running.values():
        process.terminate()
    for process in running.values():
        process.wait()


def stack_file(home: Home) -> Path:
    """Return the file that says what `up` started."""
    return home.root / "stack.json"


def members(stack: dict[str, Any]) -> list[psutil.Process]:
    """Return every living process of what one `up` started.

    They share the supervisor's session, whose number the kernel gives to nobody else while one of them lives.
    Who has left the session is known by the mark in its environment (which `setproctitle` overwrites in others).
    """
    ours = _session_is_ours(stack)
    found = []
    for process in psutil.process_iter():
        try:
            member = (ours and os.getsid(process.pid) == stack["pid"]) or process.environ().get(MARK) == stack["mark"]
            if member and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _session_is_ours(stack: dict[str, Any]) -> bool:
    """Return whether the supervisor's number still means its session: not after a restart, nor once another process has it."""
    if stack["boot"] != boot():
        return False
    try:
        return abs(psutil.Process(stack["pid"]).create_time() - stack["born"]) < 1.0
    except psutil.NoSuchProcess:
        return True


def boot() -> str:
    """Return what tells this start of the machine from every other."""
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text(encoding="ascii").strip() if file.is_file() else str(psutil.boot_time())


def running_stack(home: Home) -> dict[str, Any] | None:
    """Return what `up` started in this state folder, if any of it is alive."""
    file = stack_file(home)
    if not file.is_file():
        return None
    stack: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return stack if members(stack) else None


def up(home: Home, airflow_port: int | None, mlflow_port: int | None) -> dict[str, Any]:
    """Start everything and return the stack once it answers; what runs already is left as it is.

    Raises:
        StateError: it did not answer in time; it is stopped again.
    """
    if (stack := running_stack(home)) is not None:
        return stack
    airflow_port, mlflow_port = airflow_port or free_port(8080), mlflow_port or free_port(5000)
    prepare(home)
    mark = secrets.token_hex(16)
    log_file = home.root / "logs" / "supervisor.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        arguments = ["run", "--airflow-port", str(airflow_port), "--mlflow-port", str(mlflow_port)]
        supervisor = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env={**os.environ, MARK: mark, "RELOOP_HOME": str(home.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack = {
        "pid": supervisor.pid,
        "born": psutil.Process(supervisor.pid).create_time(),
        "boot": boot(),
        "mark": mark,
        "airflow": f"http://{LOOPBACK}:{airflow_port}",
        "mlflow": f"http://{LOOPBACK}:{mlflow_port}",
    }
    publish.write_json(stack_file(home), stack)
    try:
        settle(home, stack["airflow"])
        _until(lambda: _answers(stack["mlflow"] + "/health"), "MLflow", home)
    except BaseException:
        down(home)
        raise
    return stack


def settle(home: Home, url: str) -> None:
    """Wait until Airflow is well and knows every Dag, create the pools, and let the Dags run."""
    from reloop_defaults import POOLS

    _until(lambda: is_well(url), "Airflow", home)
    api = Api(url, home)
    expected = len(list((REPOSITORY / "dags").glob("reloop_*.py"))) - len(_ignored())
    _until(lambda: api.call("GET", "/dags?dag_id_pattern=reloop_&limit=100")["total_entries"] >= expected, "Airflow's Dags", home)
    for name, (slots, description) in POOLS.items():
        body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
        try:
            api.call("POST", "/pools", body)
        except urllib.error.HTTPError as error:
            if error.code != 409:  # 409: it is there already, perhaps with the slots that a person chose
                raise
    api.call("PATCH", "/dags?dag_id_pattern=reloop_", {"is_paused": False})


def _ignored() -> list[str]:
    lines = (REPOSITORY / "dags" / ".airflowignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("reloop_")]


def check(service: str, home: Home, airflow_port: int, mlflow_port: int) -> bool:
    """Return whether one component is well; False also where nobody answers."""
    try:
        if service == MLFLOW:
            return _answers(f"http://{LOOPBACK}:{mlflow_port}/health")
        return is_well(environment(home, port=airflow_port)["AIRFLOW__API__BASE_URL"], service)
    except (OSError, KeyError, ValueError):
        return False


def _answers(url: str) -> bool:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
        return bool(answer.status == 200)


def _until(holds: Any, what: str, home: Home) -> None:
    """Ask twice a second until it holds.

    Raises:
        StateError: it does not in time.
    """
    deadline, last = time.monotonic() + SECONDS_TO_START, "no answer"
    while time.monotonic() < deadline:
        try:
            if holds():
                return
        except (OSError, KeyError, ValueError) as error:
            last = str(error)
        time.sleep(0.5)
    raise StateError(what, found=f"not ready after {SECONDS_TO_START} s ({last})", hint=f"read the logs in {home.root / 'logs'}")


def free_port(wanted: int) -> int:
    """Return a port on loopback: the wanted one if nobody has it, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StateError("port", found="none is free on loopback")


def down(home: Home) -> int:
    """End every process of the stack, politely and then not; return how many there were."""
    file = stack_file(home)
    if not file.is_file():
        return 0
    stack = json.loads(file.read_text(encoding="utf-8"))
    there = members(stack)
    for process in there:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_STOP
    while (left := members(stack)) and time.monotonic() < deadline:
        time.sleep(0.2)
    while left:  # a killed parent may have forked once more
        for process in left:
            _signal(process, signal.SIGKILL)
        time.sleep(0.2)
        left = members(stack)
    file.unlink()
    return len(there)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def describe(home: Home, stack: dict[str, Any] | None) -> str:
    """Return what a person needs to know to look."""
    if stack is None:
        return "Nothing is running. Start it with: make up"
    password = json.loads(passwords(home).read_text(encoding="utf-8"))[ADMIN]
    return "\n".join(
        [
            f"Airflow  {stack['airflow']}  login {ADMIN} / {password}",
            f"MLflow   {stack['mlflow']}",
            f"logs     {home.root / 'logs'}",
            "stop     make down",
        ]
    )


def say(text: str) -> None:
    """Tell the person who asked."""
    sys.stdout.write(text + "\n")


def main() -> int:
    """Run one verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("up", "down", "status", "run", "serve", "prepare", "settle", "check"))
    parser.add_argument("service", nargs="?", choices=SERVICES)
    parser.add_argument("--airflow-port", type=int, default=None)
    parser.add_argument("--mlflow-port", type=int, default=None)
    arguments = parser.parse_args()
    home = Home.from_environment()
    airflow_port, mlflow_port = arguments.airflow_port or 8080, arguments.mlflow_port or 5000
    match arguments.verb:
        case "up":
            say(describe(home, up(home, arguments.airflow_port, arguments.mlflow_port)))
        case "down":
            say(f"Stopped {down(home)} processes.")
        case "status":
            stack = running_stack(home)
            say(describe(home, stack))
            return 0 if stack else 1
        case "run":
            supervise(home, airflow_port, mlflow_port)
        case "prepare":
            prepare(home)
        case "settle":
            settle(home, environment(home, port=airflow_port)["AIRFLOW__API__BASE_URL"])
        case "check" | "serve" if arguments.service is None:
            parser.error(f"{arguments.verb} what? one of {', '.join(SERVICES)}")
        case "check":
            return 0 if check(arguments.service, home, airflow_port, mlflow_port) else 1
        case "serve":
            line = command(arguments.service, home, mlflow_port)
            os.execve(line[0], line, surroundings(home, airflow_port, mlflow_port))  # noqa: S606 - a command line of our own making
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StateError as error:
        sys.stderr.write(f"error {error}\n")
        sys.exit(2)
