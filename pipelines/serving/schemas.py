"""The words of the API: what a body may hold, what an answer holds, each bound in the schema itself.

Bounds are part of the contract `v1` and therefore constants: a client that keeps them is never refused by one
installation and served by the next. What an installation may tune (rates, bytes, waiting) is `LimitPolicy`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr

from pipelines import columns as c
from pipelines.serving.request import Change, Surface

MAX_K: Final = 200
MAX_IDS: Final = 500
MAX_ID: Final = 256
MAX_VALUES: Final = 50  # categories or brands of a filter
PRINTABLE: Final = r"^[^\x00-\x1f\x7f]+$"


def _utf8(text: str) -> str:
    """Refuse half a character: no store could keep it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is no text: it holds half a character (a lone surrogate)") from None
    return text


def _text_of_time(value: object) -> object:
    """Refuse numbers: whether they are seconds or milliseconds nobody can tell."""
    if not isinstance(value, str | datetime):
        raise ValueError("must be a time as text, with its offset from UTC, such as 2025-03-01T12:00:00Z")  # noqa: TRY004 - pydantic reads ValueError
    return value


def _in_reach(value: datetime) -> datetime:
    """Refuse a time at the ends of the calendar: with its offset it may have no moment in UTC. What is absurd short of that the rules of rows judge."""
    if not 2 <= value.year <= 9998:
        raise ValueError("must lie between the years 2 and 9998")
    return value


def _number(value: object) -> object:
    """Refuse what only looks like a number; 3.0 is 3, as JSON has it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reads ValueError
    return value


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID, pattern=PRINTABLE), AfterValidator(_utf8)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=MAX_ID, pattern=PRINTABLE), AfterValidator(_utf8)]
Word = Annotated[StrictStr, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.:-]+$")]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
Price = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Moment = Annotated[AwareDatetime, BeforeValidator(_text_of_time), AfterValidator(_in_reach)]
Amount = Annotated[Price, BeforeValidator(_number)]
K = Annotated[int, Field(ge=1, le=MAX_K, description="Items wanted."), BeforeValidator(_number)]


class Said(BaseModel):
    """A body: unknown fields are errors, values are of the type that is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FiltersIn(Said):
    """What the answer may hold; all must be met."""

    categories: list[Text] = Field(default=[], max_length=MAX_VALUES, description="Any of these categories.")
    brands: list[Text] = Field(default=[], max_length=MAX_VALUES, description="Any of these brands.")
    min_price: Amount | None = Field(default=None, description="Shop currency; an item without a price is left out.")
    max_price: Amount | None = Field(default=None, description="Shop currency; an item without a price is left out.")
    exclude: list[Text] = Field(default=[], max_length=MAX_IDS, description="Items never to show.")
    available_only: StrictBool = Field(default=True, description="Leave out what cannot be bought.")


class EventIn(Said):
    """Something a visitor did."""

    item_id: Text
    event_type: Literal["view", "click", "add_to_cart", "purchase", "rating"]
    event_at: Moment | None = Field(
        default=None, description="When it happened, between the years 2 and 9998; default, and at the latest: when it is received."
    )
    event_id: Text | None = Field(default=None, description="Names the event, so that sending it twice counts once; default: made here.")


class UserEventIn(EventIn):
    """Something a known user did, to be kept and learnt from."""

    # `seen` is no deed: it says that a place came into view, and goes to the impression log.
    event_type: Literal["view", "click", "add_to_cart", "purchase", "rating", "seen"]  # type: ignore[assignment]
    user_id: Text
    value: Amount | None = Field(default=None, description="Amount paid, or the rating given.")
    quantity: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(_number)] | None = None
    session_id: Text | None = None
    device: Word | None = None
    request_id: Text | None = Field(default=None, description="The answer that the item was shown in; `seen` needs it.")


class EventsIn(Said):
    """A batch of events; kept whole or not at all."""

    events: list[UserEventIn] = Field(min_length=1, max_length=MAX_IDS)


class BasketIn(Said):
    """What lies in the basket."""

    item_ids: list[Text] = Field(min_length=1, max_length=MAX_IDS)
    user_id: Text | None = None
    k: K = 10
    filters: FiltersIn = FiltersIn()
    device: Word | None = None
    country: Annotated[StrictStr, Field(pattern=r"^[A-Z]{2}$")] | None = None


class SessionIn(Said):
    """What an anonymous visitor did in this session: in the order of `event_at`; what has none has just happened, the first in the list last."""

    events: list[EventIn] = Field(default=[], max_length=MAX_IDS)
    k: K = 10
    filters: FiltersIn = FiltersIn()
    device: Word | None = None
    country: Annotated[StrictStr, Field(pattern=r"^[A-Z]{2}$")] | None = None


class PreferencesIn(Said):
    """The onboarding quiz: what a new user says to like."""

    item_ids: list[Text] = Field(default=[], max_length=MAX_VALUES, description="Items liked.")
    categories: list[Text] = Field(default=[], max_length=MAX_VALUES, description="Categories liked.")
    brands: list[Text] = Field(default=[], max_length=MAX_VALUES, description="Brands liked.")
    k: K = 10


class ListQuery(BaseModel):
    """What every list may be asked with, in the query."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    k: int = Field(default=10, ge=1, le=MAX_K, description="Items wanted.")
    categories: list[Id] = Field(default=[], max_length=MAX_VALUES, description="Any of these categories; repeat the parameter.")
    brands: list[Id] = Field(default=[], max_length=MAX_VALUES, description="Any of these brands; repeat the parameter.")
    min_price: Price | None = Field(default=None, description="Shop currency; an item without a price is left out.")
    max_price: Price | None = Field(default=None, description="Shop currency; an item without a price is left out.")
    exclude: list[Id] = Field(default=[], max_length=MAX_IDS, description="Items never to show; repeat the parameter.")
    available_only: bool = Field(default=True, description="Leave out what cannot be bought.")
    device: Word | None = Field(default=None, description="Of the request, such as mobile.")
    country: Country | None = Field(default=None, description="ISO 3166-1, two letters.")


class ItemQuery(ListQuery):
    """What a list about an item may be asked with."""

    user_id: Id | None = Field(default=None, description="Who looks at it, if known.")


class LikeQuery(ItemQuery):
    """Like an item, but different."""

    change: list[Change] = Field(min_length=1, max_length=6, description="What should be different; repeat the parameter.")


class UsersQuery(BaseModel):
    """Part of an id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    starts: str = Field(default="", max_length=MAX_ID, pattern=r"^[^\x00-\x1f\x7f]*$", description="How the id begins.")
    limit: int = Field(default=10, ge=1, le=50)


class ReasonOut(BaseModel):
    """Why an item is shown."""

    kind: str = Field(description="A word to switch on, such as `because_you_viewed`.")
    text: str = Field(description="The same for people.")
    item_id: str | None = Field(default=None, description="The item it speaks of.")


class ItemOut(BaseModel):
    """One place of a list; what the catalogue does not know is left out."""

    item_id: str
    rank: int
    score: float | None = Field(description="What it was ordered by; comparable within the answer alone.")
    reason: ReasonOut
    sources: list[str] = Field(description="The retrievers that proposed it.")
    rules: list[str] = Field(description="The rules of re-ranking that moved it.")
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    price: float | None = None
    available: bool | None = None


class ModelOut(BaseModel):
    """Which release answered; nulls where none did."""

    version: int | None
    bundle: str | None = Field(description="Digest of the bundle.")


class AnswerOut(BaseModel):
    """A list, and how it came about."""

    request_id: str
    surface: Surface
    as_of: datetime = Field(description="The moment it was made for.")
    rung: Literal["full", "blend", "cached", "session", "segment_popular", "popular", "empty"] = Field(
        description="Where on the fallback ladder the answer stands, best first."
    )
    remembered: bool = Field(default=False, description="It was made for a question of before, and is as good as a new one.")
    known: bool | None = Field(
        default=None,
        description="Whether anything is known of the user: a profile, an event, a choice. False: the list is what a newcomer gets. "
        "Null: nobody is named, the surface is not about a user, or a lower rung answered without looking.",
    )
    degraded: list[str] = Field(description="A line for each thing that did not go as it should; empty when all is well.")
    variant: str = Field(description="Of experiments and rollout; empty where there is none.")
    model: ModelOut
    items: list[ItemOut]
    stage_ms: dict[str, float] = Field(description="Milliseconds of each stage.")


class RefusedOut(BaseModel):
    """An event that does not count."""

    place: int = Field(description="In the batch, from 0.")
    reasons: list[str]


class TakenOut(BaseModel):
    """What became of a batch of events."""

    request_id: str
    accepted: int
    event_ids: list[str] = Field(description="In the order of the batch; made here where none was sent.")
    refused: list[RefusedOut] = Field(description="Events that break a rule of the data; they are kept in quarantine.")


class ExplanationOut(BaseModel):
    """What is known of an answer, and of each item in it."""

    request_id: str
    found: bool = Field(description="Whether the answer is still remembered.")
    answer: AnswerOut | None = None
    parts: dict[str, str] = Field(default={}, description="Digest of every part of the bundle that answered.")
    items: list[dict[str, Any]] = Field(default=[], description="For each item its propensity and the feature values that the ranker read.")
    asked: dict[str, Any] | None = Field(default=None, description="The question.")
    why: dict[str, Any] | None = Field(
        default=None,
        description="The question asked again: history, list, and of its first item sources, features, rules and counterfactuals.",
    )
    not_told: str | None = Field(default=None, description="Why `why` is null.")


class UsersOut(BaseModel):
    """Users that are known."""

    user_ids: list[str]


class ErrorOut(BaseModel):
    """What is wrong with a request, where, and what to do."""

    error: str = Field(description="A word to switch on.")
    field: str | None = Field(default=None, description="The parameter or the path into the body.")
    found: str
    allowed: str
    hint: str
    request_id: str


class ReadyOut(BaseModel):
    """Whether requests may be sent here."""

    ready: bool
    reasons: list[str] = Field(description="Why not; or what is degraded though it may be.")
    model: ModelOut


class AliveOut(BaseModel):
    """The process lives."""

    alive: Literal[True] = True


EVENT_EXAMPLE: Final[dict[str, Any]] = {
    c.USER_ID: "u00042",
    c.ITEM_ID: "i00007",
    c.EVENT_TYPE: c.ADD_TO_CART,
    c.EVENT_AT: "2025-03-01T12:00:00Z",
    c.EVENT_ID: "e-1",
}
ANSWER_EXAMPLE: Final[dict[str, Any]] = {
    "request_id": "4f1c2ad09e5b4c73b0a8d5d7f2a90c11",
    "surface": "home",
    "as_of": "2025-03-01T12:00:00Z",
    "rung": "full",
    "degraded": [],
    "variant": "",
    "model": {"version": 3, "bundle": "9d3f0c"},
    "items": [
        {
            "item_id": "i00007",
            "rank": 1,
            "score": 0.83,
            "reason": {"kind": "because_you_viewed", "text": "Because you viewed Walnut desk", "item_id": "i00003"},
            "sources": ["item_knn", "sequence_rules"],
            "rules": [],
            "title": "Oak shelf",
            "category": "furniture",
            "brand": "Nordholm",
            "price": 129.0,
            "available": True,
        }
    ],
    "stage_ms": {"features": 0.6, "retrieve": 1.2, "rank": 2.1, "rerank": 0.4},
}
ERROR_EXAMPLE: Final[dict[str, Any]] = {
    "error": "invalid",
    "field": "query.k",
    "found": "1000000000",
    "allowed": "less than or equal to 200",
    "hint": "see /openapi.json for every bound",
    "request_id": "4f1c2ad09e5b4c73b0a8d5d7f2a90c11",
}
