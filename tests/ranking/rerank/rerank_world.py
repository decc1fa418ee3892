"""Small shops, histories and lists for paper."""

from __future__ import annotations

import numpy as np

from pipelines import columns as c
from pipelines.datasets.interactions import Histories
from pipelines.datasets.newness import DAY_US
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked

NOW = 100 * DAY_US


def shop(n, **known) -> Goods:
    """Return n items of which nothing is known but what is given."""
    unknown = np.full(n, -1, np.int32)
    blank = {
        "category": unknown,
        "brand": unknown,
        "seller": unknown,
        "price": np.full(n, np.nan, np.float32),
        "available": np.ones(n, bool),
        "age_days": np.full(n, np.nan, np.float32),
        "margin": np.full(n, np.nan, np.float32),
        "promoted": np.zeros(n, bool),
        "attention": np.zeros(n, np.int64),
    }
    cast = {name: np.asarray(value, blank[name].dtype) if name in blank else value for name, value in known.items()}
    return Goods(**(blank | cast))


def people(*histories, n_items, kinds=None, days_ago=None) -> Histories:
    """Return one row a list of items; every event a purchase a day ago, unless said otherwise."""
    lengths = [len(row) for row in histories]
    item = np.array([one for row in histories for one in row], np.int32)
    kind = (
        np.array([one for row in kinds for one in row], np.int8) if kinds else np.full(len(item), c.EVENT_TYPES.index(c.PURCHASE), np.int8)
    )
    ago = np.array([one for row in days_ago for one in row], float) if days_ago else np.ones(len(item))
    at = (NOW - ago * DAY_US).astype(np.int64)
    return Histories(np.append(0, np.cumsum(lengths)), item, at, np.ones(len(item), np.float32), n_items, NOW, event_type=kind)


def nobody(n_users, n_items) -> Histories:
    return people(*([[]] * n_users), n_items=n_items)


def ranked(*rows) -> Ranked:
    """Return lists of items in the order given, -1 pads; scores fall evenly from 1 to 0."""
    item = np.array(rows, np.int32).reshape(len(rows), -1)
    score = np.tile(np.linspace(1, 0, item.shape[1]), (len(rows), 1)) if item.size else np.zeros(item.shape)
    return Ranked.of(item, score)


def items(lists: Ranked) -> list[list[int]]:
    return [[int(one) for one in row if one >= 0] for row in lists.item]
