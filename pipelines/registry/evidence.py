"""What the gate is shown: champion, challenger and the trivial incumbents on the same users, labels and catalogue, both models scored now.

What a decision was made on is kept (`evidence_windows`), and the windows of this champion's reign are shown again with the
fresh one. A measure that fails is told by name with the reason, and the gate fails closed on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, cycle, lake, publish
from pipelines.config import Home, Settings
from pipelines.datasets import interactions, universe
from pipelines.datasets.interactions import Histories, Ids, Interactions, histories, positions, strings
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.evaluation import metrics
from pipelines.evaluation.slices import Mask
from pipelines.ranking import attribution, fairness_report, judging, two_stage
from pipelines.ranking.context import catalogue
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, evidence_lists, evidence_scoring, evidence_windows, gate, gate_incumbents, ledger, releases
from pipelines.registry.evidence_lists import Shop
from pipelines.registry.evidence_windows import About
from pipelines.registry.gate import Evidence
from pipelines.registry.gate_guardrails import Exact, Measure
from pipelines.registry.gate_windows import Scores, Window
from pipelines.retrieval.lineup import SOURCES
from pipelines.window import DAY, utc

K: Final = 10
TAIL_SHARE: Final = 0.5  # of the events before the judged window: what the most popular items gather is the head
LIGHT_QUANTILE: Final = 1 / 3  # of the judged users, those with the shortest histories

Found = TypeVar("Found")


@dataclass(frozen=True)
class Scored:
    """One model on the judged window.

    Attributes:
        ndcg: float64 [n_users].
        tail: float64 [n_users], NDCG when only tail items count; NaN for a user who chose none.
        item: int64 [n_users, K], items of the catalogue, -1 pads.
    """

    ndcg: Scores
    tail: Scores
    item: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bench:
    """What both models are measured on: the same users, labels, catalogue and slices.

    Attributes:
        truth: labels of the judged window.
        tail_truth: the same with tail items only; a row a user, possibly empty.
        users: their histories up to the cutoff.
        head: bool [n_items].
        light, cold: bool [n_users].
    """

    home: Home
    as_of: datetime
    settings: Settings
    world: Universe
    known: Interactions
    truth: Labels
    tail_truth: Labels
    users: Histories
    head: Mask
    light: Mask
    cold: Mask

    @property
    def cutoff(self) -> datetime:
        """Return the moment up to which both models may know anything."""
        return self.world.fold(JUDGE).cutoff

    def score(self, model: TwoStage) -> Scored:
        """Rank for every judged user from what was known at the cutoff, and measure."""
        lists = two_stage.rank_users(self.home, model, self.truth.user_ids, self.cutoff, K)
        item = np.where(lists.item_ids == "", -1, positions(lists.item_ids.ravel(), self.world.item_ids).reshape(lists.item_ids.shape))
        if (lists.item_ids[item < 0] != "").any():
            raise StateError("lists of a bundle", found="items that the catalogue does not have", allowed="items it knows")
        return Scored(_ndcg(item, self.truth), _ndcg(item, self.tail_truth), item)

    def in_ids(self, model: TwoStage) -> Interactions:
        """Return what was known at the cutoff in a model's own ids."""
        if np.array_equal(model.item_ids, self.world.item_ids):
            return self.known
        return interactions.load(self.home, self.cutoff, self.settings.training, item_ids=model.item_ids)

    def shop(self) -> Shop:
        """Return what lists are measured against."""
        category = catalogue(self.home, self.world.item_ids, self.cutoff).category
        return Shop(len(self.world.item_ids), self.head, category, self.users, self.settings.training.seed)

    def segments(self) -> dict[str, Mask]:
        """Return the segments that the policy names and the data has."""
        found = attribution.segments(self.home, self.users, self.truth.user_ids, self.cutoff)
        return {name: rows for name, rows in found.items() if name.partition(":")[0] in self.settings.gate.segments}


def _ndcg(item: np.ndarray[Any, Any], truth: Labels) -> Scores:
    return metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K)


def bench(home: Home, as_of: datetime, settings: Settings) -> Bench:
    """Return the judged window of a training run, with its slices."""
    world = universe.load(home, as_of)
    truth = world.labels(JUDGE)
    known = world.interactions(world.fold(JUDGE).cutoff, settings.training)
    head = _head(known)
    kept = ~head[truth.item]
    indptr = np.concatenate([[0], np.cumsum(kept)])[truth.indptr].astype(np.int64)
    tail = Labels(truth.user_ids, truth.item_ids, indptr, truth.item[kept], truth.gain[kept])
    users = histories(known, truth.user_ids)
    length = users.lengths()
    light = length <= np.quantile(length, LIGHT_QUANTILE) if len(length) else np.zeros(0, bool)
    return Bench(home, as_of, settings, world, known, truth, tail, users, head, light, length <= settings.gate.cold_events)


def _head(known: Interactions) -> Mask:
    """Return bool [n_items], the most popular items that together gather `1 - TAIL_SHARE` of the events."""
    counts = np.bincount(known.item, minlength=len(known.item_ids))
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), dtype=bool)
    head[order] = before < (1 - TAIL_SHARE) * counts.sum()
    return head


def incumbents(home: Home, as_of: datetime, names: list[str], users: Ids) -> dict[str, Scores]:
    """Return NDCG@10 of trivial recommenders for the judged users, in their order; those not measured are left out.

    Raises:
        StateError: the run was not evaluated, or for other users.
    """
    folder = judging.folder(home, as_of)
    publish.manifest(folder, verify=True)
    table = pq.read_table(folder / "per_user.parquet")
    if not np.array_equal(strings(table[c.USER_ID]), users):
        raise StateError(
            str(folder), found="other users than the judged ones", allowed="the same evaluation", hint="run the evaluation again"
        )
    there = [name for name in names if f"ndcg_at_{K}__{name}" in table.column_names]
    return {name: np.asarray(table[f"ndcg_at_{K}__{name}"].to_numpy(), dtype=np.float64) for name in there}


@dataclass
class _Measures:
    """What was measured so far, what failed and why, and what says nothing here."""

    found: dict[str, Measure] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)

    def attempt(self, names: Sequence[str], action: Callable[[], Found]) -> Found | None:
        """Return what an action finds; None where it fails, which is told under each of the names."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a measure, the gate must say so and keep the champion
            self.failed |= dict.fromkeys(names, f"{type(error).__name__}: {error}")
            return None


def weigh(home: Home, as_of: datetime, baseline: releases.Pointer, challenger: TwoStage, *, digest: str | None = None) -> Evidence:
    """Return the evidence of one decision: both models scored now, the champion never by a stored figure.

    Args:
        digest: of the challenger's bundle; that of the cycle's when None.

    Raises:
        StateError: the settings name an incumbent or a baseline that no source is.
    """
    settings = config.load(home)
    gate_incumbents.check(settings.gate, settings.retrieval.sources if baseline.version is None else SOURCES)
    judged = bench(home, as_of, settings)
    new = judged.score(challenger)
    broken = fairness_report.broken(home, as_of, settings.fairness)
    wanted = [*settings.gate.incumbents, settings.gate.baseline]
    trivial = incumbents(home, as_of, wanted, judged.truth.user_ids)
    off = {name: gate_incumbents.OFF for name in settings.gate.incumbents if name not in {*trivial, *settings.retrieval.sources}}
    moment = utc(as_of).isoformat()
    reign = _reign(home)
    first = Evidence(
        challenger=new.ndcg,
        users=judged.truth.user_ids,
        as_of=moment,
        incumbents=trivial,
        inapplicable=off,
        earlier_decisions=gate.looks(reign, baseline.version),
        seed=settings.training.seed,
        broken=broken,
        judged_by=judged.world.judged_by,
    )
    if baseline.digest is None or baseline.as_of is None:
        return first
    digest = digest or str(cycle.records(home, as_of, "bundle")[-1]["digest"])
    champion = bundle.load(home, baseline.digest)
    old = judged.score(champion)
    measures = _guarded(judged, (champion, old), (challenger, new), (baseline.digest, digest))
    slices = _slices(judged, old, new)
    segments = measures.attempt(["segments"], judged.segments) or {}
    window = judged.world.fold(JUDGE).window
    about = About(
        moment,
        window.start.isoformat(),
        window.end.isoformat(),
        baseline.digest,
        digest,
        evidence_windows.recipe(bundle.facts(home, digest)["settings"]),
    )
    kept = evidence_windows.write(home, about, Window(moment, judged.truth.user_ids, old.ndcg, new.ndcg))
    earlier = measures.attempt(
        ["earlier windows"], lambda: tuple(evidence_windows.earlier(home, reign, about, max(settings.gate.windows - 1, 0)))
    )
    return replace(
        first,
        champion=old.ndcg,
        earlier=earlier or (),
        slices=slices,
        segments={name: (old.ndcg[rows], new.ndcg[rows]) for name, rows in segments.items()},
        measures=measures.found,
        failed=measures.failed,
        inapplicable=off | measures.inapplicable,
        champion_age_days=(utc(as_of) - utc(baseline.as_of)) / DAY,
        kept=kept,
    )


def _slices(judged: Bench, old: Scored, new: Scored) -> dict[str, tuple[Scores, Scores]]:
    has_tail = ~np.isnan(old.tail)
    return {
        "light_users": (old.ndcg[judged.light], new.ndcg[judged.light]),
        "cold_users": (old.ndcg[judged.cold], new.ndcg[judged.cold]),
        "tail_items": (old.tail[has_tail], new.tail[has_tail]),
    }


def _guarded(judged: Bench, before: tuple[TwoStage, Scored], after: tuple[TwoStage, Scored], digests: tuple[str, str]) -> _Measures:
    """Measure what is guarded beside NDCG."""
    found, asked_for = _Measures(), judged.settings.gate.guardrails
    shop = judged.shop()
    of_lists = ("coverage", "tail_exposure", "gini", "diversity", "miscalibration", "empty_lists")
    if set(of_lists) & set(asked_for):
        both = found.attempt(of_lists, lambda: [evidence_lists.of(scored.item, shop) for _, scored in (before, after)])
        if both:
            measures, silent = evidence_lists.compared(both[0], both[1], shop)
            found.found |= measures
            found.inapplicable |= silent
    if "bundle_size" in asked_for:
        size = found.attempt(["bundle_size"], lambda: _sizes(judged.home, *digests))
        found.found |= {"bundle_size": size} if size else {}
    _of_scores(judged, before[0], after[0], found)
    return found


def _sizes(home: Home, before: str, after: str) -> Exact:
    """Return the bytes of both bundles, the first as if it had learnt from as many events: what has met more of the shop holds more."""

    def measured(digest: str) -> tuple[float, int]:
        size = sum(int(entry["bytes"]) for entry in publish.manifest(bundle.folder(home, digest)).files.values())
        with lake.connect(home, before=utc(bundle.facts(home, digest)["cutoff"])) as db:
            (events,) = db.execute("SELECT count(*) FROM events").fetchone() or (0,)
        return float(size), int(events)

    (old, learnt), (new, learns) = measured(before), measured(after)
    return Exact(old * max(1.0, learns / max(learnt, 1)), new)


def _of_scores(judged: Bench, before: TwoStage, after: TwoStage, found: _Measures) -> None:
    """Measure what the models' scores are like and what they take, on a sample of the judged users."""
    names = [name for name in ("latency", "null_rates", "score_ties", "score_psi", "ece") if name in judged.settings.gate.guardrails]
    if not names:
        return
    seed, n = judged.settings.training.seed, judged.truth.n_users
    rows = np.sort(np.random.default_rng(seed).permutation(n)[: evidence_scoring.SAMPLE])
    truth, cutoff = judged.truth.take(rows), judged.cutoff
    both = found.attempt(
        names,
        lambda: [evidence_scoring.ask(judged.home, model, judged.in_ids(model), truth.user_ids, cutoff) for model in (before, after)],
    )
    if not both:
        return
    truths = evidence_scoring.in_ids(truth, before.item_ids), evidence_scoring.in_ids(truth, after.item_ids)
    old, new = both
    scored = found.attempt(
        [name for name in names if name in {"score_ties", "score_psi"}],
        lambda: [evidence_scoring.scores(old), evidence_scoring.scores(new)],
    )
    made: dict[str, Callable[[], Measure | None]] = {
        "latency": lambda: evidence_scoring.timed(old, new),
        "null_rates": lambda: evidence_scoring.missing(judged.home, judged.as_of, new, truths[1]),
        "ece": lambda: evidence_scoring.calibration(old, new, truths, seed),
    }
    if scored:
        made["score_ties"] = lambda: Exact(
            0.0, evidence_scoring.tied(new, scored[1])
        )  # bounded as it stands: the champion may be tied, too
        made["score_psi"] = lambda: evidence_scoring.score_psi((old, scored[0]), (new, scored[1]))
    for name in names:
        measure = found.attempt([name], made[name]) if name in made else None
        if measure is not None:
            found.found[name] = measure
        elif name not in found.failed:
            found.inapplicable[name] = evidence_scoring.NO_PROBABILITIES


def _reign(home: Home) -> list[Mapping[str, Any]]:
    """Return the ledger's decisions since the pointer last moved, oldest first."""
    entries: list[Mapping[str, Any]] = []
    for entry in releases.history(home):
        if entry["kind"] in releases.REIGNS:
            entries = []
        elif ledger.spoken(entry):
            entries.append(entry)
    return entries
