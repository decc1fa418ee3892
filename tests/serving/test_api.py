"""Over HTTP every surface answers, whatever is asked of it, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from pipelines.config import Home
from pipelines.serving import api, api_docs, assembly, schemas
from pipelines.serving.api_gate import OPEN, needs
from pipelines.serving.auth import SCOPES
from pipelines.serving.limits import Overloaded
from pipelines.serving.request import RUNGS
from pipelines.serving.service import Service

USER, ITEM = "u00000001", "i00000004"
LISTS = {
    "home": f"/v1/users/{USER}/recommendations",
    "because_you_viewed": f"/v1/users/{USER}/because-you-viewed",
    "similar": f"/v1/items/{ITEM}/similar",
    "bought_together": f"/v1/items/{ITEM}/bought-together",
    "like": f"/v1/items/{ITEM}/like?change=cheaper",
    "trending": "/v1/trending",
}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "basket": ("/v1/baskets/recommendations", {"item_ids": [ITEM], "k": 3}),
    "session": ("/v1/sessions/recommendations", {"events": [{"item_id": ITEM, "event_type": "view"}], "k": 3}),
    "home": (f"/v1/users/{USER}/preferences", {"item_ids": [ITEM], "k": 3}),
}
EVENT = {"user_id": USER, "item_id": ITEM, "event_type": "view"}


@pytest.fixture(scope="module")
def client(open_house: tuple[Home, Any]) -> TestClient:
    home, made = open_house
    return TestClient(assembly.gated(made, home))


def with_k(path: str, k: object) -> str:
    return f"{path}{'&' if '?' in path else '?'}k={k}"


@pytest.mark.parametrize("surface", LISTS)
def test_a_surface_answers_with_what_its_schema_says(client: TestClient, surface: str) -> None:
    answer = client.get(with_k(LISTS[surface], 4))
    assert answer.status_code == 200
    said = schemas.AnswerOut.model_validate_json(answer.content)
    assert said.surface == surface
    assert said.model.version == 1
    assert [item.rank for item in said.items] == list(range(1, len(said.items) + 1))
    assert 0 < len(said.items) <= 4
    assert all(item.reason.text and item.title for item in said.items)
    assert answer.headers["x-request-id"] == said.request_id


@pytest.mark.parametrize("surface", BODIES)
def test_a_surface_with_a_body_answers_with_what_its_schema_says(client: TestClient, surface: str) -> None:
    path, body = BODIES[surface]
    answer = client.post(path, json=body)
    assert answer.status_code == 200
    said = schemas.AnswerOut.model_validate_json(answer.content)
    assert (said.surface, len(said.items)) == (surface, 3)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/users/nobody/recommendations",
        "/v1/users/a%2Fb%2Fc/recommendations",
        "/v1/users/%F0%9F%98%80/because-you-viewed",
        "/v1/users/.../recommendations?categories=none-such",
        "/v1/items/none/similar",
        "/v1/items/none/bought-together?user_id=nobody",
        "/v1/items/none/like?change=other_brand&change=cheaper",
        "/v1/trending?min_price=1e11",
        f"/v1/users/{'x' * 256}/recommendations?country=XX&device=fridge",
    ],
)
def test_who_and_what_is_unknown_gets_a_list_and_a_label(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.json()["rung"] in RUNGS


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (with_k(LISTS["home"], k), "query.k") for k in (-1, 0, 201, 10**9, "NaN", "ten", "1e3", "", "1.5", "9" * 5000)
    ]
    + [
        ("/v1/trending?colour=red", "query.colour"),
        ("/v1/trending?min_price=NaN", "query.min_price"),
        ("/v1/trending?max_price=-1", "query.max_price"),
        ("/v1/trending?max_price=inf", "query.max_price"),
        ("/v1/trending?country=Germany", "query.country"),
        ("/v1/trending?available_only=perhaps", "query.available_only"),
        ("/v1/trending?" + "&".join("brands=x" for _ in range(51)), "query.brands"),
        ("/v1/trending?" + "&".join(f"exclude={n}" for n in range(501)), "query.exclude"),
        ("/v1/trending?device=%00", "query.device"),
        (f"/v1/items/{ITEM}/like", "query.change"),
        (f"/v1/items/{ITEM}/like?change=better", "query.change.0"),
        (f"/v1/users/{'x' * 257}/recommendations", "path.user_id"),
        ("/v1/users/a%00b/recommendations", "path"),
        ("/v1/items/%0A/similar", "path"),
        ("/v1/trending%0A", "path"),
        ("/v1/users?limit=51", "query.limit"),
    ],
)  # fmt: skip
def test_what_breaks_a_bound_is_refused_by_name(client: TestClient, path: str, field: str) -> None:
    answer = client.get(path)
    said = schemas.ErrorOut.model_validate_json(answer.content)
    assert (answer.status_code, said.error, said.field) == (422, "invalid", field)
    assert said.allowed
    assert len(said.found) <= api.api_errors.MOST + 1
    assert said.request_id == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/baskets/recommendations", {"item_ids": []}, "body.item_ids"),
        ("/v1/baskets/recommendations", {"item_ids": ["a"] * 501}, "body.item_ids"),
        ("/v1/baskets/recommendations", {"item_ids": [7]}, "body.item_ids.0"),
        ("/v1/baskets/recommendations", {"item_ids": ["a"], "k": "3"}, "body.k"),
        ("/v1/baskets/recommendations", {"item_ids": ["a"], "k": True}, "body.k"),
        ("/v1/baskets/recommendations", {"item_ids": ["a"], "filters": {"min_price": "NaN"}}, "body.filters.min_price"),
        ("/v1/baskets/recommendations", {"item_ids": ["a"], "filters": {"price": 1}}, "body.filters.price"),
        ("/v1/sessions/recommendations", {"events": [{"item_id": "a", "event_type": "steal"}]}, "body.events.0.event_type"),
        ("/v1/sessions/recommendations", {"events": [{"item_id": "a", "event_type": "view", "event_at": 1}]}, "body.events.0.event_at"),
        ("/v1/sessions/recommendations", {"events": [{"item_id": "a", "event_type": "view", "event_at": "now"}]}, "body.events.0.event_at"),
        ("/v1/sessions/recommendations", {"events": [{"item_id": "a", "event_type": "view", "event_at": "2025-03-01T12:00:00"}]}, "body.events.0.event_at"),
        ("/v1/events", {"events": []}, "body.events"),
        ("/v1/events", {"events": [EVENT] * 501}, "body.events"),
        ("/v1/events", {"events": [{**EVENT, "user_id": ""}]}, "body.events.0.user_id"),
        ("/v1/events", {"events": [{**EVENT, "value": -1}]}, "body.events.0.value"),
        ("/v1/events", {"events": [EVENT], "dry_run": True}, "body.dry_run"),
        ("/v1/events", [], "body"),
        ("/v1/events", None, "body"),
    ],
)  # fmt: skip
def test_a_body_that_breaks_a_bound_is_refused_by_name(client: TestClient, path: str, body: Any, field: str) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 50_000 + b"]" * 10_000,
        b'{"events":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001,
        b'{"events":[{"user_id":"\\ud800","item_id":"a","event_type":"view"}]}',
        b'{"events":[{"user_id":"\xff","item_id":"a","event_type":"view"}]}',
        b'{"events":[{"user_id":"u","item_id":"a","event_type":"rating","value":NaN}]}',
        b'{"events":[{"user_id":"u","item_id":"a","event_type":"rating","value":1e999}]}',
        b'{"events":[{"user_id":"u","item_id":"a","event_type":"rating","quantity":' + b"9" * 10_000 + b"}]}",
        b'{"events":[{"user_id":"u","user_id":7,"item_id":"a","event_type":"view"}]}',
    ],
    ids=["nothing", "torn", "deep", "deep objects", "half a character", "no UTF-8", "NaN", "infinite", "long number", "a key twice"],
)
def test_hostile_bodies_are_refused_and_never_break_anything(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/events", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert schemas.ErrorOut.model_validate_json(answer.content).field.startswith("body")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "application/json; charset=utf-7"]
)
def test_only_json_is_read(client: TestClient, kind: str) -> None:
    answer = client.post("/v1/events", content=b'+AHs-"events"', headers={"content-type": kind})
    assert answer.status_code == 422


def test_events_are_kept_and_told_one_by_one(client: TestClient) -> None:
    late = {**EVENT, "event_at": "2099-01-01T00:00:00Z", "event_id": "late"}
    answer = client.post("/v1/events", json={"events": [{**EVENT, "event_id": "mine"}, late, EVENT]})
    said = schemas.TakenOut.model_validate_json(answer.content)
    assert (answer.status_code, said.accepted, said.event_ids[:2]) == (202, 2, ["mine", "late"])
    assert [(refused.place, bool(refused.reasons)) for refused in said.refused] == [(1, True)]


def test_an_event_is_in_the_next_answer(client: TestClient) -> None:
    user = "somebody-new"
    before = client.get(f"/v1/users/{user}/recommendations").json()
    client.post("/v1/events", json={"events": [{"user_id": user, "item_id": ITEM, "event_type": "add_to_cart"}]})
    after = client.get(f"/v1/users/{user}/recommendations").json()
    assert [item["item_id"] for item in after["items"]] != [item["item_id"] for item in before["items"]]
    assert any(item["reason"]["item_id"] == ITEM for item in after["items"])


@pytest.mark.parametrize("said", [{}, {"event_at": "2099-01-01T00:00:00Z"}], ids=["no time", "a time to come"])
def test_every_event_of_a_session_counts_though_none_has_a_name_or_a_time(client: TestClient, said: dict[str, str]) -> None:
    items = ["i00000004", "i00000009", "i00000011"]
    body = {"events": [{"item_id": item, "event_type": "view", **said} for item in items], "k": 50}
    answer = client.post("/v1/sessions/recommendations", json=body).json()
    asked = client.get(f"/v1/requests/{answer['request_id']}/explanation").json()["asked"]
    assert [event[2] for event in asked["events"]] == items, "the first is the newest"
    assert len({event[1] for event in asked["events"]}) == 3
    assert {item["reason"]["item_id"] for item in answer["items"]} >= set(items[:2])
    nothing = client.post("/v1/sessions/recommendations", json={"events": [], "k": 50}).json()
    assert [item["item_id"] for item in answer["items"]] != [item["item_id"] for item in nothing["items"]]


def test_an_answer_can_be_explained_until_it_is_forgotten(client: TestClient) -> None:
    answer = client.get(with_k(LISTS["home"], 3)).json()
    told = client.get(f"/v1/requests/{answer['request_id']}/explanation").json()
    assert schemas.ExplanationOut.model_validate(told).found
    assert [item["item_id"] for item in told["items"]] == [item["item_id"] for item in answer["items"]]
    assert {"ranker", "items"} <= {part.partition("/")[0] for part in told["parts"]} | {"ranker"}
    assert client.get("/v1/requests/none-such/explanation").json()["found"] is False


def test_a_request_is_named_here_and_its_clients_name_comes_back_beside_it(client: TestClient) -> None:
    answers = [client.get("/v1/trending", headers={"x-request-id": "unknown"}) for _ in range(3)]
    assert {answer.headers["x-client-request-id"] for answer in answers} == {"unknown"}
    names = [answer.json()["request_id"] for answer in answers]
    assert len({*names, "unknown"}) == 4
    assert [answer.headers["x-request-id"] for answer in answers] == names
    for odd in ("a b", "x" * 65, "<script>"):
        answer = client.get("/v1/trending", headers={"x-request-id": odd})
        assert odd not in {answer.json()["request_id"], answer.headers.get("x-client-request-id")}


def test_who_is_unknown_is_said_to_be(client: TestClient) -> None:
    said = {user: client.get(f"/v1/users/{user}/recommendations").json()["known"] for user in (USER, "never-met")}
    assert said == {USER: True, "never-met": False}
    client.post("/v1/events", json={"events": [{**EVENT, "user_id": "never-met"}]})
    assert client.get("/v1/users/never-met/recommendations").json()["known"] is True
    assert client.get("/v1/trending").json()["known"] is None


@pytest.mark.parametrize("item", [ITEM, "i00000009", "i00000011"])
def test_what_nothing_can_be_is_answered_by_nothing_and_says_why(client: TestClient, item: str) -> None:
    answer = client.get(f"/v1/items/{item}/like?change=cheaper&change=dearer").json()
    assert (answer["rung"], answer["items"]) == ("empty", [])
    assert any("nothing that may be shown is cheaper and finer" in line for line in answer["degraded"])


def test_what_serves_can_be_asked(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"alive": True}
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["model"]["version"]) == (200, True, 1)
    assert client.get("/v1/users?starts=u0000000&limit=3").json() == {"user_ids": ["u00000000", "u00000001", "u00000002"]}


def test_overload_is_told_at_once_and_a_broken_release_never(open_house: tuple[Home, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    home, made = open_house
    client = TestClient(assembly.gated(made, home), raise_server_exceptions=False)

    async def full(_: object) -> None:
        raise Overloaded(2.4)

    for name, instead in (("through", full), ("wait", lambda: 2.4)):
        with monkeypatch.context() as patch:
            patch.setattr(made.turnstile, name, instead)
            answer = client.get("/v1/trending")
            assert (answer.status_code, answer.json()["error"], answer.headers["retry-after"]) == (503, "overloaded", "3")
            assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 200]
    with monkeypatch.context() as patch:
        patch.setattr(made, "service", Service(lambda _: 1 / 0))  # type: ignore[arg-type,return-value]
        answer = client.get("/v1/trending")
        assert (answer.status_code, answer.json()["error"]) == (500, "defect")
        assert "Zero" not in answer.text


def test_every_route_is_described_with_examples_that_keep_its_schema(client: TestClient) -> None:
    page = client.get("/openapi.json").json()
    routes = [(path, method, route) for path, methods in page["paths"].items() for method, route in methods.items()]
    assert len(routes) >= 15
    for path, method, route in routes:
        for code, answer in route["responses"].items():
            ((kind, content),) = answer["content"].items()
            assert "example" in content, (path, code)
            if kind == "application/json":
                model = getattr(schemas, content["schema"]["$ref"].rpartition("/")[2])
                TypeAdapter(model).validate_python(content["example"])
        if "requestBody" in route:
            body = route["requestBody"]["content"]["application/json"]
            TypeAdapter(getattr(schemas, body["schema"]["$ref"].rpartition("/")[2])).validate_python(body["example"])
        if method == "get" and "{" not in path:
            assert client.get(path).status_code == 200, path


def test_what_the_page_shows_as_an_example_can_be_sent(client: TestClient) -> None:
    for path, body in api_docs.BODIES.items():
        assert client.post(path.replace("{user_id}", USER), json=body).status_code in {200, 202}


def test_every_route_has_a_scope_and_an_unknown_one_needs_all(client: TestClient) -> None:
    page = client.get("/openapi.json").json()
    needed = {(path, method): needs(method.upper(), path) for path, methods in page["paths"].items() for method in methods}
    assert set(needed.values()) - {None} == set(SCOPES)
    assert all(path in OPEN for (path, _), scope in needed.items() if scope is None)
    assert needs("GET", "/not/yet/thought/of") == "admin"


def test_what_is_excluded_is_not_shown_and_the_best_rung_still_answers(client: TestClient) -> None:
    path = "/v1/users/u00000007/recommendations?k=8"
    first = [item["item_id"] for item in client.get(path).json()["items"]]
    answer = client.get(path + "".join(f"&exclude={item}" for item in first[:3])).json()
    assert (answer["rung"], answer["degraded"]) == ("full", [])
    assert not set(first[:3]) & {item["item_id"] for item in answer["items"]}


def test_answers_hold_no_number_that_json_lacks(client: TestClient) -> None:
    for path in LISTS.values():
        json.loads(client.get(path).content, parse_constant=pytest.fail)
