"""What Prometheus reads: every number is counted in the worker that saw it and added up over workers when asked.

Labels come from closed sets; users, items and texts of clients never become one. A label value beyond
`MOST` is counted as `other`, so that no defect can make the page grow.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from pipelines.serving.request import EMPTY, Answer, Release

MOST: Final = 64
BUNDLE: Final = "reloop_bundle_info"
GONE: Final = 0  # stands for the ids of workers that are gone
WINDOW: Final = 1000  # answers over which coverage and concentration are told, a worker
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
STAGE_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for each, only to say when it began


class Few:
    """Lets the first `MOST` values of a label through and calls the rest `other`."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """Return the label for a value."""
        if value in self._known:
            return value
        if len(self._known) >= MOST:
            return "other"
        self._known.add(value)
        return value


class Metrics:
    """The service's metrics in this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        count, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        spread = partial(Histogram, registry=self.registry)
        self.requests = count("reloop_requests", "Requests answered", ["route", "code", "rung", "arm"])
        self.http_seconds = spread("reloop_http_seconds", "From the first byte to the last", ["route"], buckets=SECONDS)
        self.stage_seconds = spread("reloop_request_seconds", "Of a stage", ["stage"], buckets=STAGE_SECONDS)
        self.fallback = count("reloop_fallback", "Answers that were degraded, by what was", ["reason"])
        self.empty = count("reloop_empty", "Answers without any item")
        self.shed = count("reloop_shed", "Requests told to come back later", ["reason"])
        self.refused = count("reloop_refused", "Requests refused", ["reason"])
        self.events = count("reloop_events", "Events by what became of them", ["result"])
        self.cache = count("reloop_cache", "Look-ups of remembered lists", ["result"])
        self.cache_size = gauge("reloop_cache_size", "Remembered lists", ["unit"], multiprocess_mode="livesum")
        self.impressions = count("reloop_impressions", "Rows of the impression log", ["result"])
        self.looks_failed = count("reloop_looks_failed", "Looks of a thread that raised", ["thread"])
        self.inflight = gauge("reloop_inflight", "Requests in the house", multiprocess_mode="livesum")
        self.waiting = gauge("reloop_waiting", "Requests that wait for their turn", multiprocess_mode="livesum")
        self.workers = gauge("reloop_workers", "Processes that answer", multiprocess_mode="livesum")
        self.bundle = gauge(BUNDLE, "Workers that answer from a bundle", ["version", "bundle"], multiprocess_mode="livesum")
        self.release_refused = gauge(
            "reloop_release_refused", "Releases that should be loaded and are refused", multiprocess_mode="livemax"
        )
        self.snapshots_refused = gauge(
            "reloop_snapshots_refused", "1 where the newest snapshots cannot be used, and older ones answer", multiprocess_mode="livemax"
        )
        self.rollout_share = gauge("reloop_rollout_share", "Share of the users who get a challenger", multiprocess_mode="livemax")
        self.champion_age = gauge("reloop_champion_age_seconds", "Since the cycle that built it", multiprocess_mode="livemax")
        self.feature_age = gauge("reloop_feature_age_seconds", "Of what is read", ["view"], multiprocess_mode="livemax")
        self.breaker = gauge(
            "reloop_breaker_state", "0 closed, 1 half open, 2 open: the dependency is left alone", ["name"], multiprocess_mode="livemax"
        )
        self.coverage = gauge(
            "reloop_shown_coverage_ratio", f"Share of the catalogue in a worker's last {WINDOW} answers", multiprocess_mode="liveall"
        )
        self.gini = gauge(
            "reloop_shown_gini",
            f"Concentration of what a worker's last {WINDOW} answers show: 0 even, 1 one item",
            multiprocess_mode="liveall",
        )
        self.resident = gauge("reloop_resident_bytes", "Memory of a worker", multiprocess_mode="liveall")
        self._reason, self._stage, self._arm = Few(), Few(), Few()
        self._turn = threading.Lock()
        self._counted: dict[tuple[Counter, str], int] = {}
        self._bundle: tuple[str, str] | None = None
        self._shown: deque[tuple[str, ...]] = deque(maxlen=WINDOW)
        self.workers.set(1)

    def answered(self, answer: Answer) -> None:
        """Count an answer; called for every one."""
        for stage, milliseconds in answer.stage_ms.items():
            self.stage_seconds.labels(self._stage(stage)).observe(milliseconds / 1e3)
        for line in answer.degraded:
            self.fallback.labels(self._reason(line.partition(":")[0][:40])).inc()
        if answer.rung == EMPTY:
            self.empty.inc()
        self._shown.append(tuple(item.item_id for item in answer.items))

    def arm(self, variant: str) -> str:
        """Return the label of a variant."""
        return self._arm(variant)

    def released(self, release: Release, age_seconds: float | None) -> None:
        """Tell which bundle answers here, and how old it is."""
        now = (str(release.version or 0), (release.digest or "none")[:12])
        if now != self._bundle:
            if self._bundle is not None:
                self.bundle.labels(*self._bundle).set(0)  # a process cannot take a series back; `page` leaves it out
            self.bundle.labels(*now).set(1)
            self._bundle = now
        if age_seconds is not None:
            self.champion_age.set(age_seconds)

    def trouble(self, name: str, code: int) -> None:
        """Tell the state of a breaker; those of releases under one name."""
        self.breaker.labels("release" if name.startswith("release ") else name).set(code)

    def looked_up(self, counts: Mapping[str, int]) -> None:
        """Take over what the caches counted so far."""
        for result, total in counts.items():
            if result in {"entries", "bytes"}:
                self.cache_size.labels(result).set(total)
            else:
                self._raised(self.cache, result, total)

    def logged(self, counts: Mapping[str, int]) -> None:
        """Take over what became of rows of the impression log so far."""
        for result, total in counts.items():
            self._raised(self.impressions, result, total)

    def stumbled(self, counts: Mapping[str, int]) -> None:
        """Take over how often the look of each thread has raised so far."""
        for thread, total in counts.items():
            self._raised(self.looks_failed, thread, total)

    def _raised(self, counter: Counter, result: str, total: int) -> None:
        with self._turn:  # the pulse and a scrape may both be here: what came between would count twice
            before = self._counted.get((counter, result), 0)
            if total > before:
                counter.labels(result).inc(total - before)
                self._counted[counter, result] = total

    def vitals(self, catalogue: int) -> None:
        """Tell what is worked out now and then: coverage, concentration, memory.

        Args:
            catalogue: items that could be shown; 0 where unknown.
        """
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a path object costs more than the read
            self.resident.set(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE"))
        shown = [item for answer in list(self._shown) for item in answer]
        if shown and catalogue:
            counts = np.unique(np.array(shown), return_counts=True)[1]
            self.coverage.set(len(counts) / max(catalogue, len(counts)))
            self.gini.set(gini(counts, catalogue))


def gini(counts: np.ndarray, catalogue: int) -> float:
    r"""Return the Gini coefficient of exposure over a catalogue: $\sum_i (2i - n - 1) x_i / (n \sum_i x_i)$, $x$ ascending, $i$ from 1.

    Items that were not shown count as zeros: n is the catalogue, or the shown items where it is smaller.
    """
    n = max(catalogue, len(counts))
    ascending = np.sort(counts).astype(np.float64)
    places = np.arange(n - len(counts) + 1, n + 1)
    return float(((2 * places - n - 1) * ascending).sum() / (n * ascending.sum()))


def page(metrics: Metrics) -> bytes:
    """Return the metrics of all workers in Prometheus' text format."""
    # Not whether the folder is named now, which any library may do later (Feast does), but whether numbers were put there.
    many = values.ValueClass._multiprocess
    registry = CollectorRegistry()
    registry.register(_Living(MultiProcessCollector(None) if many else metrics.registry))  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class _Living(Collector):
    """Metrics without the bundles that nobody answers from any more."""

    def __init__(self, source: Collector) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """Yield each metric."""
        for metric in self._source.collect():
            if metric.name == BUNDLE:
                metric.samples = [sample for sample in metric.samples if sample.value > 0]
            yield metric


def fold(folder: Path, dead: Iterable[int]) -> None:
    """Add the counts of workers that are gone up in one file of theirs all, so that there are not more files with every one that ends.

    Args:
        folder: of `PROMETHEUS_MULTIPROC_DIR`.
    """
    for kind in ("counter", "histogram"):
        files = [file for pid in dead if (file := folder / f"{kind}_{pid}.db").is_file()]
        if not files:
            continue
        target, beside = folder / f"{kind}_{GONE}.db", folder / f".{kind}_{GONE}"
        beside.unlink(missing_ok=True)
        total: dict[str, float] = {}
        for file in (*([target] if target.is_file() else []), *files):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
                total[key] = total.get(key, 0.0) + value
        written = MmapedDict(str(beside))  # type: ignore[no-untyped-call]
        for key, value in total.items():
            written.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        written.close()  # type: ignore[no-untyped-call]
        beside.replace(target)
        for file in files:
            file.unlink()
