"""Where precomputed lists are answered from: a SQLite file that every process maps, and Redis where processes share one.

    serving/lists/<moment>-<digest>.db     lists(user_id, body); never changed once it is there
    serving/lists/current.json             names the file that answers, and the release that made it; replaced in one step
    reloop:<prefix>:batch:<moment>-<digest>:<user>    the same in Redis, for `precomputed_days`; reloop:<prefix>:batch:current names them

As of the files, the batch that answers and the one before it are kept in Redis. The prefix tells shops apart (`shared_cache.prefix`).

A body is JSON: [[item_id, score, sources], ...]. A batch is named once all of it is there and was read back, so a killed load shows nowhere.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from pipelines import config, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving.breaker import Breaker
from pipelines.serving.request import CACHED, Answer, Ask, Release, Shown, Why
from pipelines.serving.shared_cache import client, prefix
from pipelines.serving_policies import ServingSettings
from pipelines.window import utc

FILE: Final = "lists.parquet"
POINTER: Final = "current.json"
CURRENT: Final = "current"
LOOK_SECONDS: Final = 1.0
WRITE_MS: Final = 10_000  # longest wait for Redis while loading
SAMPLE: Final = 256
SURFACES: Final = ("home",)  # lists that do not depend on an item in hand


def folder(home: Home) -> Path:
    """Return where the files that answer lie."""
    return home.serving / "lists"


def keys(home: Home, settings: ServingSettings) -> str:
    """Return what the keys in Redis begin with."""
    return f"{prefix(home, settings.cache)}:batch:"


def name_of(facts: dict[str, Any]) -> str:
    """Return what a batch is called: its moment and what it was made by."""
    about = json.dumps([facts[name] for name in ("digest", "k", "active_days", "blocked")])
    return f"{utc(facts['as_of']):%Y%m%dT%H%M%S}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def load(home: Home, batch: Path, facts: dict[str, Any]) -> list[str]:
    """Bring a published batch to where it is answered from; return where: `sqlite`, `redis`; nowhere where a newer one answers.

    Raises:
        StateError: not every list arrived.
    """
    settings = config.load(home).serving
    now = _pointed(home)
    if now is not None and utc(now["facts"]["as_of"]) > utc(facts["as_of"]):
        return []
    name = name_of(facts)
    loaded = ["sqlite"]
    _to_sqlite(folder(home) / f"{name}.db", batch / FILE)
    if settings.cache.redis:
        _to_redis(settings, keys(home, settings), name, batch / FILE, facts)
        loaded.append("redis")
    publish.write_json(folder(home) / POINTER, {"name": name, "facts": facts})
    kept = {f"{name}.db", "" if now is None else f"{now['name']}.db"}  # who has just read the pointer still finds what it named
    for old in folder(home).glob("*.db"):
        if old.name not in kept:
            old.unlink(missing_ok=True)
    return loaded


def _bodies(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (user_id, body) of a batch, a row group in memory at a time."""
    with pq.ParquetFile(file) as source:
        for group in range(source.num_row_groups):
            columns = source.read_row_group(group).to_pydict()
            for user, *lists in zip(*columns.values(), strict=True):
                yield user, json.dumps(list(zip(*lists, strict=True)), ensure_ascii=False, separators=(",", ":"))


def _to_sqlite(target: Path, file: Path) -> None:
    if target.is_file():
        return
    with publish.replacing(target) as temporary:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = OFF")  # the file is nobody's until it is renamed
            db.execute("CREATE TABLE lists (user_id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID")
            db.execute("BEGIN")
            db.executemany("INSERT INTO lists VALUES (?, ?)", _bodies(file))
            db.execute("COMMIT")
            (count,) = db.execute("SELECT count(*) FROM lists").fetchone()
        if count != (expected := pq.read_metadata(file).num_rows):
            raise StateError(str(target), found=f"{count} lists", allowed=f"the {expected} of {file}", hint="run `reloop batch` again")


def _to_redis(settings: ServingSettings, begin: str, name: str, file: Path, facts: dict[str, Any]) -> None:
    """Write every list with an end, then prove by a sample and by Redis' own count that none was evicted, then name the batch."""
    from redis import RedisError

    redis, seconds = client(settings.cache.redis, WRITE_MS), round(settings.cache.precomputed_days * 86_400)
    wait, step = settings.batch.redis_keys_at_once, max(1, pq.read_metadata(file).num_rows // SAMPLE)
    sample = []
    try:
        evicted = int(redis.info("stats")["evicted_keys"])
        pipe = redis.pipeline(transaction=False)
        for at, (user, body) in enumerate(_bodies(file)):
            pipe.set(f"{begin}{name}:{user}", body, ex=seconds)
            if at % step == 0:
                sample.append(user)
            if len(pipe) >= wait:
                pipe.execute()
        pipe.execute()
        there = sum(redis.exists(f"{begin}{name}:{user}") for user in sample)
        evicted = int(redis.info("stats")["evicted_keys"]) - evicted
        if there < len(sample) or evicted:
            raise StateError(
                "Redis",
                found=f"{len(sample) - there} of {len(sample)} lists gone right after writing, {evicted:,} keys evicted",
                allowed="every list that was written",
                hint="raise maxmemory and set maxmemory-policy noeviction, then run `reloop batch` again",
            )
        before = json.loads(redis.get(begin + CURRENT) or b"{}").get("name", name)
        redis.set(begin + CURRENT, json.dumps({"name": name, "facts": facts}, default=str), ex=seconds)
        _swept(redis, begin, {name, before}, wait)
    except RedisError as error:
        raise StateError(
            "Redis",
            found=f"{type(error).__name__}: {error}",
            allowed="a server that takes every list",
            hint="start it, or give it memory (maxmemory, policy noeviction), then run `reloop batch` again",
        ) from error
    finally:
        redis.close()


def _swept(redis: Any, begin: str, kept: set[str], at_once: int) -> None:
    """Take batches away that were replaced; who has just read which one answers still finds it."""
    stays = (begin + CURRENT, *(f"{begin}{name}:" for name in kept))
    pipe = redis.pipeline(transaction=False)
    for key in redis.scan_iter(match=f"{begin}*", count=at_once):
        if not key.decode("utf-8", "surrogateescape").startswith(stays):
            pipe.unlink(key)
        if len(pipe) >= at_once:
            pipe.execute()
    pipe.execute()


def _pointed(home: Home) -> dict[str, Any] | None:
    file = folder(home) / POINTER
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


class BatchLists:
    """The precomputed lists as a process answers from them; any number of threads. The local file first, then Redis.

    Args:
        ticks: seconds that go by.
    """

    def __init__(self, home: Home, settings: ServingSettings, *, ticks: Callable[[], float] = time.monotonic) -> None:
        self._home, self._policy, self._ticks = home, settings.cache, ticks
        self._begin = keys(home, settings)
        self._of_thread = threading.local()
        self._pointer: dict[str, Any] | None = None
        self._seen, self._due = -1, ticks()
        self._remote: dict[str, Any] | None = None
        self._remote_due = ticks()
        self.breaker = Breaker("redis lists", settings.ladder.breaker)
        self._redis = client(settings.cache.redis, settings.cache.redis_ms) if settings.cache.redis else None

    def answer(self, ask: Ask) -> Answer | None:
        """Return the list that was made for a user; None where there is none, or it is too old.

        Raises:
            Exception: neither file nor Redis could be read.
        """
        if ask.user_id is None or ask.surface not in SURFACES:
            return None
        for facts, body in self._found(ask.user_id):
            age = ask.as_of - utc(facts["as_of"])
            if body is None or not timedelta(0) <= age <= timedelta(days=self._policy.precomputed_days):
                continue
            names = facts["source_names"]
            why = Why("for_you", "Picked for you")
            items = tuple(
                Shown(item, rank, float(score), why, tuple(name for at, name in enumerate(names) if int(mask) >> at & 1))
                for rank, (item, score, mask) in enumerate(json.loads(body), 1)
            )
            release = Release(facts["version"], facts["digest"], facts["parts"])
            return Answer(ask, items, CACHED, release, (f"cached: precomputed {age.total_seconds() / 3600:.1f} h ago",))
        return None

    def _found(self, user_id: str) -> Iterator[tuple[dict[str, Any], str | bytes | None]]:
        if (pointer := self._local()) is not None:
            try:
                yield pointer["facts"], self._read(pointer["name"], user_id)
            except sqlite3.Error:
                if self._redis is None:
                    raise
        if self._redis is not None:
            with self.breaker.guarding():
                if self._remote is None or self._ticks() >= self._remote_due:
                    told = self._redis.get(self._begin + CURRENT)
                    self._remote, self._remote_due = (None if told is None else json.loads(told)), self._ticks() + LOOK_SECONDS
                body = None if self._remote is None else self._redis.get(f"{self._begin}{self._remote['name']}:{user_id}")
            if self._remote is not None:
                yield self._remote["facts"], body

    def _local(self) -> dict[str, Any] | None:
        """Return what the pointer names, looked at once a second."""
        if self._ticks() >= self._due:
            self._due = self._ticks() + LOOK_SECONDS
            file = folder(self._home) / POINTER
            seen = file.stat().st_mtime_ns if file.exists() else 0
            if seen != self._seen:
                self._pointer, self._seen = _pointed(self._home), seen
        return self._pointer

    def _read(self, name: str, user_id: str) -> str | None:
        if getattr(self._of_thread, "name", None) != name:
            path = folder(self._home) / f"{name}.db"
            db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, isolation_level=None)
            db.execute(f"PRAGMA mmap_size = {path.stat().st_size}")
            self._of_thread.db, self._of_thread.name = db, name
        row = self._of_thread.db.execute("SELECT body FROM lists WHERE user_id = ?", [user_id]).fetchone()
        return None if row is None else str(row[0])
