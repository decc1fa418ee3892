"""Routes: how a request becomes the arguments of a handler.

    StrictRoute   a body, which is JSON as the standard has it
    QueryRoute    path and query alone, checked by the very models that the schema is made of

FastAPI would look at each parameter of a query at each request (0.2 ms of processor time for the nine of a list, as much as a
remembered list costs in all); here the model reads them at once, in compiled code.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.routing import request_response


class Strict(Request):
    """A request whose body is JSON as the standard has it: no NaN, no half characters, no thousandfold nesting."""

    async def json(self) -> Any:
        """Return the body, parsed."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            wrong = {"type": "json_invalid", "loc": ("body",), "msg": f"is no JSON: {error}", "input": "the body"}
            raise Unparsed(wrong) from error


class Unparsed(Exception):
    """A body that is no JSON."""


class StrictRoute(APIRoute):
    """A route that parses its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return the handler of a strict request."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            try:
                return await handle(Strict(request.scope, request.receive))
            except Exception as error:
                if isinstance(error.__cause__, Unparsed):
                    raise RequestValidationError([error.__cause__.args[0]]) from error
                raise

        return strictly


class QueryRoute(APIRoute):
    """A route whose handler takes the request, ids of the path, and `query`, a model of the whole query; it returns a response."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        self.app = request_response(self.get_route_handler())  # nothing here is to be closed after the response

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        """Return the handler of a request."""
        hints = get_type_hints(self.endpoint, include_extras=True)
        model: type[BaseModel] = get_args(hints["query"])[0]
        ids = {name: TypeAdapter(hints[name]) for name in self.param_convertors}
        many = {name for name, one in model.model_fields.items() if _is_list(one.annotation)}
        answer: Callable[..., Awaitable[Response]] = self.endpoint

        async def handled(request: Request) -> Response:
            values, wrong = dict[str, Any](), list[Any]()
            for name, adapter in ids.items():
                try:
                    values[name] = adapter.validate_python(request.path_params[name])
                except ValidationError as error:
                    wrong += _told(error, ("path", name))
            try:
                values["query"] = model.model_validate(_said(request.scope["query_string"], many))
            except ValidationError as error:
                wrong += _told(error, ("query",))
            if wrong:
                raise RequestValidationError(wrong)
            return await answer(request, **values)

        return handled


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType}:
        return any(map(_is_list, get_args(annotation)))
    return origin is list


def _said(query: bytes, many: set[str]) -> dict[str, Any]:
    """Return the parameters of a query: each value of those that may be repeated, the last one of the others."""
    said: dict[str, Any] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else ():
        if name in many:
            said.setdefault(name, []).append(value)
        else:
            said[name] = value
    return said


def _told(error: ValidationError, where: Sequence[str]) -> Iterable[dict[str, Any]]:
    return ({**wrong, "loc": (*where, *wrong["loc"])} for wrong in error.errors(include_url=False))
