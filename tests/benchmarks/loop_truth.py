"""What the gate would say of champion and challenger by each kind of label, beside what both are truly worth.

The people of the closed loop have tastes that are known (`simulator.truth`), so that a judgement by what they did can be held
against one by what they like.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from closed_loop import START, K
from scipy import stats

from pipelines import columns as c
from pipelines import config, cycle
from pipelines.config import Home
from pipelines.datasets import interactions, labels
from pipelines.datasets.interactions import Dense
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.evaluation import metrics
from pipelines.lake import outcomes
from pipelines.ranking import two_stage
from pipelines.registry import bundle, evidence, ledger
from pipelines.sources.simulator import Shop
from pipelines.sources.simulator.visits import START as BEGIN
from pipelines.window import DAY, Window, utc

ATTRIBUTION_HOURS = 24.0
EVERYTHING, UNPROMPTED, UNTOUCHED, TRUTH = "everything", "what no list led to", "nor on an item shown that day", "taste met (the truth)"


def decisions(home: Home) -> list[tuple[datetime, str, str]]:
    """Return when a challenger stood before a champion, and the digests of both."""
    digests = {moment: str(record["digest"]) for moment, record in cycle.every(home, "bundle") if record["state"] == "done"}
    made = {entry["champion_after"]: digests[utc(entry["as_of"])] for entry in ledger.history(home) if entry["kind"] in ledger.REIGNS}
    found = {}
    for entry in ledger.history(home):
        if entry.get("champion_before") is not None and utc(entry["as_of"]) in digests:
            found[utc(entry["as_of"])] = made[entry["champion_before"]]
    return [(moment, champion, digests[moment]) for moment, champion in sorted(found.items())]


def compared(home: Home, shop: Shop, as_of: datetime, champion: str, challenger: str) -> dict[str, dict[str, float]]:
    """Return, by kind of label and in truth, both models' means, the challenger's gain in percent and half its 95% interval."""
    settings = config.load(home)
    bench = evidence.bench(home, as_of, settings)
    window = bench.world.fold(JUDGE).window
    everything, kinds = _kinds(home, window, as_of, bench.world.item_ids)
    scored: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in (*kinds, TRUTH)}
    for digest in (champion, challenger):
        lists = two_stage.rank_users(home, bundle.load(home, digest), everything.user_ids, bench.cutoff, K).item_ids
        place = interactions.positions(lists.ravel(), bench.world.item_ids).reshape(lists.shape)
        for name, truth in kinds.items():
            scored[name].append(metrics.ndcg(metrics.judge(place, truth.indptr, truth.item, truth.gain), K))
        scored[TRUTH].append(worth(shop, window, everything.user_ids, lists))
    return {name: _gain(*both) for name, both in scored.items()}


def _kinds(home: Home, window: Window, as_of: datetime, item_ids: npt.NDArray[np.str_]) -> tuple[Labels, dict[str, Labels]]:
    """Return the labels of a window, and the same by kind, a row for each of the same users."""
    settings = config.load(home).training
    read = interactions.read(home, as_of, item_ids=item_ids, window=window)
    with outcomes.connect(home, window, ATTRIBUTION_HOURS) as db:
        touched = db.sql(f"SELECT DISTINCT {c.USER_ID}, {c.ITEM_ID} FROM events JOIN credited USING ({c.EVENT_ID}, {c.ITEM_ID})").fetchall()
    shown = {(user, item) for user, item in touched}
    pairs = zip(read.user_ids[read.events["user"].to_numpy()], read.item_ids[read.events["item"].to_numpy()], strict=True)
    untouched = pa.array([(str(user), str(item)) not in shown for user, item in pairs])
    own = pc.invert(read.events["prompted"])

    def of(mask: Any) -> Labels:
        return labels.of(interactions.arrays(Dense(read.events.filter(mask), read.user_ids, read.item_ids), as_of, settings))

    everything = of(pa.array([True] * len(read.events)))
    return everything, {
        EVERYTHING: everything,
        UNPROMPTED: _in_rows(of(own), everything),
        UNTOUCHED: _in_rows(of(pc.and_(own, untouched)), everything),
    }


def _in_rows(some: Labels, everything: Labels) -> Labels:
    """Return labels with a row for every user of others; those without any have an empty one."""
    length = np.zeros(everything.n_users, np.int64)
    length[interactions.positions(some.user_ids, everything.user_ids)] = np.diff(some.indptr)
    return Labels(everything.user_ids, some.item_ids, np.concatenate([[0], np.cumsum(length)]), some.item, some.gain)


def worth(shop: Shop, window: Window, user_ids: npt.NDArray[np.str_], lists: npt.NDArray[np.str_]) -> npt.NDArray[np.float64]:
    """Return float64 [n_users], how much of each one's taste a list meets in the middle of a window: 0 a random shelf, 1 the best ten."""
    truth = shop.truth(BEGIN + (window.start - START) + (window.end - window.start) // 2 // DAY * DAY)
    items = {item: at for at, item in enumerate(truth.item_ids.to_pylist())}
    users = {user: at for at, user in enumerate(truth.user_ids.to_pylist())}
    everything, sale = np.arange(len(items)), np.flatnonzero(truth.available)
    found = []
    for user, row in zip(user_ids, lists, strict=True):
        utility = truth.utility(np.full(len(everything), users[str(user)]), everything)
        random, best = utility[sale].mean(), np.sort(utility[sale])[-K:].mean()
        there = [items[item] for item in row.tolist() if item in items and truth.available[items[item]]]
        shown = [*utility[there], *[random] * (K - len(there))]
        found.append((np.mean(shown) - random) / (best - random))
    return np.array(found)


def _gain(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> dict[str, float]:
    there = np.isfinite(before) & np.isfinite(after)
    difference, mean = (after - before)[there], before[there].mean()
    reach = stats.norm.ppf(0.975) * difference.std(ddof=1) / np.sqrt(there.sum())
    return {
        "users": int(there.sum()),
        "champion": round(float(mean), 4),
        "challenger": round(float(after[there].mean()), 4),
        "gain %": round(float(100 * difference.mean() / mean), 2),
        "half interval %": round(float(100 * reach / mean), 2),
    }
