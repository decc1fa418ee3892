"""New items in finished lists: who counts as new, which of them are drawn for whom, and what was shown with what probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.datasets import newness
from pipelines.datasets.interactions import Bools, Histories, Ids, Interactions, Ints, positions
from pipelines.evaluation.metrics import Doubles
from pipelines.model_settings import ExplorationPolicy
from pipelines.ranking.exploration import ClickRates, explore
from pipelines.ranking.protocol import Lists
from pipelines.ranking.rerank import chain
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import RerankSettings
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.cold_items import ColdItems, for_sale
from pipelines.retrieval.cold_users import leading
from pipelines.retrieval.protocol import Retriever

SOURCE: Final = "exploration"  # who proposed an item that a draw put there
FURTHEST: Final = 4.0  # times the base rate that neighbours may move an expected click rate, up or down


def new_items(known: Interactions, policy: ExplorationPolicy) -> Bools:
    """Return bool [n_items]: for sale, known for `max_age_days` at most, with `max_events` events at most."""
    days = newness.known_days(known)
    events = np.bincount(known.item, minlength=len(known.item_ids))
    return np.asarray(~(days > policy.max_age_days) & (events <= policy.max_events) & for_sale(known))


def expected_rates(cold_items: ColdItems | None, n_items: int, policy: ExplorationPolicy) -> Doubles:
    """Return float64 [n_items], clicks an impression before anything was shown: the base rate, moved by the neighbours in content.

    An item whose neighbours are met twice as often as those of the mean cold item is expected to be
    clicked twice as often, within bounds; where nothing is known of neighbours, as the base rate says.
    """
    expected = np.full(n_items, policy.base_rate)
    if cold_items is not None and cold_items.state is not None and len(cold_items.state["cold"]):
        popularity = cold_items.state["popularity"].astype(np.float64)
        ratio = popularity / max(popularity.mean(), np.finfo(float).tiny)
        expected[cold_items.state["cold"]] *= np.clip(ratio, 1 / FURTHEST, FURTHEST)
    return np.asarray(np.minimum(expected, 0.5))


def explored(
    lists: Lists,
    *,
    item_ids: Ids,
    users: Histories,
    fresh: Bools,
    retrievers: dict[str, Retriever],
    policy: ExplorationPolicy,
    request_ids: Sequence[str],
    exclude_seen: bool,
    rerank: RerankSettings | None = None,
    goods: Goods | None = None,
    impressions: Doubles | None = None,
    clicks: Doubles | None = None,
) -> Lists:
    """Return finished lists with new items at the policy's slots, and the propensity of every item shown.

    A request's pool begins with what `cold_items` proposes to its user, if that source is among the
    retrievers, and goes on with the new items of the largest expected click rates. The score at an explored place is that
    of the item replaced.

    Args:
        item_ids: of the model; lists and histories index it.
        users: row r belongs to row r of the lists.
        fresh: bool [n_items], what counts as new (`new_items`) and may be drawn.
        request_ids: one a list.
        rerank, goods: the rules of the lists and what they know of the items; what a filter would take out is not drawn either.
        impressions, clicks: float64 [n_items] so far; none where they are not logged yet.
    """
    n_items = len(item_ids)
    model = retrievers.get("cold_items")
    inner = model.model if isinstance(model, Indexed) else model
    cold_items = inner if isinstance(inner, ColdItems) else None
    nothing = np.zeros(n_items)
    seen_so_far = (nothing if impressions is None else impressions, nothing if clicks is None else clicks)
    rates = ClickRates.learnt(*seen_so_far, expected_rates(cold_items, n_items, policy), policy.prior_strength)
    listed: Ints = positions(lists.item_ids.ravel(), item_ids).reshape(lists.item_ids.shape).astype(np.int32)
    wanted = policy.cards() * len(policy.slots)
    personal = np.empty((users.n_users, 0), dtype=np.int32)
    if model is not None:
        personal = model.retrieve(users, 2 * wanted, exclude_seen=exclude_seen).item
    common = _most_promising(fresh, rates, wanted + listed.shape[1])
    pool = pools(personal, common, listed, wanted, fresh=fresh, seen=users if exclude_seen else None)
    if rerank is not None and goods is not None:
        filters = chain.without(rerank, *(rule for rule in chain.RULES if rule not in chain.FILTERS))
        pool = chain.reranked(Ranked.ordered(pool, np.zeros(pool.shape, np.float32)), goods, users, filters)[0].item
    found = explore(listed, pool, policy, user_ids=list(lists.user_ids), request_ids=request_ids, rates=rates)
    shown = lists.item_ids.astype(np.result_type(lists.item_ids, item_ids))
    shown[found.explored] = item_ids[found.item[found.explored]]
    sources = np.where(found.explored, np.uint64(1) << np.uint64(len(lists.source_names)), lists.sources)
    return replace(
        lists,
        item_ids=shown,
        sources=sources,
        source_names=(*lists.source_names, SOURCE),
        propensity=found.propensity,
        rules=np.where(
            found.explored, np.uint32(1) << np.uint32(len(lists.rule_names)), lists.rules if lists.rule_names else np.uint32(0)
        ).astype(np.uint32),
        rule_names=(*lists.rule_names, SOURCE),
    )


def _most_promising(fresh: Bools, rates: ClickRates, k: int) -> Ints:
    """Return the new items with the largest expected click rates, best first; equals by index."""
    items = np.flatnonzero(fresh)
    expected = rates.clicked[items] / (rates.clicked[items] + rates.ignored[items])
    return items[np.argsort(-expected, kind="stable")[:k]].astype(np.int32)


def pools(personal: Ints, common: Ints, listed: Ints, k: int, *, fresh: Bools, seen: Histories | None) -> Ints:
    """Return int32 [n, k], each request's new items that its list lacks: its own first, then everybody's; -1 pads.

    Args:
        personal: int32 [n, m], -1 pads; common: int32 [c].
        seen: what must not be shown again; None where anything may.
    """
    n, n_items = len(listed), len(fresh)
    item = np.concatenate([personal, np.broadcast_to(common, (n, len(common)))], axis=1)
    key = np.arange(n)[:, None] * max(n_items, 1) + item
    taken = [(np.arange(n)[:, None] * max(n_items, 1) + listed)[listed >= 0]]
    if seen is not None:
        taken.append(seen.row_of_event() * max(n_items, 1) + seen.item)
    usable = (item >= 0) & fresh[item] & ~np.isin(key, np.concatenate(taken)) if n_items else item >= 0
    row, column, place = leading(np.where(usable, item, -1), n_items, k)
    pool = np.full((n, k), -1, dtype=np.int32)
    pool[row, place] = item[row, column]
    return pool


def impressions(
    lists: Lists, *, request_ids: Sequence[str], shown_at: datetime, model_version: str | None = None, variant: str | None = None
) -> pa.Table:
    """Return what was shown as rows of the impressions table: one an item of each list, with its propensity.

    A list that nothing was drawn for has propensities of 1: it could not have been another.

    Args:
        request_ids: one a list.
        shown_at: in UTC.
    """
    row, place = np.nonzero(lists.item_ids != "")
    propensity = np.ones(len(row)) if lists.propensity is None else lists.propensity[row, place]
    names = {mask: [name for bit, name in enumerate(lists.source_names) if mask >> bit & 1] for mask in np.unique(lists.sources).tolist()}
    columns = {
        c.REQUEST_ID: pa.array([request_ids[at] for at in row.tolist()], pa.string()),
        c.USER_ID: pa.array(lists.user_ids[row], pa.string()),
        c.ITEM_ID: pa.array(lists.item_ids[row, place], pa.string()),
        c.RANK: pa.array((place + 1).astype(np.int32)),
        c.SHOWN_AT: pa.array([shown_at] * len(row), tables.TIMESTAMP),
        c.MODEL_VERSION: pa.array([model_version] * len(row), pa.string()),
        c.VARIANT: pa.array([variant] * len(row), pa.string()),
        c.SOURCES: pa.array([names[mask] for mask in lists.sources[row, place].tolist()], pa.list_(pa.string())),
        c.SCORE: pa.array(lists.score[row, place].astype(np.float64)),
        c.PROPENSITY: pa.array(propensity),
    }
    columns |= {field.name: pa.nulls(len(row), field.type) for field in tables.IMPRESSIONS if field.name not in columns}
    return pa.table(columns, schema=tables.IMPRESSIONS)
