"""Faults for a service that answers: a Redis that can be killed, frozen, slowed, filled and emptied, releases and files that are damaged."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import redis as client
import served_shop
from trained_shop import SECOND

from pipelines.config import Home
from pipelines.features import repository
from pipelines.ranking import two_stage
from pipelines.ranking.two_stage import RANKED, TwoStage
from pipelines.serving import assembly, engine
from pipelines.serving.assembly import House
from pipelines.serving.request import Answer, Ask, Release

NOW = SECOND + timedelta(hours=1)


class Server:
    """A Redis of our own on a port that stays its own however often it is killed."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(shutil.which("redis-server")), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.025)
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()  # a frozen one, too
            self.process.wait()
            self.process = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def client(self) -> Any:
        return client.Redis(port=self.port)


class Proxy:
    """A TCP proxy before a server that holds every piece of an answer back for `delay` seconds."""

    def __init__(self, port: int) -> None:
        self.delay, self._to = 0.0, port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._join(self._listening.accept()[0], socket.create_connection(("127.0.0.1", self._to)))

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        for source, sink, slow in ((near, far, False), (far, near, True)):
            threading.Thread(target=self._pump, args=(source, sink, slow), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if slow and self.delay:
                    time.sleep(self.delay)
                sink.sendall(piece)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def close(self) -> None:
        self._listening.close()


@dataclass
class Seen:
    """What some requests met.

    Attributes:
        errors: exceptions that reached the caller; there must be none.
        ms: wall clock of each request.
    """

    rungs: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @property
    def p50(self) -> float:
        return statistics.median(self.ms)

    @property
    def p99(self) -> float:
        return float(np.percentile(self.ms, 99))


def ask(house: House, user: str | None, **said: Any) -> Ask:
    return Ask(**({"surface": "home", "request_id": f"r-{user}", "as_of": house.clock(), "k": 10, "user_id": user} | said))


def requests(house: House, users: Sequence[str | None], *, pause: float = 0.0, **said: Any) -> Seen:
    """Ask for each user in turn; nothing that goes wrong is raised."""
    seen = Seen()
    for user in users:
        begun = time.perf_counter()
        try:
            answer = house.service.answer(ask(house, user, **said))
        except Exception as error:  # noqa: BLE001 - that is what is counted
            seen.errors.append(f"{type(error).__name__}: {error}")
            continue
        finally:
            seen.ms.append((time.perf_counter() - begun) * 1000)
        seen.rungs[answer.rung] += 1
        seen.labels.update(line.split(":")[0] for line in answer.degraded)
        seen.answers.append(answer)
        time.sleep(pause)
    return seen


def users(n: int, first: int = 0) -> list[str]:
    """Return ids of the shop's users."""
    return [f"u{at:08d}" for at in range(first, first + n)]


@contextmanager
def house(home: Home, store: str = "", clock: Any = None, ranked: TwoStage | None = None) -> Iterator[House]:
    """Yield the service of a state folder whose online store is a Redis, or SQLite.

    Args:
        ranked: answers in the place of the release's own model, which the small shop's gate lets serve its blend.
    """
    before = {name: os.environ.get(name) for name in (repository.REDIS, "RELOOP_HOME")}
    os.environ.pop(repository.REDIS, None)
    os.environ["RELOOP_HOME"] = str(home.root)
    if store:
        os.environ[repository.REDIS] = store
    try:
        with assembly.house(home, clock or (lambda: NOW)) as made:
            if ranked is not None:
                held = made.holder.held
                made.holder.held = replace(held, champion=engine.bound(made.knowledge, replace(held.champion.serving, model=ranked)))
            yield made
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def filled(home: Home, address: str) -> None:
    """Load the shop's features into a Redis."""
    before = os.environ.get(repository.REDIS)
    os.environ[repository.REDIS] = address
    try:
        with served_shop.environment(home):
            served_shop.online(home)
    finally:
        os.environ.pop(repository.REDIS, None)
        if before is not None:
            os.environ[repository.REDIS] = before


def shop(served: Home, root: Path, settings: str = "") -> Home:
    """Return a copy of the served shop with more settings; its bundles are copies, to be damaged."""
    home = served_shop.copied(served, root)
    shutil.rmtree(home.bundles)
    shutil.copytree(served.bundles, home.bundles)
    with (home.root / "reloop.toml").open("a") as file:
        file.write(f"\n[serving.rollout]\nwarm_asks = 0\n[serving.events]\nconsume = false\n{settings}")
    return home


def ranking(trained: Home) -> TwoStage:
    """Return the model of the shop's newest training run with its ranker, whatever the gate thinks of that."""
    return two_stage.of_run(trained, SECOND, serves=RANKED)


class Broken:
    """An engine that fails whatever it is asked."""

    def __init__(self, release: Release) -> None:
        self.release = release

    def answer(self, ask: Ask) -> Answer:
        raise RuntimeError("the engine is broken")


def broken(made: House) -> None:
    """Let the release that serves fail whatever it is asked."""
    held = made.holder.held
    made.holder.held = replace(held, champion=Broken(held.champion.release))


def active(made: House, n: int, first: int = 0) -> list[str]:
    """Return users who must be in the store, for they were here in the week before its day."""
    known = made.knowledge.known
    return [user for user in users(800) if known.active(user)][first : first + n]


def poisoned(made: House) -> None:
    """Let every item vector and weight of the release that serves be NaN, and its ranker answer NaN."""
    champion = made.holder.held.champion
    model = champion.serving.model

    class Nan:
        def __init__(self, ranker: Any) -> None:
            self.ranker = ranker

        def __getattr__(self, name: str) -> Any:
            return getattr(self.ranker, name)

        def score(self, features: Any, group: Any = None) -> Any:
            return np.full(len(features), np.nan)

    retrievers = {
        name: replace(
            source, state={key: np.full_like(value, np.nan) if value.dtype.kind == "f" else value for key, value in source.state.items()}
        )
        for name, source in model.retrievers.items()
    }
    model = replace(model, retrievers=retrievers, ranker=Nan(model.ranker))
    made.holder.held = replace(made.holder.held, champion=engine.bound(made.knowledge, replace(champion.serving, model=model)))


def until(condition: Any, seconds: float) -> float:
    """Return after how many seconds something came to hold; infinity where it did not."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if condition():
            return time.monotonic() - begun
        time.sleep(0.02)
    return float("inf")


def moment(days: float) -> datetime:
    """Return a time after the newest features."""
    return SECOND + timedelta(days=days)
