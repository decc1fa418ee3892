"""What Prometheus reads, on paper."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import values

from pipelines.serving.metrics import MOST, Few, Metrics, fold, gini, page
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


def test_the_pulse_and_a_scrape_count_nothing_twice() -> None:
    metrics, both, before = Metrics(), threading.Barrier(2), sys.getswitchinterval()

    def looks() -> None:
        for total in range(1, 2001):
            both.wait()
            metrics.logged({"written": total})

    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=looks) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert metrics.impressions.labels("written")._value.get() == 2000


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
    assert 'bundle="aaaaaaaaaaaa"' not in text
    assert 'reloop_bundle_info{bundle="bbbbbbbbbbbb",version="2"} 1.0' in text
    assert "reloop_champion_age_seconds 5.0" in text


WORKER = """
import sys
import threading
from pipelines.serving.metrics import Metrics
from pipelines.serving.request import Release
metrics = Metrics()
for version in (1, 2):
    metrics.released(Release(version, str(version) * 64), 5.0)
metrics.requests.labels("/", 200, "full", "").inc(3)
metrics.http_seconds.labels("/").observe(0.004)
"""
READER = "import sys; from pipelines.serving.metrics import Metrics, page; Metrics(); sys.stdout.buffer.write(page(Metrics()))"


def test_workers_that_are_gone_leave_their_counts_in_one_file_and_no_former_bundle(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def told(code: str) -> str:
        return subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout

    for _ in range(3):
        told(WORKER)
        pids = {int(file.stem.rpartition("_")[2]) for file in tmp_path.glob("counter_*.db")} - {0}
        fold(tmp_path, pids)
    assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith("gauge")) == ["counter_0.db", "histogram_0.db"]
    text = told(READER)
    assert 'reloop_requests_total{arm="",code="200",route="/",rung="full"} 9.0' in text
    assert 'reloop_http_seconds_count{route="/"} 3.0' in text
    assert 'reloop_bundle_info{bundle="222222222222",version="2"} 3.0' in text
    assert 'bundle="111111111111"' not in text


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
