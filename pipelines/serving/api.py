"""HTTP, and nothing else: from a URL and a body to an `Ask`, from an `Answer` to JSON. One route a surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Protocol

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from pydantic_core import to_json
from starlette.convertors import Convertor, register_url_convertor

from pipelines.errors import ReloopError
from pipelines.serving import api_errors
from pipelines.serving import page as window
from pipelines.serving.api_docs import ANSWERS, EXPLAINED, LIVES, READY, TAKEN, TEXT, USERS, describe
from pipelines.serving.api_errors import Refusal
from pipelines.serving.api_route import QueryRoute, StrictRoute
from pipelines.serving.limits import Turnstile
from pipelines.serving.metrics import Metrics, page
from pipelines.serving.preferences import Said
from pipelines.serving.realtime import Verdict
from pipelines.serving.request import Answer, Ask, Clock, Filters, Release, Shown, Surface
from pipelines.serving.schemas import (
    BasketIn,
    EventIn,
    EventsIn,
    FiltersIn,
    Id,
    ItemQuery,
    LikeQuery,
    ListQuery,
    PreferencesIn,
    SessionIn,
    UsersQuery,
)
from pipelines.serving.service import Service
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class AnyId(Convertor[str]):
    """An id in a path: any text, slashes and line ends included, so that whatever it is the schema judges it and no route is missing."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Return it as it is."""
        return value

    def to_string(self, value: str) -> str:
        """Return it as it is."""
        return value


register_url_convertor("id", AnyId())

UserId = Annotated[Id, Path(description="Any id; a user nobody knows gets an answer, too.")]
ItemId = Annotated[Id, Path(description="Any id; for an item nobody knows the answer is what is popular.")]
RequestId = Annotated[Id, Path(description="As an answer told it.")]


class Room(Protocol):
    """What the application is handed: the service and what stands beside it."""

    @property
    def service(self) -> Service: ...  # noqa: D102 - its type says it

    @property
    def clock(self) -> Clock: ...  # noqa: D102

    @property
    def turnstile(self) -> Turnstile: ...  # noqa: D102

    @property
    def writes(self) -> Turnstile: ...  # noqa: D102

    @property
    def aside(self) -> Turnstile: ...  # noqa: D102

    @property
    def metrics(self) -> Metrics: ...  # noqa: D102

    def keep(self, answer: Answer, body: bytes) -> None:
        """Keep an answer, and what was told of it, for who asks how it came about."""

    def take(self, events: Sequence[Mapping[str, Any]], request_id: str = "") -> Sequence[Verdict]:
        """Take events and return the fate of each; all are kept, none where it raises. The same request again brings the same ones.

        Raises:
            StateError: they cannot be kept.
        """

    def prefer(self, user_id: str, said: Said) -> None:
        """Keep what a user chose, for the lists from now on."""

    def ready(self) -> tuple[bool, Sequence[str], Release]:
        """Return whether requests may be sent here, why not or what is degraded, and which release answers."""

    def remembered(self, request_id: str) -> Mapping[str, Any] | None:
        """Return what is known of an answer given not long ago, by whichever process (`remembered.find`)."""

    def users(self, starts: str, limit: int) -> list[str]:
        """Return ids of known users that begin so."""

    def vitals(self) -> None:
        """Bring the metrics that age by themselves up to now."""


@dataclass(frozen=True)
class Desk:
    """Where requests become asks."""

    room: Room

    async def list(self, request: Request, ask: Ask) -> Response:
        """Answer an ask on the thread that answers."""
        answer, body = await self.room.turnstile.through(partial(self._made, ask))
        request.state.answer = answer
        return Response(body, media_type="application/json")

    def _made(self, ask: Ask) -> tuple[Answer, bytes]:
        answer = self.room.service.answer(ask)
        body = to_json(told(answer), inf_nan_mode="null")
        self.room.keep(answer, body)
        return answer, body

    def ask(self, request: Request, surface: Surface, query: ListQuery, **more: Any) -> Ask:
        """Return what a query asks."""
        filters = Filters(
            tuple(query.categories), tuple(query.brands), query.min_price, query.max_price, tuple(query.exclude), query.available_only
        )
        about: dict[str, Any] = {"k": query.k, "filters": filters, "device": query.device, "country": query.country}
        if isinstance(query, ItemQuery):
            about["user_id"] = query.user_id
        return Ask(surface, request.state.request_id, self.room.clock(), **{**about, **more})


def app(room: Room, *, keys: bool = True) -> FastAPI:
    """Return the web application; it stands behind `api_gate.Gate`, which asks for keys or does not."""
    api = FastAPI(title="Reloop", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    desk = Desk(room)
    api.include_router(_lists(desk))
    api.include_router(_bodies(desk))
    api.include_router(_state(desk))
    api.include_router(window.routes())
    api_errors.install(api)
    describe(api, keys=keys)
    return api


def _lists(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=QueryRoute, tags=["lists"])

    @routes.get("/users/{user_id:id}/recommendations", **ANSWERS)
    async def home(request: Request, user_id: UserId, query: Annotated[ListQuery, Query()]) -> Response:
        """Return what a user may like: the home page."""
        return await desk.list(request, desk.ask(request, "home", query, user_id=user_id))

    @routes.get("/users/{user_id:id}/because-you-viewed", **ANSWERS)
    async def because_you_viewed(request: Request, user_id: UserId, query: Annotated[ListQuery, Query()]) -> Response:
        """Return what goes with what a user looked at last."""
        return await desk.list(request, desk.ask(request, "because_you_viewed", query, user_id=user_id))

    @routes.get("/items/{item_id:id}/similar", **ANSWERS)
    async def similar(request: Request, item_id: ItemId, query: Annotated[ItemQuery, Query()]) -> Response:
        """Return items like an item."""
        return await desk.list(request, desk.ask(request, "similar", query, item_ids=(item_id,)))

    @routes.get("/items/{item_id:id}/bought-together", **ANSWERS)
    async def bought_together(request: Request, item_id: ItemId, query: Annotated[ItemQuery, Query()]) -> Response:
        """Return what is bought with an item."""
        return await desk.list(request, desk.ask(request, "bought_together", query, item_ids=(item_id,)))

    @routes.get("/items/{item_id:id}/like", **ANSWERS)
    async def like(request: Request, item_id: ItemId, query: Annotated[LikeQuery, Query()]) -> Response:
        """Return items like an item, but cheaper, of another brand, of another category: a critique."""
        return await desk.list(request, desk.ask(request, "like", query, item_ids=(item_id,), changes=tuple(query.change)))

    @routes.get("/trending", **ANSWERS)
    async def trending(request: Request, query: Annotated[ListQuery, Query()]) -> Response:
        """Return what is wanted now."""
        return await desk.list(request, desk.ask(request, "trending", query))

    return routes


def _bodies(desk: Desk) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=StrictRoute)

    @routes.post("/baskets/recommendations", tags=["lists"], **ANSWERS)
    async def basket(request: Request, body: BasketIn) -> Response:
        """Return what goes with a basket."""
        about = {"user_id": body.user_id, "device": body.device, "country": body.country}
        ask = Ask(
            "basket", request.state.request_id, desk.room.clock(), body.k, item_ids=tuple(body.item_ids), filters=_filters(body.filters)
        )
        return await desk.list(request, _with(ask, about))

    @routes.post("/sessions/recommendations", tags=["lists"], **ANSWERS)
    async def session(request: Request, body: SessionIn) -> Response:
        """Return what an anonymous visitor may like, by the events of the session alone; none of it is kept."""
        now = desk.room.clock()
        events = tuple(sorted((_seen(event, micros(now), place) for place, event in enumerate(body.events)), reverse=True))
        ask = Ask("session", request.state.request_id, now, body.k, events=events, filters=_filters(body.filters))
        return await desk.list(request, _with(ask, {"device": body.device, "country": body.country}))

    @routes.post("/events", status_code=202, tags=["events"], **TAKEN)
    async def events(request: Request, body: EventsIn) -> Response:
        """Take what users did; the next answers of these users know of it."""
        rows = [event.model_dump(exclude_none=True) for event in body.events]
        verdicts = await desk.room.writes.through(partial(_taken, desk.room, rows, _sent_as(request)))
        said = {
            "request_id": request.state.request_id,
            "accepted": sum(verdict.accepted for verdict in verdicts),
            "event_ids": [verdict.event_id for verdict in verdicts],
            "refused": [{"place": place, "reasons": verdict.reasons} for place, verdict in enumerate(verdicts) if not verdict.accepted],
        }
        return _json(said, 202)

    @routes.post("/users/{user_id:id}/preferences", tags=["events"], **ANSWERS)
    async def preferences(request: Request, user_id: UserId, body: PreferencesIn) -> Response:
        """Take what a new user says to like, and return the first list that knows of it."""
        said = Said(tuple(body.categories), tuple(body.brands), tuple(body.item_ids))
        await desk.room.writes.through(partial(desk.room.prefer, user_id, said))
        return await desk.list(request, Ask("home", request.state.request_id, desk.room.clock(), body.k, user_id))

    return routes


def _state(desk: Desk) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/requests/{request_id:id}/explanation", tags=["explanations"], **EXPLAINED)
    async def explain(request_id: RequestId) -> Response:
        """Return how an answer came about, item by item."""
        found = await desk.room.aside.through(partial(desk.room.remembered, request_id))
        return _json(found or {"request_id": request_id, "found": False, "answer": None, "parts": {}, "items": []})

    @routes.get("/v1/users", tags=["explanations"], **USERS)
    async def users(query: Annotated[UsersQuery, Query()]) -> Response:
        """Return users that are known, by how their ids begin."""
        found = await desk.room.aside.through(partial(desk.room.users, query.starts, query.limit))
        return _json({"user_ids": found})

    @routes.get("/healthz", tags=["operations"], **LIVES)
    async def healthz() -> Response:
        """Say that the process lives; it may still have nothing to answer with."""
        return _json({"alive": True})

    @routes.get("/readyz", tags=["operations"], **READY)
    async def readyz() -> Response:
        """Say whether requests may be sent here, and why not."""
        ready, reasons, release = desk.room.ready()
        said = {"ready": ready, "reasons": list(reasons), "model": {"version": release.version, "bundle": release.digest}}
        return _json(said, 200 if ready else 503)

    @routes.get("/metrics", tags=["operations"], **TEXT)
    async def metrics() -> Response:
        """Return what Prometheus reads, of all processes together."""
        return Response(await desk.room.aside.through(partial(_page, desk.room)), media_type=METRICS_TYPE)

    return routes


def told(answer: Answer) -> dict[str, Any]:
    """Return an answer as clients read it."""
    return {
        "request_id": answer.ask.request_id,
        "surface": answer.ask.surface,
        "as_of": answer.ask.as_of,
        "rung": answer.rung,
        "remembered": answer.remembered,
        "degraded": answer.degraded,
        "known": answer.known,
        "variant": answer.variant,
        "model": {"version": answer.release.version, "bundle": answer.release.digest},
        "items": [_item(shown) for shown in answer.items],
        "stage_ms": {stage: round(value, 3) for stage, value in answer.stage_ms.items()},
    }


def _page(room: Room) -> bytes:
    room.vitals()
    return page(room.metrics)


def _sent_as(request: Request) -> str:
    """Return what a request is known by when it is sent again: the client's own name for it, apart from other clients'; else ours, new each time."""
    theirs: str = request.state.client_request_id
    return f"{request.state.key}:{theirs}" if theirs else request.state.request_id


def _taken(room: Room, rows: Sequence[Mapping[str, Any]], request_id: str) -> Sequence[Verdict]:
    try:
        verdicts = room.take(rows, request_id)
    except ReloopError as error:
        room.metrics.events.labels("failed").inc(len(rows))
        hint = error.hint or "nothing was taken: send them again"
        raise Refusal(503, "unavailable", error.found, error.allowed, hint, "event bus", (("Retry-After", "1"),)) from error
    accepted = sum(verdict.accepted for verdict in verdicts)
    room.metrics.events.labels("accepted").inc(accepted)
    room.metrics.events.labels("refused").inc(len(rows) - accepted)
    return verdicts


def _item(shown: Shown) -> dict[str, Any]:
    return {
        "item_id": shown.item_id,
        "rank": shown.rank,
        "score": shown.score,
        "reason": {"kind": shown.why.kind, "text": shown.why.text, "item_id": shown.why.item_id},
        "sources": shown.sources,
        "rules": shown.rules,
        **shown.about,
    }


def _filters(said: FiltersIn) -> Filters:
    return Filters(tuple(said.categories), tuple(said.brands), said.min_price, said.max_price, tuple(said.exclude), said.available_only)


def _with(ask: Ask, about: Mapping[str, Any]) -> Ask:
    return Ask(**{**{name: getattr(ask, name) for name in ask.__dataclass_fields__}, **about})


def _seen(event: EventIn, now_us: int, place: int) -> SessionEvent:
    """Return an event of a session as known before the question: one without a time, or with one to come, has just happened, the first last."""
    latest = now_us - 1 - place
    at = latest if event.event_at is None else min(micros(event.event_at), latest)
    # A name that no client can have given: ids hold no control characters.
    return SessionEvent(at, event.event_id or f"\x00{place}", event.item_id, event.event_type)


def _json(value: Any, code: int = 200) -> Response:
    return Response(to_json(value, inf_nan_mode="null"), code, media_type="application/json")
