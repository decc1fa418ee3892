"""`reloop serve` in processes of its own, and clients that ask it at a steady rate and look at every answer."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crowd import Crowd

from pipelines.config import REPOSITORY, Home
from pipelines.serving.holder import workers

# Deadlines for a busy machine, and no remembered lists: every answer is worked out by a release.
PATIENT = """
[serving.log]
access = false
[serving.limits]
requests_per_second = 100000.0
max_waiting = 1000
max_wait_ms = 20000.0
max_late_ms = 20000.0
[serving.deadline]
request_ms = 20000.0
retrieve_by_ms = 10000.0
rank_by_ms = 10000.0
store_ms = 5000.0
[serving.cache]
list_seconds = 0.0
"""


def configured(home: Home, settings: str = PATIENT) -> Home:
    """Return a state folder to whose settings some were added."""
    with (home.root / "reloop.toml").open("a", encoding="utf-8") as file:
        file.write(settings)
    return home


@dataclass(frozen=True)
class Process:
    """A service that runs."""

    home: Home
    process: subprocess.Popen[bytes]
    port: int
    count: int

    def workers(self) -> list[int]:
        """Return the ids of the processes that answer."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def taken(self, version: int, since: float, seconds: float = 600.0) -> tuple[float, list[dict[str, Any]]]:
        """Wait until every worker serves a version; return the seconds since a moment, and what each said of its swap."""
        while True:
            held = workers(self.home)
            if len(held) == self.count and all((one["champion"] or {}).get("version") == version for one in held.values()):
                return time.perf_counter() - since, [one["swap"] for one in held.values()]
            assert time.perf_counter() - since < seconds, f"version {version} does not serve: {held}"
            time.sleep(0.02)

    def get(self, path: str) -> Any:
        """Return the JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def serving(home: Home, log: Path, *, workers: int = 2, now: str = "data", **environment: str) -> Iterator[Process]:
    """Yield a service of a state folder, once all its processes answer."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--workers", str(workers), "--now", now]
    names = {**os.environ, "RELOOP_HOME": str(home.root), "PYTHONUNBUFFERED": "1", **environment}
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=names, cwd=REPOSITORY) as process:
        try:
            due = time.monotonic() + 300
            while f"{workers} of {workers} processes answer" not in (text := log.read_text()):
                assert process.poll() is None, text[-2000:]
                assert time.monotonic() < due, text[-2000:]
                time.sleep(0.1)
            yield Process(home, process, int(text.split("http://127.0.0.1:", 1)[1].split("/", 1)[0]), workers)
            process.terminate()
            process.wait(60)
        finally:
            process.kill()


@dataclass(frozen=True)
class Got:
    """One answer.

    Attributes:
        due: when it was to be asked (`time.perf_counter`); seconds: from then to the last byte.
        status: 0 where no answer came.
    """

    due: float
    seconds: float
    status: int
    rung: str
    version: int


Look = Callable[[str, dict[str, Any]], str | None]


class Clients(Crowd):
    """Asks at a steady rate (open loop) over connections that stay open.

    Args:
        users: who is asked for, in turn.
        look: returns what is wrong with an answer to a user, None where nothing is.
    """

    def __init__(self, port: int, rate: float, users: list[str], *, threads: int = 6, look: Look | None = None, k: int = 10) -> None:
        super().__init__(threads)
        self.port, self.rate, self.users, self.k = port, rate, users, k
        self.done: list[Got] = []
        self.closed: list[str] = []  # connections that had to be made anew
        self.wrong: list[str] = []
        self._look = look
        self._next, self._turn, self._begun = 0, threading.Lock(), 0.0

    def run(self, place: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self.stop.is_set():
            with self._turn:
                at, self._next = self._next, self._next + 1
            due = self._begun + at / self.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            user = self.users[at % len(self.users)]
            body, status = dict[str, Any](), 0
            for _ in range(2):  # a connection that was idle may be closed by the server at that very moment: clients ask again
                try:
                    connection.request("GET", f"/v1/users/{user}/recommendations?k={self.k}")
                    got = connection.getresponse()
                    body, status = json.loads(got.read()), got.status
                    break
                except (OSError, http.client.HTTPException, ValueError) as error:
                    self.closed.append(repr(error))
                    connection.close()
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            seconds = time.perf_counter() - due
            model = body.get("model") or {}
            self.done.append(Got(due, seconds, status, str(body.get("rung")), int(model.get("version") or 0)))
            if status == 200 and self._look is not None and (wrong := self._look(user, body)) is not None:
                self.wrong.append(wrong)
        connection.close()

    @property
    def failed(self) -> int:
        """Requests that got no answer, or not 200."""
        return sum(one.status != 200 for one in self.done)

    def __enter__(self) -> Self:
        self._begun = time.perf_counter()
        return super().__enter__()
