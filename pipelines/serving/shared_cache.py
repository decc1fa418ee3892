"""Lists that processes, and machines, share over Redis: never waited for long, never needed.

    reloop:<prefix>:list:<hash>    one answer as JSON, for `list_seconds`
    reloop:<prefix>:news:<user>    another word after each event of a user, for longer than a list may be kept

The prefix tells shops and environments apart (`serving.cache.prefix`).

A list holds only while the user's word is what it was before the list was begun; both are read in one round trip. A Redis in
trouble is left alone by a breaker. One that was down while an event came may afterwards give a list of before that event, for what is left
of its `list_seconds` and to other machines only: this one's `news` knows better.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from typing import Any, Final

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving.breaker import Breaker, Open
from pipelines.serving.caches import Kept, Wanted
from pipelines.serving.request import Answer, Ask, Release, Shown, Why
from pipelines.serving_policies import BreakerPolicy, CachePolicy

LOG: Final = logging.getLogger(__name__)


def client(address: str, wait_ms: int) -> Any:
    """Return a Redis client that gives up after `wait_ms` where redis-py would try again for eight seconds.

    Raises:
        StateError: redis is not installed, or the address cannot be read.
    """
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise StateError(
            "cache redis://", found="redis is not installed", allowed="the extra `servers`", hint="pip install 'reloop[servers]'"
        ) from error
    try:
        seconds = wait_ms / 1000
        return redis.Redis.from_url(address, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0))
    except ValueError:  # the address is not repeated: it may hold a password
        raise StateError("serving.cache.redis", found="an address that cannot be read", allowed="redis://HOST:PORT/DB") from None


def prefix(home: Home, policy: CachePolicy) -> str:
    """Return what the keys of a shop begin with: the setting, else a word made of the path of its state folder."""
    word = policy.prefix or hashlib.blake2b(str(home.root.resolve()).encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"reloop:{word}"


class SharedCache:
    """Redis as the second cache of a process; any number of threads."""

    def __init__(self, home: Home, policy: CachePolicy, breaker: BreakerPolicy) -> None:
        self._prefix = prefix(home, policy)
        self.policy, self.breaker = policy, Breaker("redis cache", breaker)
        self._redis = client(policy.redis, policy.redis_ms)

    def get(self, wanted: Wanted, ask: Ask) -> tuple[Kept | None, str | None]:
        """Return what a process remembered, if nothing has happened to the user since, and the user's word; None of what there is none."""
        try:
            with self.breaker.guarding():
                held, told = self._redis.mget(self._list(wanted), self._news(ask.user_id))
        except Exception as error:  # noqa: BLE001 - a cache is never needed
            self._tell(error)
            return None, None
        word = "" if told is None else told.decode()
        if held is None:
            return None, word
        try:
            found = json.loads(held)
            return (Kept(_answer(found["answer"], ask), wanted, int(found["at_us"])) if found["word"] == word else None), word
        except (ValueError, TypeError, KeyError) as error:
            LOG.warning("a list in the shared cache cannot be read: %s", error)
            return None, word

    def put(self, kept: Kept, word: str) -> None:
        """Remember a list for the others, with the user's word from before it was begun."""
        try:
            body = {"word": word, "at_us": kept.at_us, "answer": _told(kept.answer)}
            with self.breaker.guarding():
                self._redis.set(self._list(kept.wanted), json.dumps(body, default=str), px=max(1, round(self.policy.list_seconds * 1000)))
        except Exception as error:  # noqa: BLE001 - a cache is never needed
            self._tell(error)

    def touch(self, user_ids: Iterable[str]) -> None:
        """Say to all processes that something happened to users."""
        seconds = max(60, round(4 * self.policy.list_seconds))
        try:
            with self.breaker.guarding(), self._redis.pipeline(transaction=False) as pipe:
                for user in user_ids:
                    pipe.set(self._news(user), os.urandom(8).hex(), ex=seconds)
                pipe.execute()
        except Exception as error:  # noqa: BLE001 - a cache is never needed
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        if not isinstance(error, Open):
            LOG.warning("shared cache: %s: %s", type(error).__name__, error)

    def _list(self, wanted: Wanted) -> str:
        return f"{self._prefix}:list:{hashlib.blake2b(repr(wanted[:3]).encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"

    def _news(self, user_id: str | None) -> str:
        return f"{self._prefix}:news:{user_id or ''}"


def _told(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON values, without the question and what making it took."""
    release = answer.release
    return {
        "items": [{**vars(shown), "why": vars(shown.why), "about": dict(shown.about)} for shown in answer.items],
        "rung": answer.rung,
        "release": {"version": release.version, "digest": release.digest, "parts": dict(release.parts)},
        "variant": answer.variant,
        "known": answer.known,
        "features": {name: list(values) for name, values in answer.features.items()},
    }


def _answer(told: dict[str, Any], ask: Ask) -> Answer:
    """Return what `_told` said, as an answer to a question."""
    items = tuple(
        Shown(**{**item, "why": Why(**item["why"]), "sources": tuple(item["sources"]), "rules": tuple(item["rules"])})
        for item in told["items"]
    )
    features = {name: tuple(values) for name, values in told["features"].items()}
    return Answer(**{**told, "ask": ask, "items": items, "release": Release(**told["release"]), "features": features})
