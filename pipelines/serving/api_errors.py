"""What a refused request is told: always the same six fields, whatever refused it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from pipelines.errors import ReloopError, StateError
from pipelines.serving.limits import Overloaded
from pipelines.serving.logs import REQUEST

MOST: Final = 120  # characters of what was found that are told back
_BOUNDS: Final = ("ge", "le", "gt", "lt", "min_length", "max_length", "pattern", "expected")


@dataclass(eq=False)  # Python writes its trace into an exception, so it is not frozen
class Refusal(Exception):
    """Why a request gets no answer.

    Attributes:
        code: HTTP status.
        error: a word to switch on.
        field: the parameter or the path into the body, None where it is the request itself.
        headers: to send with it.
    """

    code: int
    error: str
    found: str
    allowed: str
    hint: str
    field: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> Response:
        """Return it as HTTP."""
        body = {
            "error": self.error,
            "found": self.found,
            "allowed": self.allowed,
            "hint": self.hint,
            "field": self.field,
            "request_id": REQUEST.get(),
        }
        return Response(to_json(body), self.code, headers=dict(self.headers), media_type="application/json")


def busy(seconds: float, error: str, found: str) -> Refusal:
    """Return the refusal of who asks too much: 429 for a rate, 503 for a queue."""
    wait = str(max(1, round(seconds + 0.5)))
    code = 429 if error == "rate" else 503
    return Refusal(code, error, found, f"again in {wait} s", "spread requests out, or run more workers", headers=(("Retry-After", wait),))


def overloaded(seconds: float) -> Refusal:
    """Return the refusal of whoever comes while more is asked than can be answered in time."""
    return busy(seconds, "overloaded", "more requests than can be answered in time")


def install(api: FastAPI) -> None:
    """Make an application tell every error this way."""

    @api.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        return error.response()

    @api.exception_handler(Overloaded)
    async def full(_: Request, error: Overloaded) -> Response:
        return overloaded(error.seconds).response()

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return invalid_of(error.errors()[0], len(error.errors())).response()

    @api.exception_handler(StateError)
    async def unavailable(_: Request, error: StateError) -> Response:
        return Refusal(503, "unavailable", error.found, error.allowed, error.hint, error.thing, (("Retry-After", "1"),)).response()

    @api.exception_handler(ReloopError)
    async def wrong(_: Request, error: ReloopError) -> Response:
        return Refusal(422, "invalid", error.found, error.allowed, error.hint, error.thing).response()

    @api.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        words = {404: "no such route", 405: "method not allowed here"}
        found = f"{request.method} {request.url.path[:MOST]}"
        return Refusal(
            error.status_code,
            words.get(error.status_code, str(error.detail)).replace(" ", "_"),
            found,
            "a route of /openapi.json",
            "see /openapi.json",
            headers=tuple((error.headers or {}).items()),
        ).response()

    @api.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Response:
        return Refusal(500, "defect", "an error of the service", "none", "the log holds it under this request_id").response()


def invalid_of(wrong: Mapping[str, Any], count: int) -> Refusal:
    """Return the refusal of a value that breaks its bound."""
    bounds = ", ".join(f"{name} {wrong['ctx'][name]}" for name in _BOUNDS if name in wrong.get("ctx", {}))
    more = f" ({count} fields are wrong, this is the first)" if count > 1 else ""
    found = repr(wrong.get("input"))
    return Refusal(
        422,
        "invalid",
        found[:MOST] + ("…" if len(found) > MOST else ""),
        bounds or str(wrong["msg"]),
        f"{wrong['msg']}{more}; every bound is in /openapi.json",
        ".".join(map(str, wrong["loc"])),
    )
