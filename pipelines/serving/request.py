"""What is asked of the service and what it answers: the words that every part of a request's way shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from pipelines.streaming.session import SessionEvent

Clock = Callable[[], datetime]  # what time it is, UTC; handed in at the edge: a shop that is replayed or simulated has its own

Surface = Literal["home", "similar", "bought_together", "because_you_viewed", "basket", "session", "trending", "like"]
Change = Literal["cheaper", "dearer", "other_brand", "same_brand", "other_category", "same_category"]

# The fallback ladder, best first. An answer stands on exactly one rung and says on which.
FULL: Final = "full"  # retrieved, ranked, re-ranked for this user now
BLEND: Final = "blend"  # retrieved now, in the order of the blend: the ranker was skipped
CACHED: Final = "cached"  # a list of before, for want of a better one; one that is as good as new stands on the rung it was made on
SESSION: Final = "session"  # from the events of the session alone
SEGMENT: Final = "segment_popular"
POPULAR: Final = "popular"
EMPTY: Final = "empty"  # there is nothing that may be shown
RUNGS: Final = (FULL, BLEND, CACHED, SESSION, SEGMENT, POPULAR, EMPTY)


@dataclass(frozen=True)
class Filters:
    """What the answer may hold; all of them must be met, an empty one says nothing.

    Attributes:
        categories, brands: any of them.
        min_price, max_price: shop currency; an item without a price meets neither.
        exclude: item ids.
        available_only: leave out what the catalogue says cannot be bought.
    """

    categories: tuple[str, ...] = ()
    brands: tuple[str, ...] = ()
    min_price: float | None = None
    max_price: float | None = None
    exclude: tuple[str, ...] = ()
    available_only: bool = True

    def __bool__(self) -> bool:
        return self != Filters()

    def narrow(self) -> bool:
        """Return whether most of a catalogue may be left out."""
        return bool(self.categories or self.brands or self.min_price is not None or self.max_price is not None)


@dataclass(frozen=True)
class Ask:
    """One request, checked.

    Attributes:
        user_id: None where nobody is signed in.
        item_ids: the item that is looked at (`similar`, `bought_together`, `like`), or the basket.
        events: the session as the caller tells it, newest first; beside what is stored of the user.
        k: items wanted.
        device, country: of the request; None where unknown.
        changes: what should be different from the item (`like`).
        as_of: when it is asked; nothing later is known.
        request_id: names the request everywhere, in answer, log, impressions and outcomes.
    """

    surface: Surface
    request_id: str
    as_of: datetime
    k: int = 10
    user_id: str | None = None
    item_ids: tuple[str, ...] = ()
    events: tuple[SessionEvent, ...] = ()
    filters: Filters = Filters()
    device: str | None = None
    country: str | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Why:
    """The reason told with an item.

    Attributes:
        kind: a word a client may switch on, such as `because_you_viewed`, `trending`, `similar_to`, `popular`.
        text: the same for people.
        item_id: the item it speaks of, if any.
    """

    kind: str
    text: str
    item_id: str | None = None


@dataclass(frozen=True)
class Shown:
    """One place of an answer.

    Attributes:
        rank: 1 is the top.
        score: what it was ordered by; comparable within the answer alone.
        sources: the retrievers that proposed it.
        rules: the rules of re-ranking that moved it.
        propensity: probability with which the policy shows this item at this place; 1 where nothing is drawn, NaN where it is not known.
        about: what the catalogue says: title, category, brand, price, available; what is unknown is left out.
    """

    item_id: str
    rank: int
    score: float
    why: Why
    sources: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    propensity: float = 1.0
    about: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Release:
    """Which bundle answered.

    Attributes:
        version: of the registered model; None where no bundle did (popularity of the lake).
        parts: digest of every part of the bundle, to prove that an answer mixes none.
    """

    version: int | None
    digest: str | None
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What is shown, and everything that must be known of it later.

    Attributes:
        rung: of `RUNGS`.
        degraded: one line for each thing that did not go as it should ("ranker: 12 ms were left, it takes 20"); empty when all is well.
        variant: of the experiments that the user is in, and of the rollout, where the list is their own engine's; else empty.
        assigned: the same, whoever's the list is.
        stage_ms: milliseconds of each stage that ran, by name.
        features: the values the ranker read, by feature, float per shown item in the order of `items`; empty where none were kept.
        remembered: it was made for a question of before, and is as good as a new one.
        known: whether anything is known of who asks: a profile, an event, a choice; None where nobody is named, or it was not looked up.
        asked: the release whose engine was to answer, whoever's the list is; None where there was none.
    """

    ask: Ask
    items: tuple[Shown, ...]
    rung: str
    release: Release
    degraded: tuple[str, ...] = ()
    variant: str = ""
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    features: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    remembered: bool = False
    assigned: str = ""
    known: bool | None = None
    asked: Release | None = None

    @property
    def drawn(self) -> bool:
        """Whether a draw had a part in it: such an answer is good for its own request alone."""
        return any(shown.propensity != 1 for shown in self.items)

    def given_again(self) -> Answer:
        """Return the answer as it is shown another time: nobody knows how likely that was, if anything was drawn."""
        return replace(self, items=tuple(replace(shown, propensity=math.nan) for shown in self.items)) if self.drawn else self

    def keeping(self, good: Sequence[bool]) -> Answer:
        """Return the answer with the items for which `good` holds; those below move up, to places that nothing was drawn for."""
        kept, drawn = [place for place, stays in enumerate(good) if stays], self.drawn
        items = tuple(
            replace(self.items[place], rank=rank, propensity=math.nan if drawn and rank <= place else self.items[place].propensity)
            for rank, place in enumerate(kept, 1)
        )
        return replace(self, items=items, features={name: tuple(values[at] for at in kept) for name, values in self.features.items()})
