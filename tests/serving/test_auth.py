"""Keys at rest, and what is known of them."""

from __future__ import annotations

import hashlib
import json

import pytest

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import auth, server
from pipelines.serving.auth import Keyring
from pipelines.window import utc

NOW = utc("2025-03-01")


def test_a_key_is_kept_as_a_digest_that_only_its_owner_reads(home: Home) -> None:
    key, text = auth.create(home, "shop", ("recommend", "events"), NOW)
    kept = auth.file(home).read_text()
    assert text not in kept
    assert text.rpartition("_")[2] not in kept
    assert hashlib.sha256(text.split("_", 2)[2].encode()).hexdigest() == key.digest
    assert auth.file(home).stat().st_mode & 0o777 == 0o600


def test_the_keyring_knows_keys_made_and_ended_while_it_runs(home: Home) -> None:
    ring = Keyring(home)
    assert ring.whose("rl_a_b", 0.0) is None
    key, text = auth.create(home, "shop", ("recommend",), NOW)
    assert ring.whose(text, 0.4) is None  # looked a moment ago
    assert ring.whose(text, 1.0) == key
    assert ring.whose(text[:-1] + ("a" if text[-1] != "a" else "b"), 1.0) is None
    auth.revoke(home, key.key_id, NOW)
    assert ring.whose(text, 2.0) is None
    assert auth.keys(home)[key.key_id].revoked_at == NOW.isoformat()


def test_a_damaged_file_lets_nobody_in(home: Home) -> None:
    _, text = auth.create(home, "shop", ("recommend",), NOW)
    ring = Keyring(home)
    assert ring.whose(text, 0.0) is not None
    auth.file(home).write_text("{")
    assert ring.whose(text, 1.0) is None
    with pytest.raises(StateError, match=r"keys\.json"):
        auth.keys(home)


@pytest.mark.parametrize("scopes", [(), ("everything",), ("recommend", "root")])
def test_a_scope_must_be_one(home: Home, scopes: tuple[str, ...]) -> None:
    with pytest.raises(StateError, match="scopes of the key"):
        auth.create(home, "shop", scopes, NOW)


def test_only_a_key_that_exists_is_ended(home: Home) -> None:
    with pytest.raises(StateError, match="no such key"):
        auth.revoke(home, "nobody", NOW)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "shop.example"])
def test_beyond_loopback_nothing_starts_without_a_key(home: Home, host: str) -> None:
    with pytest.raises(StateError, match="no API key"):
        server.orders(home, host)
    with pytest.raises(StateError, match="no keys asked for"):
        server.orders(home, host, auth=False)
    key, _ = auth.create(home, "shop", ("recommend",), NOW)
    assert server.orders(home, host).auth
    auth.revoke(home, key.key_id, NOW)
    with pytest.raises(StateError, match="no API key"):
        server.orders(home, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.0.1"])
def test_on_loopback_keys_are_asked_for_only_if_wanted(home: Home, host: str) -> None:
    given = server.orders(home, host)
    assert (given.auth, given.hosts) == (False, server.LOCAL_NAMES)
    with pytest.raises(StateError, match="no API key"):
        server.orders(home, host, auth=True)


def test_the_file_of_keys_can_be_read_by_a_person(home: Home) -> None:
    auth.create(home, "shop", ("recommend",), NOW, 5.0)
    (row,) = json.loads(auth.file(home).read_text())["keys"]
    assert (row["name"], row["scopes"], row["requests_per_second"], row["revoked_at"]) == ("shop", ["recommend"], 5.0, None)
