"""A shadow harms nobody: whatever the challenger does to its process, a request puts its answer into a queue or drops it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from swap_lab import NOW, Telling, ask, canary, digests, promoted, until

from pipelines.config import Home
from pipelines.registry import choosing, ledger
from pipelines.serving.request import Answer, Ask, Filters
from pipelines.serving.shadow import Shadow
from pipelines.serving.shadow_process import read, written
from pipelines.serving_policies import RolloutPolicy
from pipelines.streaming.session import SessionEvent

POLICY = RolloutPolicy(shadow_share=1.0, shadow_seconds=0.5, shadow_lives=1, shadow_waiting=8, shadow_megabytes=256)


@pytest.fixture
def shown(shop: Home, monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Return answers of version 1, which serves, while version 2 is a shadow."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")
    promoted(shop, 1, digests(shop)[1])
    engine = Telling(choosing.loaded(shop, 1, digests(shop)[1]))
    return [engine.answer(Ask("home", f"r{at}", NOW, 5, f"u{at}")) for at in range(60)]


@contextmanager
def followed(shop: Home, name: str) -> Iterator[Shadow]:
    shadow = Shadow(shop, POLICY, f"evil_challengers:{name}")
    shadow.follow(canary(shop, 2, 0.0, ledger.SHADOW))
    try:
        yield shadow
    finally:
        shadow.stop()


def test_a_request_goes_to_the_other_process_and_comes_back_as_it_was() -> None:
    event = SessionEvent(17, "e1", "i1", "view")
    asked = Ask("like", "r", NOW, 3, None, ("i1", "i2"), (event,), Filters(("books",), (), 1.5, None, ("i9",)), "phone", "DE", ("cheaper",))
    assert read(written(asked)) == asked


@pytest.mark.slow
def test_a_shadow_is_compared_and_nobody_waits_for_it(shop: Home, shown: list[Answer]) -> None:
    with followed(shop, "fine") as shadow:
        until(lambda: shadow.compared.answers or shadow(shown[0]) or False)
        for answer in shown:
            until(shadow._queue.empty)
            shadow(answer)
        until(lambda: shadow.compared.answers >= len(shown))
        report = shadow.report()
        assert (report["failed"], report["ended"]) == (0, 0)
        assert 0 < report["overlap_at_k"] <= 1
        assert report["rungs"] == {"full -> full": report["answers"]}
        assert (shop.reports / "serving" / "shadow" / "2.json").is_file()
    assert shadow._process is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("crashing", "it ended with -11"),
        pytest.param("hanging", "no answer within 0.5 s", marks=pytest.mark.slow),
        pytest.param("leaking", "it ended with 1", marks=pytest.mark.slow),
    ],
)
def test_a_challenger_that_harms_its_process_is_given_up_and_costs_a_request_nothing(
    shop: Home, shown: list[Answer], name: str, why: str
) -> None:
    took: list[float] = []
    with followed(shop, name) as shadow:
        while shadow.broken() is None:
            for answer in shown:
                begun = time.thread_time()
                shadow(answer)
                took.append(time.thread_time() - begun)
            time.sleep(0.01)
        assert why in (shadow.broken() or "")
        assert shadow.compared.dropped > 0, "the queue is bounded"
        assert shadow._queue.qsize() <= POLICY.shadow_waiting
    assert np.percentile(took, 99) < 0.001


@pytest.mark.slow
def test_a_challenger_that_raises_is_counted_and_goes_on(shop: Home, shown: list[Answer]) -> None:
    with followed(shop, "raising") as shadow:
        until(lambda: shadow.compared.answers > 2 or shadow(shown[0]) or False)
        report = shadow.report()
        assert report["failed"] == report["answers"]
        assert report["last_error"] == "ValueError: no such feature"
        assert report["ended"] == 0


def test_a_share_of_the_requests_is_taken_by_lot_of_their_ids(shop: Home, shown: list[Answer]) -> None:
    shadow = Shadow(shop, POLICY.model_copy(update={"shadow_share": 0.3, "shadow_waiting": 1000}))
    shadow.rollout = canary(shop, 2, 0.0, ledger.SHADOW)
    for answer in shown:
        shadow(answer)
    taken = shadow._queue.qsize()
    assert 6 <= taken <= 30
    for answer in shown:
        shadow(answer)
    assert shadow._queue.qsize() == 2 * taken, "the same requests again"
    assert ask().request_id.startswith("r")
