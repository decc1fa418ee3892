"""Feast's Redis online store with a write rule, reads that honour the ttl, and no long waits.

Keys, fields and values are Feast's own, so any stock client reads what is written here. One more
field a view, `_created:<view>`, which no stock client asks for, holds the event and created time
that the row was written with: a row is replaced only by one that is not older by (event time,
created time). The decision is made inside Redis, so that a bulk load and a stream may write at
the same time, and costs one round trip a hundred rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key_prefix
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipelines.errors import StateError
from pipelines.features import encoding
from pipelines.features.conditional_writes import ConditionalWrites
from pipelines.features.encoding import Encoded
from pipelines.features.moments import asked_moment, ttl_micros

SCRIPTS: Final = Path(__file__).parent / "lua"
ROWS_A_CALL: Final = 100  # a call holds Redis up for about a millisecond
CALLS_A_SEND: Final = 20
SCAN_STEP: Final = 500
SAMPLE_A_BATCH: Final = 64
GLOB: Final = b"*?[]\\^"
_TTLS: Final[ContextVar[dict[str, int] | None]] = ContextVar("ttls", default=None)
_NOW: Final[ContextVar[int | None]] = ContextVar("now", default=None)


class ConditionalRedisOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]  # feast is untyped
    """Feast's settings of its Redis store, and ours.

    Attributes:
        read_timeout_ms: longest wait for one answer while reading; there is no second try.
        write_timeout_seconds: longest wait for one answer while loading in bulk.
        expire_on_read: by Redis' own clock, a value past its view's ttl is missing, for every
            client of this class (`feast serve` too). Off by default: a shop that is replayed or
            simulated lives in its own time, and names it with every read (`moments.reading_at`).
    """

    type: Literal["pipelines.features.online_redis.ConditionalRedisOnlineStore"] = (
        "pipelines.features.online_redis.ConditionalRedisOnlineStore"
    )
    read_timeout_ms: int = 50
    write_timeout_seconds: float = 10.0
    expire_on_read: bool = False


class ConditionalRedisOnlineStore(ConditionalWrites, RedisOnlineStore):  # type: ignore[misc]  # feast is untyped
    """The store by which `feature_store.yaml` serves from Redis."""

    _client: Any = None
    _loading_client: Any = None

    def _get_client(self, online_store_config: Any) -> Any:
        """Return Feast's client; one that gives up at once where redis-py would try again for eight seconds."""
        if self._client is None and online_store_config.redis_type == RedisType.redis:
            self._client = self._connect(online_store_config, online_store_config.read_timeout_ms / 1000)
        return super()._get_client(online_store_config)

    def _connect(self, settings: Any, timeout: float) -> Any:
        nodes, given = self._parse_connection_string(settings.connection_string)
        limits = {"socket_timeout": timeout, "socket_connect_timeout": min(timeout, 1.0), "retry": Retry(NoBackoff(), 0)}
        return Redis(host=nodes[0]["host"], port=int(nodes[0]["port"]), **(limits | given))

    def loads_in_bulk(self, config: Any) -> bool:
        """Whether `loading` serves this configuration; a cluster goes through Feast's own writer."""
        return bool(config.online_store.redis_type == RedisType.redis)

    @contextmanager
    def loading(self, config: Any, table: Any) -> Iterator[Callable[[Encoded], None]]:
        """Yield a function that writes rows of a view; when the block ends, all are written and a sample was read back.

        Raises:
            StateError: Redis is down, full, or lost what it was given.
        """
        settings = config.online_store
        if self._loading_client is None:
            self._loading_client = self._connect(settings, settings.write_timeout_seconds)
        try:
            load = _Load(self._loading_client, config, table)
            try:
                yield load.write
                load.finish()
            finally:
                load.release()
        except RedisError as error:
            hint = "start it, or give it memory (maxmemory, policy noeviction); the same command goes on from there"
            raise _trouble(settings, error, "a server that takes every row", hint) from error

    async def online_write_batch_async(self, config: Any, table: Any, data: Any, progress: Any) -> None:
        """Write rows as Feast hands them over, on a thread of its own."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def sweep(self, config: Any, table: Any, oldest_us: int) -> int:
        """Remove the view's rows whose event time is before `oldest_us`; return how many there were."""
        client = self._connect(config.online_store, config.online_store.write_timeout_seconds)
        script = client.register_script((SCRIPTS / "sweep.lua").read_text(encoding="utf-8"))
        name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
        head, project = serialize_entity_key_prefix(table.join_keys), config.project.encode()
        pattern = b"*".join(b"".join(b"\\" + bytes([n]) if n in GLOB else bytes([n]) for n in part) for part in (head, project))
        about = [f"_ts:{name}", f"_created:{name}", oldest_us, len(head), len(table.join_keys), project]
        fields = [_mmh3(f"{name}:{feature.name}") for feature in table.features]
        cursor, removed = b"0", 0
        while True:
            cursor, found = script(args=[cursor, pattern, SCAN_STEP, *about, *fields])
            removed += int(found)
            if cursor == b"0":
                client.close()
                return removed

    def delete_table(self, config: Any, table: Any) -> None:
        """Remove everything that is kept of a view."""
        if self.loads_in_bulk(config):
            self.sweep(config, table, 1 << 62)
        else:
            super().delete_table(config, table)

    def online_read(self, config: Any, table: Any, entity_keys: list[Any], requested_features: list[str] | None = None) -> Any:
        """Return Feast's answer, without values that were too old at the moment of the read."""
        with _limits(config, [table]):
            return super().online_read(config, table, entity_keys, requested_features)

    async def online_read_async(self, *asked: Any, **named: Any) -> Any:
        """Read as `online_read` does, on a thread of its own: Feast's asynchronous client has neither ttl nor short waits."""
        return await asyncio.to_thread(self.online_read, *asked, **named)

    async def _read_features_per_fv_async(self, *asked: Any, **named: Any) -> None:
        await asyncio.to_thread(self._read_features_per_fv, *asked, **named)

    def _read_features_per_fv(self, config: Any, grouped_refs: Any, *rest: Any) -> None:
        with _limits(config, [table for table, _ in grouped_refs]):
            super()._read_features_per_fv(config, grouped_refs, *rest)

    def _read_hash_fields(self, config: Any, commands: list[tuple[bytes, list[Any]]]) -> Any:
        """Fetch every key's fields, and the time where it is Redis' to tell, in one round trip."""
        if not config.online_store.expire_on_read or asked_moment() is not None or not self.loads_in_bulk(config):
            return super()._read_hash_fields(config, commands)
        with self._get_client(config.online_store).pipeline(transaction=False) as pipe:
            for key, fields in commands:
                pipe.hmget(key, fields)
            pipe.time()
            *answers, (seconds, micros) = pipe.execute()
        _NOW.set(seconds * 1_000_000 + micros)
        return answers

    def _get_features_for_entity(self, values: Sequence[Any], feature_view: str, requested_features: list[str]) -> Any:
        moment, found = super()._get_features_for_entity(values, feature_view, requested_features)
        ttl, now = (_TTLS.get() or {}).get(feature_view, 0), _NOW.get()
        if ttl and now is not None and moment is not None and moment.timestamp() * 1_000_000 < now - ttl:
            return super()._get_features_for_entity([None] * len(values), feature_view, requested_features)
        return moment, found


@contextmanager
def _limits(config: Any, views: list[Any]) -> Iterator[None]:
    """Say for the reads in this block how long each view's values are answers, and when the read happens."""
    versioned = config.registry.enable_online_feature_view_versioning
    ttls = _TTLS.set({compute_versioned_name(view, versioned): ttl_micros(view) for view in views})
    now = _NOW.set(asked_moment())
    try:
        yield
    except RedisError as error:
        settings = config.online_store
        raise _trouble(
            settings, error, f"an answer within {settings.read_timeout_ms} ms", "see that it runs and is not overloaded"
        ) from error
    finally:
        _TTLS.reset(ttls)
        _NOW.reset(now)


def _trouble(settings: Any, error: RedisError, allowed: str, hint: str) -> StateError:
    return StateError(f"Redis at {_address(settings)}", found=f"{type(error).__name__}: {error}", allowed=allowed, hint=hint)


def _address(settings: Any) -> str:
    return ",".join(part for part in settings.connection_string.split(",") if "=" not in part)


class _Load:
    """One bulk load of a view over one connection: sends a batch while Redis works on it, then takes the answers."""

    def __init__(self, client: Any, config: Any, table: Any) -> None:
        name = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
        self.client, self.project, self.evicted = client, config.project.encode(), _evicted(client)
        script = client.script_load((SCRIPTS / "write.lua").read_text(encoding="utf-8"))
        ttl = config.online_store.key_ttl_seconds or 0
        self.features = {feature.name: _mmh3(f"{name}:{feature.name}") for feature in table.features}
        self.event_field = f"_ts:{name}".encode()
        self.head = [b"EVALSHA", script.encode() if isinstance(script, str) else bytes(script)]
        self.constants = _line(
            self.event_field, f"_created:{name}".encode(), b"%d" % ttl, b"%d" % len(self.features), *self.features.values()
        )
        self.waiting = 0
        self.sample: list[bytes] = []
        self.connection = client.connection_pool.get_connection()

    def write(self, rows: Encoded) -> None:
        """Send rows; their answers are taken before the next are sent."""
        rows = rows.newest()
        keys = encoding.joined(rows.keys, self.project)
        step = max(1, len(keys) // SAMPLE_A_BATCH)
        self.sample += keys.take(pa.array(np.arange(0, len(keys), step))).to_pylist()
        calls = list(self._calls(keys, rows))
        self._answers()
        for first in range(0, len(calls), CALLS_A_SEND):
            self.connection.send_packed_command([b"".join(calls[first : first + CALLS_A_SEND])], check_health=False)
            self.waiting += len(calls[first : first + CALLS_A_SEND])

    def _calls(self, keys: pa.BinaryArray, rows: Encoded) -> Iterator[bytes]:
        """Yield the calls of the script, already in Redis' protocol: every cell was framed with its whole column."""
        stamps = encoding.binary(
            np.full(len(rows), 16),
            np.ascontiguousarray(np.stack([rows.event_us, rows.created_us], axis=1).astype("<f8")).view(np.uint8).reshape(-1),
        )
        columns = [encoding.timestamps(rows.event_us), stamps, *(rows.values[name] for name in self.features)]
        framed = [encoding.framed(column, b"\r\n" if n else b"") for n, column in enumerate(columns)]
        bodies = encoding.joined(*(piece for pair in framed for piece in pair), b"\r\n")
        names = encoding.joined(*encoding.framed(keys, b""), b"\r\n")
        body, body_ends, name, name_ends = encoding.data(bodies), encoding.ends(bodies), encoding.data(names), encoding.ends(names)
        for first in range(0, len(rows), ROWS_A_CALL):
            last = min(first + ROWS_A_CALL, len(rows))
            count = last - first
            arguments = 3 + count + 4 + len(self.features) + count * len(columns)
            yield b"".join(
                (
                    b"*%d\r\n" % arguments,
                    _line(*self.head, b"%d" % count),
                    name[name_ends[first] : name_ends[last]],
                    self.constants,
                    body[body_ends[first] : body_ends[last]],
                )
            )

    def _answers(self) -> None:
        while self.waiting:
            self.waiting -= 1
            self.connection.read_response()

    def finish(self) -> None:
        """Take the last answers, and prove by a sample and Redis' own count that nothing was evicted."""
        self._answers()
        pipe = self.client.pipeline(transaction=False)
        for key in self.sample:
            pipe.hexists(key, self.event_field)
        lost = len(self.sample) - sum(pipe.execute())
        evicted = _evicted(self.client) - self.evicted
        if lost or evicted:
            policy = self.client.config_get("maxmemory-policy").get("maxmemory-policy", "unknown")
            raise StateError(
                "Redis",
                found=f"{lost} of {len(self.sample)} keys gone right after writing, {evicted:,} evicted (policy {policy})",
                allowed="every row that was written",
                hint="raise maxmemory and set maxmemory-policy noeviction, then run the same command again",
            )

    def release(self) -> None:
        """Give the connection back; one with answers under way is closed first."""
        if self.waiting:
            self.connection.disconnect()
        self.client.connection_pool.release(self.connection)


def _evicted(client: Any) -> int:
    return int(client.info("stats").get("evicted_keys", 0))


def _line(*arguments: bytes) -> bytes:
    """Return arguments in Redis' protocol."""
    return b"".join(b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in arguments)
