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
from pipelines.evaluation import metrics
from pipelines.lake import outcomes
from pipelines.monitoring import quality
from pipelines.ranking import two_stage
from pipelines.registry import bundle, ledger
from pipelines.sources.simulator import Shop
from pipelines.sources.simulator.visits import START as BEGIN
from pipelines.window import DAY, Window, utc

ATTRIBUTION_HOURS = 24.0
EVERYTHING, UNPROMPTED, UNTOUCHED, TRUTH = "everything", "what no list led to", "nor on an item shown that day", "taste met (the truth)"


def pair(home: Home, as_of: datetime) -> tuple[str, str] | None:
    """Return the digests of champion and challenger of a decision; None where there were not two, or one was collected since."""
    digests = {moment: str(record["digest"]) for moment, record in cycle.every(home, "bundle") if record["state"] == "done"}
    entries = ledger.history(home)
    made = {entry["champion_after"]: digests[utc(entry["as_of"])] for entry in entries if entry["kind"] in ledger.REIGNS}
    before = [entry["champion_before"] for entry in entries if utc(entry["as_of"]) == as_of and entry.get("champion_before") is not None]
    if not before or as_of not in digests:
        return None
    both = made[before[-1]], digests[as_of]
    return both if all((home.bundles / digest).is_dir() for digest in both) else None


def compared(home: Home, shop: Shop, as_of: datetime, champion: str, challenger: str) -> dict[str, dict[str, float]]:
    """Return, by kind of label and in truth, both models' means, the challenger's gain in percent and half its 95% interval."""
    cutoff, window = quality.window(as_of, config.load(home))
    everything, kinds = _kinds(home, window, as_of)
    scored: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in (*kinds, TRUTH)}
    for digest in (champion, challenger):
        lists = two_stage.rank_users(home, bundle.load(home, digest), everything.user_ids, cutoff, K).item_ids
        known = interactions.positions(lists.ravel(), everything.item_ids).reshape(lists.shape)
        place = np.where(known >= 0, known, len(everything.item_ids) + np.arange(lists.shape[1]))  # nobody's label: a miss
        for name, truth in kinds.items():
            scored[name].append(metrics.ndcg(metrics.judge(place, truth.indptr, truth.item, truth.gain), K))
        scored[TRUTH].append(worth(shop, window, everything.user_ids, lists))
    return {name: _gain(*both) for name, both in scored.items()}


def _kinds(home: Home, window: Window, as_of: datetime) -> tuple[Labels, dict[str, Labels]]:
    """Return the labels of a window, and the same by kind, a row for each of the same users."""
    settings = config.load(home).training
    read = interactions.read(home, as_of, window=window)
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
    """Return float64 [n_users], how much of each one's taste a list meets at the end of a window: 0 a random shelf, 1 the best ten."""
    truth = shop.truth(BEGIN + (window.end - DAY - START))  # of its last day: people come and go with the days
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
