"""A real shop for the gate's benchmark: trained once by the real stages, its ranker trained again dozens of times, all judged on weeks none saw.

The simulated shop runs through features, sources, blend and training rows as any does. Then the ranker alone is trained again:
with another draw of the ignored candidates and another seed, on lists drawn again with replacement (bootstrap), or with its knobs moved a little.
No retrain is better than another but by chance. Every one ranks four weeks that follow, for everyone who did something in them.
What that measures is kept beside the shop, so that a second run of the benchmark only decides.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipelines import config, lake
from pipelines.config import Home
from pipelines.datasets import interactions, universe
from pipelines.datasets.interactions import histories
from pipelines.datasets.labels import Labels, labels
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics
from pipelines.features import build, store
from pipelines.ranking import attribution, judging, rankers, training, training_set, two_stage
from pipelines.ranking.context import catalogue
from pipelines.ranking.protocol import Ranker, RankingRows
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import evidence, evidence_lists, evidence_scoring
from pipelines.registry.evidence_scoring import Asked
from pipelines.retrieval import blend, fitting
from pipelines.sources.request import World
from pipelines.sources.simulator import Shop
from pipelines.window import DAY, Window, utc

START: Final = utc("2025-01-06")
AS_OF: Final = START + timedelta(days=35)
WEEKS: Final = 4  # that are judged; the first is the run's own judged window
WIDTH: Final = 20  # places of a list that are kept, so that an item may leave the first ten
K: Final = 10
TIMED: Final = 24
INCUMBENTS: Final = ("popular_7d", "sequence_rules", "item_knn")
SETTINGS: Final = """
[retrieval]
sources = ["popular", "popular_7d", "item_knn", "sequence_rules", "repeat"]
[training]
max_users_per_window = 1500
[ranking]
n_rounds = 60
num_threads = 1
[drift]
min_rows = 60
"""


@dataclass(frozen=True)
class Week:
    """What every retrain did in one week. R retrains, n users.

    Attributes:
        user: int64 [n], the same number for the same user in every week.
        ndcg, tail: float64 [R, n]; the second is NaN for users who took no tail item.
        item: int32 [R, n, WIDTH], -1 pads; gain: float32 alike, 0 where the item was not taken.
        ideal: float64 [n], the ideal DCG at ten.
        light, cold: bool [n]; segments: name -> bool [n]; incumbents: name -> float64 [n].
        nulls: before, after, error, each float64 [n_features].
        category: int32 [n_items]; head: bool [n_items].
        scores: int64 [R, 10], candidates by their standardised score; ties: float64 [R].
    """

    user: npt.NDArray[np.int64]
    ndcg: npt.NDArray[np.float64]
    tail: npt.NDArray[np.float64]
    item: npt.NDArray[np.int32]
    gain: npt.NDArray[np.float32]
    ideal: npt.NDArray[np.float64]
    light: npt.NDArray[np.bool_]
    cold: npt.NDArray[np.bool_]
    segments: dict[str, npt.NDArray[np.bool_]]
    incumbents: dict[str, npt.NDArray[np.float64]]
    nulls: npt.NDArray[np.float64]
    category: npt.NDArray[np.int32]
    head: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.int64]
    ties: npt.NDArray[np.float64]

    def shop(self, users: interactions.Histories) -> evidence_lists.Shop:
        """Return what lists are measured against."""
        return evidence_lists.Shop(len(self.head), self.head, self.category, users, 7)


@dataclass(frozen=True)
class Judged:
    """The weeks, and what each retrain takes.

    Attributes:
        kinds: [R], how each was trained.
        seconds: float64 [R, TIMED], of a user's list; bytes_: float64 [R], of the bundle.
        histories: of each week's users.
    """

    weeks: list[Week]
    histories: list[interactions.Histories]
    kinds: list[str]
    seconds: npt.NDArray[np.float64]
    bytes_: npt.NDArray[np.float64]
    features: tuple[str, ...]


def trained(folder: Path, users: int, items: int, events: int) -> Home:
    """Return the shop's state folder, trained once."""
    home = Home(folder)
    if (folder / "trained").is_file():
        return home
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "reloop.toml").write_text(SETTINGS, encoding="utf-8")
    world = Shop(World(seed=7, users=users, items=items, events_per_day=events, shifts=()))
    window = Window(START, AS_OF + (WEEKS - 1) * 7 * DAY)
    lake.land_tables(home, events=world.events(window), items=world.items(window), users=world.users(window), source="simulated")
    for week in range(WEEKS):
        build.build(home, AS_OF + week * 7 * DAY)
    store.apply(home)
    for source in config.load(home).retrieval.sources:
        fitting.fit(home, AS_OF, source)
    blend.blend(home, AS_OF)
    training_set.build(home, AS_OF)
    training.train(home, AS_OF)
    judging.evaluate(home, AS_OF)
    (folder / "trained").write_text("yes", encoding="utf-8")
    return home


KINDS: Final = ("seed", "bootstrap", "jitter")


def retrained(ranker: Any, rows: RankingRows, number: int) -> Ranker:
    """Return a ranker of the same worth: another draw of rows, a bootstrap of lists, or knobs moved by up to a fifth, in turns."""
    rng = np.random.default_rng(1000 + number)
    seeded = replace(ranker, seed=1000 + number, feature_share=0.9)
    kind = KINDS[number % len(KINDS)]
    if kind == "seed":
        kept = (rows.gain > 0) | (rng.random(len(rows.gain)) < 2 / 3)
        return seeded.fit(_rows(rows, np.flatnonzero(kept)))
    if kind == "bootstrap":
        starts = np.cumsum(rows.group) - rows.group
        lists = np.sort(rng.integers(0, len(rows.group), len(rows.group)))
        picked = np.concatenate([np.arange(starts[one], starts[one] + rows.group[one]) for one in lists])
        return seeded.fit(replace(_taken(rows, picked), group=rows.group[lists], window=rows.window[lists]))
    knobs = {
        "learning_rate": ranker.learning_rate * rng.uniform(0.8, 1.2),
        "n_rounds": int(ranker.n_rounds * rng.uniform(0.8, 1.2)),
        "num_leaves": int(ranker.num_leaves * rng.uniform(0.8, 1.2)),
    }
    return replace(seeded, **knobs).fit(rows)


def retrains(home: Home, kept: Path, count: int) -> list[tuple[str, Ranker]]:
    """Return the retrains with how each was made; one that was fitted before is read."""
    rows, ranker = None, rankers.chosen(config.load(home).ranking)
    found = []
    for number in range(count):
        folder = kept / f"ranker-{number}"
        if not (kept / f"ranker-{number}.whole").is_file():
            rows = rows or training_set.load(home, AS_OF)
            folder.mkdir(parents=True, exist_ok=True)
            rankers.save(folder, retrained(ranker, rows, number))
            (kept / f"ranker-{number}.whole").write_text("yes", encoding="utf-8")
            print(f"  retrain {number + 1} of {count}", flush=True)
        found.append((KINDS[number % len(KINDS)], rankers.load(folder)))
    return found


def _taken(rows: RankingRows, picked: npt.NDArray[np.int64]) -> RankingRows:
    return RankingRows(
        rows.features[picked],
        rows.names,
        rows.gain[picked],
        rows.group,
        rows.window,
        None if rows.position is None else rows.position[picked],
        None if rows.weight is None else rows.weight[picked],
        {name: column[picked] for name, column in rows.outcomes.items()},
    )


def _rows(rows: RankingRows, picked: npt.NDArray[np.int64]) -> RankingRows:
    """Return some of the rows; every list keeps at least its positives."""
    of = np.repeat(np.arange(len(rows.group)), rows.group)[picked]
    return replace(_taken(rows, picked), group=np.bincount(of, minlength=len(rows.group)).astype(np.int32))


def judged(home: Home, count: int) -> Judged:
    """Train again and judge every retrain in every week; read what was kept, where it was done before."""
    model = two_stage.of_run(home, AS_OF)
    settings = config.load(home)
    weeks, pasts = [], []
    base = universe.load(home, AS_OF)
    everyone = interactions.load(home, AS_OF + (WEEKS - 1) * 7 * DAY, settings.training).user_ids
    kept = home.root / f"judged-{count}"
    fitted: list[tuple[str, Ranker]] = []
    if not (kept / "done").is_file():
        fitted = retrains(home, kept, count)
    names: tuple[str, ...] = model.ranker.features if model.ranker else ()
    for number in range(WEEKS):
        cutoff = AS_OF + (number - 1) * 7 * DAY
        window = Window(cutoff, cutoff + 7 * DAY)
        known = interactions.load(home, cutoff, settings.training, item_ids=model.item_ids)
        truth = base.labels(JUDGE) if number == 0 else labels(home, window, settings.training, before=window.end, item_ids=model.item_ids)
        users = histories(known, truth.user_ids)
        pasts.append(users)
        file = kept / f"week-{number}.npz"
        if not file.is_file():
            week = _week(home, model, [ranker for _, ranker in fitted], known, truth, cutoff=cutoff, everyone=everyone)
            nested = {"segments": week.segments, "incumbents": week.incumbents}
            flat = {name: value for name, value in vars(week).items() if name not in nested}
            flat |= {f"{kind}/{name}": value for kind, group in nested.items() for name, value in group.items()}
            np.savez(file, **flat)
        weeks.append(_read(file))
        if number == 0 and not (kept / "takes.npz").is_file():
            np.savez(
                kept / "takes.npz", **_takes(home, model, fitted, known, truth, cutoff=cutoff), kinds=np.array([kind for kind, _ in fitted])
            )
    (kept / "done").write_text("yes", encoding="utf-8")
    with np.load(kept / "takes.npz") as takes:
        return Judged(weeks, pasts, [str(kind) for kind in takes["kinds"]], takes["seconds"], takes["bytes_"], names)


def _read(file: Path) -> Week:
    with np.load(file) as found:
        flat = {name: found[name] for name in found.files}
    nested = {
        kind: {name.partition("/")[2]: value for name, value in flat.items() if name.startswith(f"{kind}/")}
        for kind in ("segments", "incumbents")
    }
    return Week(**{name: value for name, value in flat.items() if "/" not in name}, **nested)


def _week(
    home: Home,
    model: TwoStage,
    fitted: list[Ranker],
    known: Any,
    truth: Labels,
    *,
    cutoff: datetime,
    everyone: npt.NDArray[np.str_],
) -> Week:
    """Rank one week with every retrain, features made once for all."""
    asked = evidence_scoring.ask(home, model, known, truth.user_ids, cutoff)
    n = truth.n_users
    many = two_stage.scores(fitted, asked.proposed, asked.context)
    lists = [asked.proposed.ranked(score, n, WIDTH)[0] for score in many]
    shelf = np.stack(lists).astype(np.int32)
    measured = [metrics.judge(item, truth.indptr, truth.item, truth.gain) for item in lists]
    head = evidence._head(known)
    wanted = np.where(head[truth.item], 0, truth.gain)
    ideal = _ideal(truth)
    length = asked.users.lengths()
    trivial = {name: model.retrievers[name].retrieve(asked.users, K, exclude_seen=False).item for name in (*INCUMBENTS, "popular")}
    sample = np.sort(np.random.default_rng(7).permutation(n)[: evidence_scoring.SAMPLE])
    small = evidence_scoring.ask(home, model, known, truth.user_ids[sample], cutoff)
    nulls = evidence_scoring.missing(home, AS_OF, small, truth.take(sample))
    standard = [evidence_scoring._standardised(asked.proposed, score) for score in many]
    edges = np.unique(np.quantile(standard[0], np.arange(1, 10) / 10))
    return Week(
        user=np.searchsorted(everyone, truth.user_ids),
        ndcg=np.stack([metrics.ndcg(one, K) for one in measured]),
        tail=np.stack([metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, wanted), K) for item in lists]),
        item=shelf,
        gain=np.stack([one.gain for one in measured]).astype(np.float32),
        ideal=ideal,
        light=length <= np.quantile(length, evidence.LIGHT_QUANTILE),
        cold=length <= 2,
        segments=attribution.segments(home, asked.users, truth.user_ids, cutoff),
        incumbents={name: metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K) for name, item in trivial.items()},
        nulls=np.stack([nulls.before, nulls.after, nulls.error]),
        category=catalogue(home, model.item_ids, cutoff).category,
        head=head,
        scores=np.stack([np.bincount(np.searchsorted(edges, one, side="right"), minlength=len(edges) + 1) for one in standard]),
        ties=np.array([evidence_scoring.tied(asked, score) for score in many]),
    )


def _ideal(truth: Labels) -> npt.NDArray[np.float64]:
    """Return float64 [n], the DCG at ten of the best list there is."""
    row = truth.row_of_label()
    order = np.lexsort((-truth.gain, row))
    place = np.arange(len(row)) - truth.indptr[row]
    worth = np.where(place < K, truth.gain[order] / np.log2(np.minimum(place, K) + 2), 0.0)
    return np.bincount(row, worth, truth.n_users)


def _takes(home: Home, model: TwoStage, fitted: list[tuple[str, Ranker]], known: Any, truth: Labels, *, cutoff: datetime) -> dict[str, Any]:
    """Return the seconds and bytes of every retrain."""
    sample = truth.user_ids[np.sort(np.random.default_rng(7).permutation(truth.n_users)[:TIMED])]
    base = evidence_scoring.ask(home, model, known, sample, cutoff)
    asked: list[Asked] = [replace(base, model=replace(model, ranker=ranker)) for _, ranker in fitted]
    seconds = np.stack([evidence_scoring.timed(base, one, TIMED).after for one in asked])
    model.save(home.root / "tmp" / "model")
    whole = sum(file.stat().st_size for file in (home.root / "tmp" / "model").rglob("*") if file.is_file())
    old = sum(len(content) for content in model.ranker.dump().values()) if model.ranker else 0
    sizes = [float(whole - old + sum(len(content) for content in ranker.dump().values())) for _, ranker in fitted]
    return {"seconds": seconds, "bytes_": np.array(sizes)}
