"""Promise 13: whatever is asked, no score is NaN, no item is there twice, and none that is blocked, excluded or filtered away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, get_args

import chaos_lab as lab
import numpy as np
import pytest
import served_shop

from pipelines import columns as c
from pipelines.config import Home
from pipelines.serving import blocked
from pipelines.serving.assembly import House
from pipelines.serving.request import Answer, Ask, Change, Filters, Surface
from pipelines.serving.standing import meets
from pipelines.streaming.session import SessionEvent
from pipelines.window import micros

PATIENT: Final = "[serving.deadline]\nrequest_ms = 20000\nstore_ms = 5000\nretrieve_by_ms = 10000\nrank_by_ms = 15000\n"
STRANGE: Final = ("", "no such thing", "\U0001f6d2" * 40, "i" * 255, "-1", "nan", "'; drop table items; --", "u00000001\x00")
KINDS: Final = (c.VIEW, c.ADD_TO_CART, c.PURCHASE)


@pytest.fixture(scope="module")
def made(served: Home, trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Yield a process of the service in which the thirty most popular items are taken down."""
    home = lab.shop(served, tmp_path_factory.mktemp("any") / "var", PATIENT)
    with served_shop.environment(trained):
        model = lab.ranking(trained)
    with lab.house(home, ranked=model) as found:
        listed = [shown.item_id for shown in lab.requests(found, [None], k=30).answers[0].items]
        assert len(listed) == 30
        blocked.block(home, listed, "recalled")
        lab.until(lambda: set(listed) <= found.ladder.blocked.items, 30)
        assert set(listed) <= found.ladder.blocked.items
        yield found


class Anyone:
    """Draws requests, sane and strange, of everything that can be asked."""

    def __init__(self, made: House, seed: int) -> None:
        catalogue = made.knowledge.known.requests.histories
        self.rng = np.random.default_rng(seed)
        self.items = [str(item) for item in made.holder.held.champion.model.item_ids]
        self.users = [str(user) for user in catalogue.users.to_pylist()]
        about = [made.knowledge.about(item) for item in self.items]
        self.categories = sorted({str(one["category"]) for one in about if "category" in one})
        self.brands = sorted({str(one["brand"]) for one in about if "brand" in one})

    def some(self, of: Any, most: int, strange: float = 0.1) -> tuple[str, ...]:
        """Return up to so many of them, now and then one that is none."""
        n = int(self.rng.integers(0, most + 1))
        return tuple(str(self.rng.choice(STRANGE if self.rng.random() < strange else of)) for _ in range(n))

    def filters(self) -> Filters:
        """Return filters: mostly none, sometimes some that nothing meets."""
        if self.rng.random() < 0.5:
            return Filters()
        low, high = sorted(self.rng.choice([-1.0, 0.0, 5.0, 20.0, 60.0, 1e9], 2))
        return Filters(
            categories=self.some(self.categories, 2),
            brands=self.some(self.brands, 1),
            min_price=None if self.rng.random() < 0.6 else float(low),
            max_price=None if self.rng.random() < 0.6 else float(high),
            exclude=self.some(self.items, 30),
            available_only=bool(self.rng.random() < 0.8),
        )

    def ask(self, number: int) -> Ask:
        """Return any request at all."""
        rng, moment = self.rng, lab.NOW + timedelta(seconds=int(self.rng.integers(0, 3600)))
        user = None if rng.random() < 0.2 else str(rng.choice(STRANGE if rng.random() < 0.1 else self.users))
        seen = [
            SessionEvent(micros(moment) - at - 1, f"e{at}", str(rng.choice(STRANGE if rng.random() < 0.1 else self.items)), str(rng.choice(KINDS)))
            for at in range(int(rng.integers(0, 6)))
        ]  # fmt: skip
        return Ask(
            str(rng.choice(get_args(Surface))),  # type: ignore[arg-type]
            f"any-{number}",
            moment,
            k=int(rng.choice([1, 2, 10, 50, 200])),
            user_id=user,
            item_ids=self.some(self.items, 4),
            events=tuple(seen),
            filters=self.filters(),
            device=None if rng.random() < 0.5 else str(rng.choice(["app", *STRANGE])),
            country=None if rng.random() < 0.5 else str(rng.choice(["DE", *STRANGE])),
            changes=tuple(str(one) for one in rng.permutation(get_args(Change))[: int(rng.integers(0, 3))]),  # type: ignore[misc]
        )


def wrong(answer: Answer, made: House) -> list[str]:
    """Return what no answer may be."""
    ask, ids = answer.ask, [shown.item_id for shown in answer.items]
    found = []
    if len(ids) != len(set(ids)) or len(ids) > ask.k:
        found.append(f"{len(ids)} items, {len(set(ids))} of them different, asked for {ask.k}")
    if [shown.rank for shown in answer.items] != list(range(1, len(ids) + 1)):
        found.append("ranks")
    for shown in answer.items:
        if not math.isfinite(shown.score) or not (0 < shown.propensity <= 1 or math.isnan(shown.propensity)):
            found.append(f"score {shown.score}, propensity {shown.propensity}")
        if shown.item_id in made.ladder.blocked.items:
            found.append(f"{shown.item_id} is blocked")
        if not meets(ask.filters, shown.item_id, made.knowledge.about(shown.item_id)):
            found.append(f"{shown.item_id} does not meet {ask.filters}")
    return found


def asked(made: House, n: int, seed: int) -> Counter[str]:
    """Ask n times, look at every answer, and return the rungs."""
    anyone, rungs = Anyone(made, seed), Counter[str]()
    for number in range(n):
        answer = made.service.answer(anyone.ask(number))
        assert not (found := wrong(answer, made)), (answer.ask, found[:3])
        assert not (broke := [line for line in answer.degraded if "Error" in line or "Exception" in line]), (answer.ask, broke)
        rungs[answer.rung] += 1
    return rungs


def test_any_request_has_a_sound_answer(made):
    rungs = asked(made, 400, seed=7)
    assert rungs["full"] > 40
    assert rungs["empty"] > 4  # what nothing meets is asked for, too


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_requests_have_sound_answers(made):
    rungs = asked(made, 100_000, seed=8)
    assert sum(rungs.values()) == 100_000
    assert rungs["full"] > 10_000
