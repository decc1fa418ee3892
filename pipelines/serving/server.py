"""The processes of the service: one that holds the address and the others' lives, and those that answer.

    supervisor   binds the address, starts the workers, starts one again that ends, passes a stop on
    worker       builds the service from the state folder (`assembly`) and answers on the shared socket

Workers share no memory but what they map from files: bundles and snapshots, the clients' buckets, the metrics. A
stop (SIGTERM, SIGINT) lets requests that were begun end. Workers end when their supervisor is gone, however it went.
"""

from __future__ import annotations

import fcntl
import gc
import ipaddress
import logging
import multiprocessing
import os
import resource
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import tally
from pipelines.serving.clock import Anchored

LOG: Final = logging.getLogger(__name__)
# Where workers share their metrics; the client reads it when it is imported. Feast would choose a folder of its own by the second name.
FOLDERS: Final = ("PROMETHEUS_MULTIPROC_DIR", "PROMETHEUS_MULTIPROCESS_DIR")
GRACE_SECONDS: Final = 10.0
CALM_SECONDS: Final = 10.0  # a worker that lived so long is started again at once
MOST_PAUSE_SECONDS: Final = 30.0
FILES_BESIDE: Final = 1024  # a worker's own: maps, stores, pipes
LOCAL_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True)
class Orders:
    """What a worker must know.

    Attributes:
        root: the state folder.
        clock: None is the machine's.
        hosts: names that may stand in `Host`; empty allows any.
        salt: of the buckets that the workers share.
    """

    root: Path
    host: str
    clock: Anchored | None
    auth: bool
    hosts: frozenset[str]
    salt: bytes
    traces: bool = False


def loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def orders(
    home: Home,
    host: str,
    *,
    clock: Anchored | None = None,
    auth: bool | None = None,
    hosts: tuple[str, ...] = (),
    traces: bool = False,
) -> Orders:
    """Return the orders of a service.

    Args:
        auth: whether keys are asked for; None: unless only this machine can reach the address.
        hosts: names that clients may call the service by; none named: those of loopback there, any elsewhere.

    Raises:
        StateError: the settings are wrong, or the address can be reached from elsewhere, and keys are off or none exists.
    """
    from pipelines import config
    from pipelines.serving import auth as keys

    config.load(home)  # what is wrong there would end every worker as soon as it starts, again and again
    local = loopback(host)
    asked = (not local) if auth is None else auth
    if not local and not asked:
        raise StateError(f"listening on {host}", found="no keys asked for", allowed="keys, beyond loopback", hint="leave --no-auth out")
    if asked and not any(key.revoked_at is None for key in keys.keys(home).values()):
        raise StateError(
            f"listening on {host}", found="no API key", allowed="at least one", hint="`reloop key create --name shop --scope recommend`"
        )
    names = frozenset(name.lower() for name in hosts) or (LOCAL_NAMES if local else frozenset())
    return Orders(home.root, host, clock, asked, names, secrets.token_bytes(16), traces)


def bound(host: str, port: int) -> socket.socket:
    """Return a socket at an address.

    Raises:
        StateError: it is taken, or none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise StateError(f"{host}:{port}", found=str(error), allowed="an address that is free", hint="name another --port") from error
    return listening


@contextmanager
def alone(home: Home) -> Iterator[None]:
    """Hold a state folder for one service: its processes share files there that a second one would empty. The kernel drops it at death.

    Raises:
        StateError: another holds it.
    """
    home.serving.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.serving / "service.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StateError(
                f"state folder {home.root}",
                found=f"process {os.pread(descriptor, 32, 0).decode()} serves it already",
                allowed="one service",
                hint="stop that one, give it more --workers, or name another --home",
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def cleared(home: Home) -> Path:
    """Remove what processes of a service before this one left, for their ids are used again; return the folder of metrics, empty."""
    metrics = home.serving / "metrics"
    for left in (metrics, home.serving / "answers", home.serving / "holders"):
        shutil.rmtree(left, ignore_errors=True)
    metrics.mkdir(parents=True)
    tally.sweep(home)
    (home.serving / "rates").unlink(missing_ok=True)
    return metrics


class Supervisor:
    """Keeps a number of workers alive until told to stop."""

    def __init__(self, given: Orders, listening: socket.socket, workers: int) -> None:
        self._given, self._listening, self._count = given, listening, workers
        self._context = multiprocessing.get_context("spawn")  # a fork would inherit threads' locks of libraries
        self._said = self._context.SimpleQueue()
        self._workers: dict[int, tuple[BaseProcess, float]] = {}
        self._stop = threading.Event()
        self._pause = 1.0

    def run(self, on_ready: Callable[[int], None]) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            on_ready: told the number of workers that answer, each time one more does.

        Raises:
            StateError: another service answers from this state folder.
        """
        with alone(Home(self._given.root)):
            self._run(on_ready)

    def _run(self, on_ready: Callable[[int], None]) -> None:
        metrics = cleared(Home(self._given.root))
        for name in FOLDERS:
            os.environ[name] = str(metrics)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        try:
            for _ in range(self._count):
                self._start()
            self._watch(on_ready)
        finally:
            self._end()
            shutil.rmtree(metrics, ignore_errors=True)

    def _start(self) -> None:
        process = self._context.Process(target=work, args=(self._given, self._listening, self._said), daemon=True)
        process.start()
        self._workers[process.pid or 0] = (process, time.monotonic())

    def _watch(self, on_ready: Callable[[int], None]) -> None:
        from prometheus_client.multiprocess import mark_process_dead

        from pipelines.serving.metrics import fold

        ready: set[int] = set()
        while not self._stop.is_set():
            wait([process.sentinel for process, _ in self._workers.values()], timeout=0.2)
            while not self._said.empty():
                ready.add(self._said.get())
                on_ready(len(ready))
            for pid, (process, began) in list(self._workers.items()):
                if process.is_alive() or self._stop.is_set():
                    continue
                del self._workers[pid]
                ready.discard(pid)
                mark_process_dead(pid)  # type: ignore[no-untyped-call]
                try:
                    fold(Path(os.environ[FOLDERS[0]]), [pid])
                except Exception:  # its file may end in the middle of a number
                    LOG.exception("the counts of worker %s stay in a file of their own", pid)
                for left in (f"answers/{pid}", f"holders/{pid}.json"):
                    (Home(self._given.root).serving / left).unlink(missing_ok=True)
                LOG.error("worker %s ended with %s; it is started again", pid, process.exitcode)
                calm = time.monotonic() - began > CALM_SECONDS
                self._pause = 1.0 if calm else min(self._pause * 2, MOST_PAUSE_SECONDS)
                if calm or not self._stop.wait(self._pause):
                    self._start()

    def _end(self) -> None:
        for process, _ in self._workers.values():
            if process.is_alive():
                process.terminate()
        due = time.monotonic() + GRACE_SECONDS + 2.0
        for process, _ in self._workers.values():
            process.join(max(0.0, due - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._listening.close()


def work(given: Orders, listening: socket.socket, said: Any) -> None:
    """Answer on a socket until told to stop: the life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the supervisor says when
    threading.Thread(target=_orphaned, name="parent", daemon=True).start()
    # The thread that answers gives the loop its turn soon, so that /healthz is not deaf meanwhile.
    sys.setswitchinterval(0.0005)
    import uvicorn

    from pipelines import config
    from pipelines.serving import api_protocol, assembly, clock, logs
    from pipelines.serving.auth import Keyring
    from pipelines.serving.traces import Traces

    logs.install()
    home = Home(given.root)
    os.environ["RELOOP_HOME"] = str(home.root)
    limits = config.load(home).serving.limits
    _may_open(limits.max_connections + FILES_BESIDE)
    traces = Traces.sending() if given.traces else None
    with assembly.house(home, given.clock or clock.wall) as made:
        keyring = Keyring(home) if given.auth else None
        gate = assembly.gated(made, home, keyring=keyring, hosts=given.hosts, rates=home.serving / "rates", salt=given.salt, traces=traces)
        server = uvicorn.Server(uvicorn.Config(gate, **api_protocol.options(limits, GRACE_SECONDS)))
        # What was loaded stays: the collector need not walk it again, and pages that nobody writes to stay shared.
        gc.collect()
        gc.freeze()
        said.put(os.getpid())
        server.run(sockets=[listening])
    if traces is not None:
        traces.close()


def _may_open(files: int) -> None:
    """Let this process have so many files open, or as many as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _orphaned() -> None:
    """End this worker once its supervisor is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
