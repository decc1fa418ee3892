"""How good the champion's lists are now: NDCG@10 on the newest window whose labels are all known, from what was known at its start.

    reports/quality/<as_of>.json                     the window's means with their intervals, and the comparison
    reports/quality/users/<digest>/<as_of>.parquet   user_id, champion, known, popular: NDCG@10 in [0, 1], a row a user

Two rivals stand beside it on the same users: what sold best in the week before the window, fitted anew each time, so that a
quiet or a feverish week, which moves both, is no fall; and the champion itself with labels on items that it knew, so that a new
catalogue is no change of taste. A fall is a falling lead over popularity; users of both windows count as one sample twice (their
covariance is taken off), not as two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from pipelines import columns as c
from pipelines import config, cycle, publish
from pipelines.config import Home, Settings
from pipelines.datasets import interactions, labels
from pipelines.datasets.interactions import Ids, histories, positions, strings
from pipelines.datasets.labels import Labels
from pipelines.decision_policies import TriagePolicy
from pipelines.errors import NotEnoughData
from pipelines.evaluation import metrics, paired
from pipelines.ranking import two_stage
from pipelines.registry import bundle, outputs, releases
from pipelines.retrieval.popular import Popular
from pipelines.window import DAY, Window, stamp, utc

K: Final = 10
POPULAR_DAYS: Final = 7.0
MEASURES: Final = ("champion", "known", "popular")

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """One window.

    Attributes:
        user_ids: sorted.
        champion: float64 [n_users], NDCG@10 of its lists.
        known, popular: float64 [n_users], of its lists and of last week's best sellers where labels on items the champion knew alone
            count; NaN without any.
    """

    user_ids: Ids
    champion: Doubles
    known: Doubles
    popular: Doubles


@dataclass(frozen=True)
class Fall:
    """By how much the champion's lead over popularity differs between two windows.

    Attributes:
        before, now: NDCG@10 on items it knew.
        difference: of the leads, now less before; upper, what it is below with the policy's confidence. NaN where unmeasured.
        users, users_before, users_in_both: measured.
    """

    before: float
    now: float
    difference: float
    upper: float
    users: int
    users_before: int
    users_in_both: int

    def fell(self, policy: TriagePolicy) -> bool:
        """Tell whether the champion fell, by enough and for sure; never where too few users were measured."""
        enough = min(self.users, self.users_before) >= policy.min_quality_users
        return enough and self.upper < 0 and self.difference <= -policy.min_quality_fall * self.before and self.now < self.before

    def says(self) -> str:
        """Return it as a sentence."""
        if not np.isfinite(self.difference):
            return f"the champion's NDCG@10 on fresh labels is not comparable yet ({self.users} users now, {self.users_before} before)"
        return (
            f"NDCG@10 of the champion on items it knows {self.before:.4f} -> {self.now:.4f}; its lead over last week's best sellers"
            f" {self.difference:+.4f}, at most {self.upper:+.4f}, on {self.users} users now and {self.users_before} before ({self.users_in_both} in both)"
        )


def compare(before: Measured, now: Measured, confidence: float) -> Fall:
    """Return how the champion's lead over popularity changed. Pure.

    The variance of a difference of two means that share users is s1^2/n1 + s2^2/n2 - 2 n12 c12 / (n1 n2).
    """
    first, second = _leads(before), _leads(now)
    lead = [np.array(list(values.values())) for values in (first, second)]
    means = [float(np.nanmean(one.known)) if np.isfinite(one.known).any() else float("nan") for one in (before, now)]
    both = sorted(first.keys() & second.keys())
    sizes = (len(second), len(first), len(both))
    if min(sizes[:2]) < 2:
        return Fall(means[0], means[1], float("nan"), float("nan"), *sizes)
    variance = sum(values.var(ddof=1) / len(values) for values in lead)
    if len(both) > 1:
        shared = np.cov([first[user] for user in both], [second[user] for user in both])[0, 1]
        variance -= 2 * len(both) * shared / (len(first) * len(second))
    difference = float(lead[1].mean() - lead[0].mean())
    reach = float(stats.norm.ppf(confidence) * np.sqrt(max(variance, 0.0)))
    return Fall(means[0], means[1], difference, difference + reach, *sizes)


def _leads(one: Measured) -> dict[str, float]:
    """Return what the champion is ahead of popularity for each user of whom both were measured."""
    lead = one.known - one.popular
    there = np.isfinite(lead)
    return dict(zip(one.user_ids[there].tolist(), lead[there].tolist(), strict=True))


def window(as_of: datetime, settings: Settings) -> tuple[datetime, Window]:
    """Return the newest window that is over at a moment, and the cutoff of its lists."""
    horizon, gap = settings.training.horizon_days * DAY, settings.training.label_gap_days * DAY
    return utc(as_of) - horizon - gap, Window(utc(as_of) - horizon, utc(as_of))


def users_file(home: Home, digest: str, as_of: datetime) -> Path:
    """Return where the users of one window of one bundle are kept."""
    return home.reports / "quality" / "users" / digest / f"{stamp(as_of)}.parquet"


def report_file(home: Home, as_of: datetime) -> Path:
    """Return where a moment's quality is kept."""
    return home.reports / "quality" / f"{stamp(as_of)}.json"


def measure(home: Home, as_of: datetime, digest: str) -> Measured:
    """Measure a bundle on the newest window before a moment; read from its file where that was done.

    Raises:
        StateError: the bundle is damaged, or the features of the window's start were never built.
        NotEnoughData: nobody has a label in the window.
    """
    file = users_file(home, digest, as_of)
    if not file.is_file():
        publish.write_parquet(file, _table(_measure(home, as_of, digest)))
    table = pq.read_table(file)
    return Measured(strings(table[c.USER_ID]), *(np.asarray(table[name].to_numpy(), dtype=np.float64) for name in MEASURES))


def _table(found: Measured) -> pa.Table:
    columns = {name: getattr(found, name) for name in MEASURES}
    return pa.table({c.USER_ID: pa.array(found.user_ids, pa.string()), **columns})


def _measure(home: Home, as_of: datetime, digest: str) -> Measured:
    settings = config.load(home)
    cutoff, days = window(as_of, settings)
    model, known_until = bundle.load(home, digest), utc(bundle.facts(home, digest)["cutoff"])
    everyone = labels.labels(home, days, settings.training, before=as_of, enough=settings.gate.min_users)
    if not everyone.n_users:
        raise NotEnoughData(f"quality as of {utc(as_of):%Y-%m-%d}", found="no label in the window", allowed="users with a positive")
    chosen = positions(outputs.lowest(everyone.user_ids, settings.triage.quality_users), everyone.user_ids)
    truth = everyone.take(chosen)
    lists = two_stage.rank_users(home, model, truth.user_ids, cutoff, K)
    past = interactions.load(home, cutoff, settings.training)
    rival = Popular(window_days=POPULAR_DAYS).fit(past)
    sold = rival.retrieve(histories(past, truth.user_ids), K, exclude_seen=settings.training.exclude_seen).item
    sold_ids = np.where(sold < 0, "", past.item_ids[sold])
    met = _met(home, settings, known_until, truth.item_ids)
    known = np.where(np.add.reduceat(truth.gain * met[truth.item], truth.indptr[:-1]) > 0, 1.0, np.nan)
    of_known = truth.gain * met[truth.item]
    return Measured(
        truth.user_ids,
        _ndcg(lists.item_ids, truth, truth.gain),
        _ndcg(lists.item_ids, truth, of_known) * known,
        _ndcg(sold_ids, truth, of_known) * known,
    )


def _ndcg(item_ids: npt.NDArray[np.str_], truth: Labels, gain: npt.NDArray[np.floating[Any]]) -> Doubles:
    """Return NDCG@10 of some lists ("" pads) by some gains of the labels; an item without a label is a miss at a place beyond them."""
    found = positions(item_ids.ravel(), truth.item_ids).reshape(item_ids.shape)
    missed = np.where(found >= 0, found, len(truth.item_ids) + np.arange(item_ids.shape[1]))
    return metrics.ndcg(metrics.judge(np.where(item_ids == "", -1, missed), truth.indptr, truth.item, gain), K)


def _met(home: Home, settings: Settings, until: datetime, item_ids: Ids) -> npt.NDArray[np.float32]:
    """Return float32 [n_items], 1 for items with an event before a moment."""
    known = interactions.load(home, until, settings.training, item_ids=item_ids)
    return (np.bincount(known.item, minlength=len(item_ids)) > 0).astype(np.float32)


def check(home: Home, as_of: datetime) -> Fall | None:
    """Measure the champion's newest window, hold it against the one it was judged on, and keep the figures; None without a fresh one.

    A champion that was trained for this moment has been judged on this very window: there is nothing newer to say.

    Raises:
        StateError: the champion's bundle is damaged, or features are missing.
    """
    with cycle.stage(home, as_of, "quality") as record:
        champion = releases.champion_of(home, as_of)
        record |= {"version": None if champion is None else champion.version, "reasons": []}
        if champion is None:
            record["reasons"] = ["nothing that is still there was released up to this day"]
            return None
        settings = config.load(home)
        try:
            now = measure(home, as_of, champion.digest)
        except NotEnoughData as nobody:
            record["reasons"] = [str(nobody)]
            return None
        figures: dict[str, Any] = {"as_of": utc(as_of).isoformat(), "version": champion.version}
        for name in MEASURES:
            found = paired.interval(getattr(now, name), settings.gate.confidence, settings.training.seed)
            told = {"ndcg_at_10": found.mean, "lower": found.lower, "upper": found.upper}
            figures[name] = {**{which: _known(value) for which, value in told.items()}, "n_users": found.n}
        fall = None
        if utc(as_of) > utc(champion.as_of):
            fall = compare(measure(home, utc(champion.as_of), champion.digest), now, settings.triage.quality_confidence)
            figures["fall"] = {name: _known(value) for name, value in asdict(fall).items()}
            figures["fell"], record["reasons"] = fall.fell(settings.triage), [fall.says()]
        publish.write_json(report_file(home, as_of), figures)
        record.update(figures)
    return fall


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None  # JSON has no NaN
