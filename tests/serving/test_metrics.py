"""What Prometheus reads, on paper."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import values

from pipelines.serving.metrics import MOST, Few, Metrics, gini, page
from pipelines.serving.request import EMPTY, FULL, Answer, Ask, Release, Shown, Why
from pipelines.window import utc


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the numbers of this process in this process, whatever a library has set up."""
    monkeypatch.setattr(values, "ValueClass", values.MutexValue)


def answer(*items: str, rung: str = FULL, degraded: tuple[str, ...] = ()) -> Answer:
    shown = tuple(Shown(item, rank, 1.0, Why("popular", "Popular")) for rank, item in enumerate(items, 1))
    return Answer(Ask("home", "r", utc("2025-03-01")), shown, rung, Release(1, "abc"), degraded, stage_ms={"rank": 2.0})


@pytest.mark.parametrize(
    ("counts", "catalogue", "expected"),
    [([5, 5, 5, 5], 4, 0.0), ([9], 1, 0.0), ([7], 10, 0.9), ([1, 3], 2, 0.25), ([1, 3], 0, 0.25), ([2, 2], 4, 0.5)],
)
def test_gini_is_as_on_paper(counts: list[int], catalogue: int, expected: float) -> None:
    """One item of n shown: 1 - 1/n. Shares 1/4 and 3/4 of two: 1/4. Half of the items, evenly: 1/2."""
    assert gini(np.array(counts), catalogue) == pytest.approx(expected)


def test_coverage_and_concentration_are_of_the_last_answers() -> None:
    metrics = Metrics()
    for item in ("a", "b", "a", "b"):
        metrics.answered(answer(item))
    metrics.vitals(8)
    text = page(metrics).decode()
    assert "reloop_shown_coverage_ratio 0.25" in text
    assert "reloop_shown_gini 0.75" in text


def test_a_label_has_few_values_whatever_comes() -> None:
    few = Few()
    assert len({few(str(n)) for n in range(1000)}) == MOST + 1
    metrics = Metrics()
    for n in range(500):
        metrics.answered(answer("a", degraded=(f"thing {n}: it took {n} ms",)))
    lines = [line for line in page(metrics).decode().splitlines() if line.startswith("reloop_fallback_total{")]
    assert len(lines) == MOST + 1
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 500


def test_what_serves_is_one_bundle_at_a_time() -> None:
    metrics = Metrics()
    metrics.released(Release(1, "a" * 64), 60.0)
    metrics.released(Release(2, "b" * 64), 5.0)
    text = page(metrics).decode()
    assert 'reloop_bundle_info{bundle="aaaaaaaaaaaa",version="1"} 0.0' in text
    assert 'reloop_bundle_info{bundle="bbbbbbbbbbbb",version="2"} 1.0' in text
    assert "reloop_champion_age_seconds 5.0" in text


def test_answers_are_counted_by_stage_reason_and_emptiness() -> None:
    metrics = Metrics()
    metrics.answered(answer(rung=EMPTY, degraded=("store: not done within 30 ms", "ranker: late")))
    text = page(metrics).decode()
    assert 'reloop_request_seconds_count{stage="rank"} 1.0' in text
    assert 'reloop_fallback_total{reason="store"} 1.0' in text
    assert "reloop_empty_total 1.0" in text


def test_counts_of_caches_are_taken_over_once() -> None:
    metrics = Metrics()
    metrics.looked_up({"hits": 3, "misses": 0, "entries": 2})
    metrics.looked_up({"hits": 5, "misses": 1, "entries": 1})
    text = page(metrics).decode()
    assert 'reloop_cache_total{result="hits"} 5.0' in text
    assert 'reloop_cache_total{result="misses"} 1.0' in text
    assert 'reloop_cache_size{unit="entries"} 1.0' in text
