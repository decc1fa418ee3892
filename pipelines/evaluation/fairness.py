"""Who gets attention, and whom lists serve worse: exposure of item groups and providers, tastes met, popularity's pull, quality by user group.

Every figure is {value, lower, upper, n} with a 95% interval over users drawn again (`resampled`). None of it says what is fair;
`verdict` compares it with bounds that somebody set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.evaluation import resampled, taste
from pipelines.evaluation.resampled import Figure
from pipelines.evaluation.slices import Mask

Doubles: TypeAlias = npt.NDArray[np.float64]
LARGEST: Final = 10  # providers that are named
MIN_USERS: Final = 20  # in a group whose quality is compared


@dataclass(frozen=True)
class Lists:
    """Lists and what is known of their users and items.

    Attributes:
        item: int32 [n_users, m], best first, -1 pads.
        ndcg: float64 [n_users], NaN where unmeasured.
        taken: float64 [n_users, n_items] sparse, the gain of what each user took in the judged window.
        popularity: float64 [n_items], share of users who had met each item.
        history_popularity: float64 [n_users], its mean over each user's history; NaN without one.
        category: int [n_items], -1 where unknown; taste: float64 [n_users, n_categories].
        parts: item group -> bool [n_items]; groups: user group -> bool [n_users].
        provider: int [n_items], -1 where unknown; providers: their names.
    """

    item: npt.NDArray[np.integer]
    ndcg: Doubles
    taken: sparse.csr_matrix
    popularity: Doubles
    history_popularity: Doubles
    category: npt.NDArray[np.integer]
    taste: Doubles
    parts: Mapping[str, Mask]
    groups: Mapping[str, Mask]
    provider: npt.NDArray[np.integer]
    providers: npt.NDArray[np.str_]


def report(lists: Lists, *, k: int = 10, seed: int = 0, confidence: float = 0.95) -> dict[str, Any]:
    """Return the figures; JSON values.

    exposure: {item group: {exposure, wanted, catalogue, ratio}}, attention by place (1 / log2(place + 1)) that a group gets, share
        of what users took that is of it, share of the catalogue, and exposure / wanted: 1 is attention in proportion to demand
        (Singh and Joachims, KDD 2018).
    providers: the same for the largest by demand; `distance`, half the sum over all of |exposure - wanted|, 0 to 1; `gini` of their
        exposure.
    miscalibration: KL from the history's categories to the list's (Steck, 2018).
    popularity_lift: mean popularity of lists / of histories - 1, for all and by user group (Abdollahpouri et al., 2019).
    quality: {user group: NDCG@k}; `gap`: best - worst group, and `relative_gap` to the best; who they are is settled on all users.
    """
    n_items = len(lists.popularity)
    exposed = resampled.shown(lists.item, n_items, k, 1 / np.log2(np.arange(2, k + 2)))
    figures: dict[tuple[str, ...], Figure] = {}
    wanted_all = np.asarray(lists.taken.sum(axis=1)).ravel()
    exposed_all = np.asarray(exposed.sum(axis=1)).ravel()
    largest = _largest(lists)
    for kind, members in (("exposure", dict(lists.parts)), ("providers", largest)):
        for name, mask in members.items():
            got, asked = exposed @ mask.astype(np.float64), lists.taken @ mask.astype(np.float64)
            figures[kind, name, "exposure"] = resampled.ratio(got, exposed_all)
            figures[kind, name, "wanted"] = resampled.ratio(asked, wanted_all)
            figures[kind, name, "ratio"] = _over(figures[kind, name, "exposure"], figures[kind, name, "wanted"])
    if len(lists.providers):
        figures["providers", "distance"] = _distance(*(_by_provider(each, lists) for each in (exposed, lists.taken)))
        figures["providers", "gini"] = resampled.gini(_by_provider(exposed, lists))
    figures["miscalibration",] = resampled.mean(taste.miscalibration(lists.item, lists.category, lists.taste, k))
    popular = taste.mean_popularity(lists.item, lists.popularity, k)
    groups = {name: mask for name, mask in lists.groups.items() if (mask & ~np.isnan(lists.ndcg)).sum() >= MIN_USERS}
    for name, mask in {"all": np.ones(len(lists.ndcg), np.bool_), **groups}.items():
        lifted = resampled.ratio(np.where(mask, popular, np.nan), np.where(mask, lists.history_popularity, np.nan))
        figures["popularity_lift", name] = _less_one(lifted)
        figures["quality", name] = resampled.mean(np.where(mask, lists.ndcg, np.nan))
    means = {name: float(np.nanmean(lists.ndcg[mask])) for name, mask in groups.items()}
    if len(means) > 1:
        best, worst = (chosen(means, key=lambda name: means[name]) for chosen in (max, min))
        figures["quality", "gap"] = _minus(figures["quality", best], figures["quality", worst])
        figures["quality", "relative_gap"] = _over(figures["quality", "gap"], figures["quality", best])
    drawn = resampled.drawn({json.dumps(name): figure for name, figure in figures.items()}, len(lists.ndcg), seed)
    found: dict[str, Any] = {"k": k, "exposure": {}, "providers": {}}
    for key, each in drawn.items():
        *path, last = json.loads(key)
        place = found
        for step in path:
            place = place.setdefault(step, {})
        place[last] = each.interval(confidence)
    for name, mask in lists.parts.items():
        found["exposure"][name]["catalogue"] = float(mask.mean()) if n_items else None
    if len(means) > 1:
        found["quality"] |= {"best": best, "worst": worst}
    return found


def _largest(lists: Lists) -> dict[str, Mask]:
    """Return the items of the providers that most is taken from; equals by name."""
    if not len(lists.providers):
        return {}
    total = np.asarray(_by_provider(lists.taken, lists).sum(axis=0)).ravel()
    return {str(lists.providers[number]): lists.provider == number for number in np.argsort(-total, kind="stable")[:LARGEST]}


def _by_provider(per_item: sparse.csr_matrix, lists: Lists) -> sparse.csr_matrix:
    """Return float64 [n_users, n_providers], sums over each provider's items."""
    known = np.flatnonzero(lists.provider >= 0)
    shape = (len(lists.provider), len(lists.providers))
    return per_item @ sparse.csr_matrix((np.ones(len(known)), (known, lists.provider[known])), shape=shape)


def _distance(got: sparse.csr_matrix, wanted: sparse.csr_matrix) -> Figure:
    """Return half the summed differences of two shares: 0 when they are the same, towards 1 when they share nobody."""

    def figure(times: Doubles) -> Doubles:
        share = []
        for each in (got, wanted):
            total = np.asarray((each.T @ times.T).T)
            whole = total.sum(axis=1, keepdims=True)
            share.append(np.divide(total, whole, out=np.full(total.shape, np.nan), where=whole > 0))
        return np.asarray(np.abs(share[0] - share[1]).sum(axis=1) / 2)

    return figure


def _over(above: Figure, below: Figure) -> Figure:
    def figure(times: Doubles) -> Doubles:
        bottom = below(times)
        return np.asarray(np.divide(above(times), bottom, out=np.full(len(bottom), np.nan), where=bottom > 0))

    return figure


def _less_one(figure: Figure) -> Figure:
    return lambda times: figure(times) - 1


def _minus(left: Figure, right: Figure) -> Figure:
    return lambda times: left(times) - right(times)


@dataclass(frozen=True)
class Bound:
    """A bound somebody set: where the figure stands in the report, and the least or most that is allowed of it."""

    path: tuple[str, ...]
    limit: float
    most: bool


def verdict(found: Mapping[str, Any], bounds: Mapping[str, Bound]) -> list[str]:
    """Return which bounds are broken and by what; pure. A figure that was not measured breaks its bound.

    A bound is broken where the figure itself is beyond it: the interval says how sure that is, and stands in the reason.
    """
    reasons = []
    for name, bound in bounds.items():
        held: Any = found
        for step in bound.path:
            held = held.get(step) if isinstance(held, Mapping) else None
        value = held.get("value") if isinstance(held, Mapping) else None
        if value is None:
            reasons.append(f"fairness: {name} was not measured")
        elif not (value <= bound.limit if bound.most else value >= bound.limit):
            beyond = "above" if bound.most else "below"
            low, high = (f"{held[side]:.3f}" if held.get(side) is not None else "?" for side in ("lower", "upper"))
            reasons.append(f"fairness: {name} is {value:.3f} [{low}, {high}], {beyond} {bound.limit:g}")
    return reasons
