"""The table of the ranker's features: name, unit, meaning, source, group, and whether it follows the last event at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import pyarrow as pa

from pipelines import columns as c
from pipelines.config import Home
from pipelines.features import store
from pipelines.model_settings import FEATURE_GROUPS
from pipelines.ranking.target_encoding import KINDS

Described: TypeAlias = list[tuple[str, str, str, str, bool]]  # name, unit, meaning, source, online

CONTACT: Final = {
    "count": ("events", "events of the user with the {}"),
    "weight": ("gain", "summed strength of those events, halved every 14 days"),
    "share": ("0 to 1", "that strength over the user's total"),
    "days_since": ("days", "since the user's last event with the {}; missing without one"),
    "events_since": ("events", "of the user since the last one with the {}; missing without one"),
}
# The unit of a stored feature, by its name; the first that fits.
STORED_UNITS: Final = (
    (r"price_percentile|share|concentration", "0 to 1"),
    (r"trend_ratio|price_to_", "ratio"),
    (r"rank", "rank"),
    (r"rating_mean", "rating"),
    (r"spend|revenue|price", "shop currency"),
    (r"conversion|per_view", "purchases or carts a view"),
    (r"events_per_active_day", "events a day"),
    (r"events_per_session", "events a session"),
    (r"purchase_days_per_30_days", "days a 30 days"),
    (r"minutes", "minutes"),
    (r"days_since|age_days|tenure_days|active_days|purchase_days|days", "days"),
    (r"is_", "0 or 1"),
    (r"^(events|views|clicks|add_to_carts|purchases|ratings|sessions|distinct_\w+)(_|$)", "count"),
)


@dataclass(frozen=True)
class FeatureSpec:
    """One column of the matrix; float32, NaN where missing.

    Attributes:
        name: as the ranker knows it.
        unit: of its value.
        meaning: what it is.
        source: who computes it: `retrieval`, `history`, `catalogue`, `feature store`, `request`, or `training window`.
        group: what switches it on (`ranking.features`).
        online: whether it follows the last event at once, without a batch job or a release in between.
    """

    name: str
    unit: str
    meaning: str
    source: str
    group: str
    online: bool = True


@dataclass(frozen=True)
class Columns:
    """What the columns are made of: the sources, those of them with vectors, and the stored features, by name.

    Attributes:
        stored: `<view>__<feature>` -> what it says, in the order of the matrix.
    """

    sources: tuple[str, ...]
    placed: tuple[str, ...]
    stored: dict[str, str]

    @classmethod
    def declared(cls, home: Home | None, sources: tuple[str, ...], placed: Iterable[str]) -> Columns:
        """Return what the feature store of a state folder, or of the repository, declares, beside some sources."""
        order = [{c.USER_ID}, {c.ITEM_ID}, {c.USER_ID, c.CATEGORY}, {c.USER_ID, c.BRAND}]
        numeric = [spec for spec in store.schema(home) if not pa.types.is_string(spec.dtype)]
        return cls(sources, tuple(placed), {spec.name: spec.description for keys in order for spec in numeric if set(spec.keys) == keys})


def unit_of(stored: str) -> str:
    """Return the unit of a feature of the store, by its name."""
    name = stored.rpartition("__")[2]
    return next((unit for pattern, unit in STORED_UNITS if re.search(pattern, name)), "")


def specs(columns: Columns, groups: Sequence[str]) -> list[FeatureSpec]:
    """Return the table of features of some groups, in the order of the matrix."""
    return [
        FeatureSpec(name, unit, meaning, source, group, online)
        for group in FEATURE_GROUPS
        if group in groups
        for name, unit, meaning, source, online in DESCRIBED[group](columns)
    ]


def _retrieval(columns: Columns) -> Described:
    proposed: Described = [
        (f"{source}_{what}", unit, meaning.format(source), "retrieval", True)
        for source in columns.sources
        for what, unit, meaning in (
            ("score", "its own", "score that {} gave the item; missing where it did not propose it"),
            ("rank", "rank", "place in the list of {}, 1 is best; missing where it did not propose it"),
        )
    ]
    return [
        *proposed,
        ("blend_score", "1 / rank", "reciprocal-rank fusion of the sources", "retrieval", True),
        ("blend_rank", "rank", "place in the blend, 1 is best", "retrieval", True),
        ("n_sources", "count", "sources that proposed the item", "retrieval", True),
        ("best_rank", "rank", "best place in the list of any source", "retrieval", True),
    ]


def _standardised(columns: Columns) -> Described:
    meaning = (
        "score of {}, less the mean of its scores in the list and over their standard deviation; missing where it did not propose the item"
    )
    return [(f"{source}_z", "standard deviations", meaning.format(source), "retrieval", True) for source in columns.sources]


def _embedding(columns: Columns) -> Described:
    return [
        (f"{source}_{what}", unit, meaning.format(source), "retrieval", True)
        for source in columns.placed
        for what, unit, meaning in (
            ("dot", "its own", "product of the vectors that {} has of the user and the item, also where it did not propose it"),
            ("to_last", "cosine", "of the vectors that {} has of the item and the last item that the user met"),
        )
    ]


def _stored(columns: Columns) -> Described:
    return [(name, unit_of(name), meaning, "feature store", False) for name, meaning in columns.stored.items()]


def _contact(_: Columns) -> Described:
    return [
        *(
            (f"own_{thing}_{name}", unit, meaning.format(thing), "history", True)
            for thing in ("item", "category", "brand")
            for name, (unit, meaning) in CONTACT.items()
        ),
        ("own_events", "events", "in the user's history", "history", True),
        ("own_days_since", "days", "since the user's last event; missing without one", "history", True),
    ]


def _price(_: Columns) -> Described:
    return [
        ("price_to_usual", "log ratio", "the item's price over the decayed geometric mean price of what the user met", "catalogue", True)
    ]


def _content(_: Columns) -> Described:
    return [
        (f"content_to_{what}", "cosine", f"of the item's description and that of {meaning}", "history", True)
        for what, meaning in (
            ("history", "what the user met, later events first"),
            ("session", "the items of the user's last session"),
            ("last", "the last item that the user met"),
        )
    ]


def _session(columns: Columns) -> Described:
    meaning = "of the vectors that {} has of the item and, in the mean, of the items of the user's last session"
    return [(f"{source}_to_session", "cosine", meaning.format(source), "history", True) for source in columns.placed]


def _request(_: Columns) -> Described:
    return [
        ("request_hour", "hours", "of the day at which the list is made, UTC", "request", True),
        ("request_weekday", "days", "of the week, 0 is Monday, UTC", "request", True),
        ("request_session_events", "events", "of the session under way; 0 where the last event is over 30 minutes old", "request", True),
        ("request_session_minutes", "minutes", "since the session under way began", "request", True),
        ("request_phone", "0 or 1", "the device in hand is a phone; missing where unknown", "request", True),
        ("request_tablet", "0 or 1", "the device in hand is a tablet; missing where unknown", "request", True),
    ]


def _encoding(_: Columns) -> Described:
    meaning = "mean gain of candidates with the {} in the window before, drawn to the mean of all"
    return [(f"encoded_{kind}", "gain", meaning.format(kind), "training window", False) for kind in KINDS]


DESCRIBED: Final[dict[str, Callable[[Columns], Described]]] = {
    "retrieval": _retrieval,
    "standardised": _standardised,
    "embedding": _embedding,
    "stored": _stored,
    "contact": _contact,
    "price": _price,
    "content": _content,
    "session": _session,
    "request": _request,
    "encoding": _encoding,
}


def page(table: Sequence[FeatureSpec], default: Sequence[str]) -> str:
    """Return the table as Markdown; groups outside `default` are marked."""
    head = "| feature | unit | what it is | from | group | follows the last event |\n|---|---|---|---|---|---|\n"
    group: dict[str, str] = {name: name if name in default else f"{name} (off)" for name in FEATURE_GROUPS}
    return head + "".join(
        f"| `{spec.name}` | {spec.unit} | {spec.meaning} | {spec.source} | {group[spec.group]} | {'yes' if spec.online else 'no'} |\n"
        for spec in table
    )
