"""The OpenAPI page: an example for every route and every answer, the bounds, the keys."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from pipelines.serving import schemas as s
from pipelines.serving.api_gate import needs

_MODEL: Final = s.ANSWER_EXAMPLE["model"]
_ID: Final = s.ANSWER_EXAMPLE["request_id"]


def _error(code: str, text: str, **other: Any) -> dict[str, Any]:
    example = {**s.ERROR_EXAMPLE, **other}
    return {code: {"model": s.ErrorOut, "description": text, "content": {"application/json": {"example": example}}}}


_REFUSED: Final[dict[str, Any]] = {
    **_error("400", "The host is not one of this service's.", error="host", field="header.host", found="evil.example", allowed="a name this service answers to", hint="`reloop serve --allowed-host NAME`"),
    **_error("401", "No key, or one that is not valid.", error="no_key", field="header.x-api-key", found="no key", allowed="a key in X-API-Key", hint="`reloop key create`"),
    **_error("403", "The key does not cover this.", error="scope", field="header.x-api-key", found="a key for events", allowed="the scope recommend", hint="`reloop key create`"),
    **_error("422", "A value breaks its bound; `field` names it."),
    **_error("429", "Too many requests of this client; Retry-After says when again.", error="rate", field=None, found="more than 200 requests a second", allowed="again in 1 s", hint="spread requests out, or run more workers"),
    **_error("431", "URL and headers are too long.", error="too_long", field="header", found="more than 16384 bytes", allowed="at most 16384 bytes of URL and headers", hint="ask with a body"),
    **_error("503", "More requests than can be answered in time; Retry-After says when again.", error="overloaded", field=None, found="more requests than can be answered in time", allowed="again in 1 s", hint="spread requests out, or run more workers"),
}  # fmt: skip
_BODY: Final[dict[str, Any]] = {
    **_error("408", "The body came too slowly.", error="slow", field="body", found="12 bytes in 5 s", allowed="a whole body in that time", hint="send it again"),
    **_error("413", "The body is too long.", error="too_long", field="body", found="more than 65536 bytes", allowed="at most 65536 bytes", hint="send several requests"),
}  # fmt: skip


def _answers(model: type, text: str, example: Any, code: str = "200", **more: Any) -> dict[str, Any]:
    good = {code: {"model": model, "description": text, "content": {"application/json": {"example": example}}}}
    return {"response_model": None, "responses": {**good, **_REFUSED, **more}}


ANSWERS: Final = _answers(
    s.AnswerOut, "A list, always: what is not known or not there is told in `rung` and `degraded`.", s.ANSWER_EXAMPLE, **_BODY
)
TAKEN: Final = _answers(
    s.TakenOut, "The events are kept.", {"request_id": _ID, "accepted": 1, "event_ids": ["e-1"], "refused": []}, "202", **_BODY
)
EXPLAINED: Final = _answers(
    s.ExplanationOut,
    "What is still known of the answer.",
    {
        "request_id": _ID,
        "found": True,
        "answer": s.ANSWER_EXAMPLE,
        "parts": {"ranker/model.txt": "1f0e"},
        "items": [{"item_id": "i00007", "propensity": 1.0, "features": {"price": 129.0}}],
    },
)
USERS: Final = _answers(s.UsersOut, "Users that are known.", {"user_ids": ["u00042", "u00043"]})
LIVES: Final = _answers(s.AliveOut, "The process lives.", {"alive": True})
READY: Final = _answers(s.ReadyOut, "Requests may be sent here.", {"ready": True, "reasons": [], "model": _MODEL})
READY["responses"]["503"] = {
    "model": s.ReadyOut,
    "description": "Requests should go elsewhere.",
    "content": {
        "application/json": {"example": {"ready": False, "reasons": ["no release yet"], "model": {"version": None, "bundle": None}}}
    },
}
TEXT: Final[dict[str, Any]] = {
    "response_model": None,
    "responses": {
        "200": {
            "description": "Prometheus' text format.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": 'reloop_requests_total{route="/v1/trending",code="200"} 1.0\n'}
            },
        },
        **{code: _REFUSED[code] for code in ("400", "401", "403", "503")},
    },
}
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/v1/baskets/recommendations": {"item_ids": ["i00007", "i00003"], "k": 5},
    "/v1/sessions/recommendations": {"events": [{"item_id": "i00007", "event_type": "view"}], "k": 5},
    "/v1/events": {"events": [s.EVENT_EXAMPLE]},
    "/v1/users/{user_id}/preferences": {"item_ids": ["i00007"], "categories": ["furniture"], "k": 5},
}
PARAMETERS: Final[dict[str, Any]] = {
    "user_id": "u00042",
    "item_id": "i00007",
    "request_id": _ID,
    "k": 10,
    "change": ["cheaper"],
    "starts": "u0",
}


def describe(api: FastAPI, *, keys: bool) -> None:
    """Give an application its OpenAPI page."""
    make = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            page = make()
            if keys:
                page["components"]["securitySchemes"] = {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
            page["info"]["description"] = (
                "Lists for users and items, and how they came about. Every answer says on which rung of the ladder it stands."
            )
            for route in api.routes:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    for method in route.methods:
                        _describe(route, method, page["paths"][route.path_format][method.lower()], keys=keys)
        return api.openapi_schema or page

    api.openapi = openapi  # type: ignore[method-assign]


def _describe(route: APIRoute, method: str, said: dict[str, Any], *, keys: bool) -> None:
    scope = needs(method, route.path_format)
    if keys and scope is not None:
        said["security"] = [{"key": []}]
        said["description"] = f"{said.get('description', '')}\n\nScope: `{scope}`."
    for parameter in said.get("parameters", ()):
        if parameter["name"] in PARAMETERS:
            parameter["example"] = PARAMETERS[parameter["name"]]
    if "requestBody" in said:
        said["requestBody"]["content"]["application/json"]["example"] = BODIES[route.path_format]
    for code, answer in route.responses.items():  # FastAPI leaves nulls out of examples, and adds JSON to what is text
        made = said["responses"][str(code)]["content"]
        said["responses"][str(code)]["content"] = {
            kind: {**made[kind], "example": own["example"]} for kind, own in answer["content"].items()
        }
