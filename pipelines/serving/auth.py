"""Who may ask: API keys with scopes, of which the service keeps a digest and nothing else.

A key reads `rl_<id>_<secret>`. The secret is 32 random bytes, so a plain SHA-256 is enough to keep it
(there is nothing to guess; slow hashes are for passwords), and each request costs microseconds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError

LOG: Final = logging.getLogger(__name__)
Scope = Literal["recommend", "events", "explain", "metrics", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("recommend", "events", "explain", "metrics", "admin")
_NOBODY: Final = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True)
class Key:
    """A key as it is kept.

    Attributes:
        digest: SHA-256 of the secret, hexadecimal.
        scopes: what it may do; `admin` may do everything.
        requests_per_second: its own limit; None takes the one of the settings.
        created_at, revoked_at: ISO 8601; a revoked key stays listed.
    """

    key_id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    created_at: str
    requests_per_second: float | None = None
    revoked_at: str | None = None

    def may(self, scope: str) -> bool:
        """Return whether the key covers a scope."""
        return scope in self.scopes or "admin" in self.scopes


def file(home: Home) -> Path:
    """Return where the keys of a state folder are kept, readable by its owner alone."""
    return home.serving / "keys.json"


def keys(home: Home) -> dict[str, Key]:
    """Return the keys by id, revoked ones too.

    Raises:
        StateError: the file is no list of keys.
    """
    path = file(home)
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
        return {row["key_id"]: Key(**{**row, "scopes": tuple(row["scopes"])}) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(str(path), found=f"{type(error).__name__}", allowed="keys as `reloop key create` writes them") from error


def _write(home: Home, kept: Mapping[str, Key]) -> None:
    text = json.dumps({"keys": [asdict(key) for key in kept.values()]}, indent=1)
    publish.write_text(file(home), text, mode=0o600)


def create(home: Home, name: str, scopes: tuple[str, ...], now: datetime, requests_per_second: float | None = None) -> tuple[Key, str]:
    """Make a key; return it and its text, which is shown once and kept nowhere.

    Raises:
        StateError: a scope is unknown, or none is named.
    """
    if not scopes or not set(scopes) <= set(SCOPES):
        raise StateError("scopes of the key", found=", ".join(scopes) or "none", allowed=" | ".join(SCOPES))
    key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    key = Key(key_id, name, hashlib.sha256(secret.encode()).hexdigest(), scopes, now.isoformat(), requests_per_second)
    with publish.locked(file(home).with_suffix(".lock")):
        _write(home, {**keys(home), key_id: key})
    return key, f"rl_{key_id}_{secret}"


def revoke(home: Home, key_id: str, now: datetime) -> Key:
    """End a key; services that run refuse it within a second.

    Raises:
        StateError: there is no such key.
    """
    with publish.locked(file(home).with_suffix(".lock")):
        kept = keys(home)
        if key_id not in kept:
            raise StateError(f"key {key_id}", found="no such key", allowed=", ".join(kept) or "none exists", hint="`reloop key list`")
        if kept[key_id].revoked_at is None:
            kept[key_id] = Key(**{**asdict(kept[key_id]), "revoked_at": now.isoformat()})
            _write(home, kept)
    return kept[key_id]


class Keyring:
    """The keys as a running service knows them; follows the file, looking at it at most twice a second."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._kept: dict[str, Key] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = float("-inf")

    def whose(self, text: str, now: float) -> Key | None:
        """Return the key that a text is, or None; takes as long for an unknown id as for a wrong secret.

        Args:
            now: monotonic seconds.
        """
        if now - self._looked >= 0.5:
            self._look(now)
        mark, _, rest = text.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self._kept.get(key_id) if mark == "rl" else None
        right = hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), key.digest if key else _NOBODY)
        return key if key is not None and right and key.revoked_at is None else None

    def _look(self, now: float) -> None:
        self._looked = now
        path = file(self._home)
        stamp = None
        if path.is_file():
            state = path.stat()
            stamp = (state.st_mtime_ns, state.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._kept = keys(self._home)
            except StateError as error:  # a key that was revoked may not come back by damage
                LOG.error("no key is taken until this is mended: %s", error)  # noqa: TRY400 - the message says it all
                self._kept = {}
