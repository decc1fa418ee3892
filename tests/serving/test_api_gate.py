"""Who may pass: keys with scopes, rates, sizes, names of the host; and what is written of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from pipelines.config import Home
from pipelines.serving import assembly, auth
from pipelines.serving.api_gate import Gate, needs
from pipelines.serving.auth import Keyring
from pipelines.serving.clock import wall
from pipelines.serving.limits import Buckets
from pipelines.serving.logs import Lines
from pipelines.serving.metrics import page

HOME = "/v1/users/u00000001/recommendations"
EVENTS = {"events": [{"user_id": "u00000001", "item_id": "i00000004", "event_type": "view"}]}


class Ticks:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def gate(open_house: tuple[Home, Any]) -> Gate:
    home, made = open_house
    return assembly.gated(made, home)


@pytest.fixture
def locked(gate: Gate, open_house: tuple[Home, Any]) -> Iterator[tuple[TestClient, dict[str, str]]]:
    """Yield a service that asks for keys, and a key for each scope."""
    home, _ = open_house
    texts = {scope: auth.create(home, f"for {scope}", (scope,), wall())[1] for scope in auth.SCOPES}
    yield TestClient(replace(gate, keyring=Keyring(home))), texts
    auth.file(home).unlink()


def asked(client: TestClient, method: str, path: str, key: str = "", body: Any = None) -> Any:
    return client.request(method, path, json=body, headers={"x-api-key": key} if key else {})


ALLOWED = [
    ("GET", HOME, None, {"recommend", "admin"}),
    ("POST", "/v1/events", EVENTS, {"events", "admin"}),
    ("POST", "/v1/users/u1/preferences", {}, {"events", "admin"}),
    ("GET", "/v1/requests/x/explanation", None, {"explain", "admin"}),
    ("GET", "/metrics", None, {"metrics", "admin"}),
    ("GET", "/v1/users", None, {"admin"}),
    ("GET", "/healthz", None, set(auth.SCOPES) | {""}),
    ("GET", "/readyz", None, set(auth.SCOPES) | {""}),
    ("GET", "/", None, set(auth.SCOPES) | {""}),
]


@pytest.mark.parametrize(("method", "path", "body", "allowed"), ALLOWED)
def test_a_key_opens_what_its_scopes_cover_and_nothing_else(
    locked: tuple[TestClient, dict[str, str]], method: str, path: str, body: Any, allowed: set[str]
) -> None:
    client, texts = locked
    opened = {scope for scope, text in [("", ""), *texts.items()] if asked(client, method, path, text, body).status_code < 300}
    assert opened == allowed
    refusals = [asked(client, method, path, text, body) for scope, text in texts.items() if scope not in allowed]
    assert {answer.status_code for answer in refusals} <= {403}


@pytest.mark.parametrize("tail", ["%0A", "%0D", "%00", "%7F", "%0A/recommendations"])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/users"), ("GET", "/metrics"), ("POST", "/v1/events"), ("POST", "/v1/users/u1/preferences")]
)
def test_a_control_character_in_the_path_opens_nothing(
    locked: tuple[TestClient, dict[str, str]], method: str, path: str, tail: str
) -> None:
    client, texts = locked
    assert {asked(client, method, path + tail, text, EVENTS).status_code for text in texts.values()} == {422}


@pytest.mark.parametrize(
    "path", ["/v1/users\n", "/v1/users/u1/preferences\n", "/v1/users/u1/\nrecommendations", "/v1/users/", "/v1/thought-of-later"]
)
def test_a_path_that_is_not_plainly_one_of_the_lists_needs_all_scopes(path: str) -> None:
    assert needs("GET", path) == "admin"
    assert needs("POST", path) == "admin"


@pytest.mark.parametrize("key", ["", "rl_x_y", "rl__", "Bearer", "rl_" + "0" * 8 + "_" + "a" * 43, "é"])
def test_who_has_no_key_writes_nothing(locked: tuple[TestClient, dict[str, str]], key: str) -> None:
    client, _ = locked
    answer = client.post("/v1/events", json=EVENTS, headers={"x-api-key": key.encode()} if key else {})
    assert (answer.status_code, answer.json()["error"], answer.headers["www-authenticate"]) == (401, "no_key", 'Bearer realm="reloop"')


def test_a_key_may_come_as_a_bearer_and_ends_when_it_is_revoked(gate: Gate, open_house: tuple[Home, Any]) -> None:
    home, _ = open_house
    ticks = Ticks()
    key, text = auth.create(home, "shop", ("recommend",), wall())
    client = TestClient(replace(gate, keyring=Keyring(home), ticks=ticks))
    assert client.get(HOME, headers={"authorization": f"Bearer {text}"}).status_code == 200
    auth.revoke(home, key.key_id, wall())
    ticks.now += 1.0
    assert asked(client, "GET", HOME, text).status_code == 401
    auth.file(home).unlink()


def test_no_secret_and_no_user_is_in_logs_errors_or_metrics(
    locked: tuple[TestClient, dict[str, str]], open_house: tuple[Home, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, texts = locked
    with caplog.at_level(logging.INFO):
        bodies = [asked(client, "GET", HOME, text).text for text in texts.values()]
        wrong = asked(client, "GET", HOME, texts["admin"] + "x").text
    lines = [Lines().format(record) for record in caplog.records if record.name == "reloop.access"]
    assert len(lines) == len(texts) + 1
    assert all(json.loads(line)["route"] == "/v1/users/{user_id}/recommendations" or json.loads(line)["code"] >= 400 for line in lines)
    everything = "\n".join([*lines, *bodies, wrong, page(open_house[1].metrics).decode()])
    assert "u00000001" not in "\n".join(lines)
    assert not [text for text in texts.values() if text in everything or text.split("_", 2)[2] in everything]


def test_a_client_that_asks_too_often_waits_and_others_do_not(gate: Gate) -> None:
    ticks = Ticks()
    slow = replace(gate, limits=gate.limits.model_copy(update={"requests_per_second": 5.0}), buckets=Buckets(), ticks=ticks)
    mine, other = TestClient(slow, client=("10.0.0.1", 1)), TestClient(slow, client=("10.0.0.2", 1))
    codes = [mine.get("/v1/trending").status_code for _ in range(7)]
    assert codes == [200] * 5 + [429] * 2
    assert mine.get("/v1/trending").headers["retry-after"] == "1"
    assert other.get("/v1/trending").status_code == 200
    assert [mine.get(path).status_code for path in ("/healthz", "/metrics")] == [200, 200]
    ticks.now += 0.2
    assert [mine.get("/v1/trending").status_code for _ in range(2)] == [200, 429]


def test_guessing_keys_is_limited_too_and_a_key_may_have_its_own_rate(gate: Gate, open_house: tuple[Home, Any]) -> None:
    home, _ = open_house
    _, text = auth.create(home, "slow", ("recommend",), wall(), 2.0)
    limits = gate.limits.model_copy(update={"requests_per_second": 4.0})
    client = TestClient(replace(gate, keyring=Keyring(home), limits=limits, buckets=Buckets(), ticks=Ticks()))
    assert [asked(client, "GET", "/v1/trending", "rl_a_b").status_code for _ in range(5)] == [401] * 4 + [429]
    assert [asked(client, "GET", "/v1/trending", text).status_code for _ in range(3)] == [200, 200, 429]
    auth.file(home).unlink()


@pytest.mark.parametrize(
    ("host", "code"), [("localhost:8000", 200), ("[::1]:8000", 200), ("LOCALHOST", 200), ("evil.example", 400), ("", 400)]
)
def test_only_its_own_names_are_answered(gate: Gate, host: str, code: int) -> None:
    client = TestClient(replace(gate, hosts=frozenset({"localhost", "[::1]"})))
    assert client.get("/v1/trending", headers={"host": host}).status_code == code


def test_a_body_that_says_it_is_too_long_is_not_read(gate: Gate) -> None:
    client = TestClient(gate)
    answer = client.post("/v1/events", content=b"x", headers={"content-length": "104857600", "content-type": "application/json"})
    assert (answer.status_code, answer.json()["field"], answer.headers["connection"]) == (413, "body", "close")


def test_a_body_that_does_not_say_is_read_up_to_its_bound(gate: Gate) -> None:
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        for _ in range(1000):
            given += 1
            yield b" " * 4096

    answer = TestClient(gate).post("/v1/events", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_pages_of_other_sites_get_nothing_out_of_it(gate: Gate) -> None:
    client = TestClient(gate)
    api, shop = client.get("/v1/trending"), client.get("/")
    assert api.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "script-src 'self'" in shop.headers["content-security-policy"]
    assert "unsafe" not in shop.headers["content-security-policy"]
    for answer in (api, shop):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_every_request_is_counted_and_logged_once(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    client = TestClient(gate)
    before = _count(gate, 'route="/v1/trending"')
    with caplog.at_level(logging.INFO):
        client.get("/v1/trending", headers={"x-request-id": "mine"})
        client.get("/v1/trending?k=0")
        client.get("/healthz")
    lines = [json.loads(Lines().format(record)) for record in caplog.records if record.name == "reloop.access"]
    assert [(line["code"], line.get("rung") is not None) for line in lines] == [(200, True), (422, False)]
    assert {"full", "all"} <= set(lines[0]["stage_ms"])
    assert (lines[0]["client_request_id"], lines[0]["request_id"] != "mine") == ("mine", True)
    assert "client_request_id" not in lines[1]
    assert _count(gate, 'route="/v1/trending"') == before + 2
    assert "reloop_inflight 0.0" in page(gate.metrics).decode()


def _count(gate: Gate, label: str) -> float:
    lines = [line for line in page(gate.metrics).decode().splitlines() if line.startswith("reloop_requests_total") and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
