"""What a user bought is not shown to them again for a while."""

from __future__ import annotations

import numpy as np

from pipelines import columns as c
from pipelines.datasets.interactions import Histories
from pipelines.datasets.newness import DAY_US
from pipelines.errors import ReloopError
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import PurchasedPolicy


def apply(lists: Ranked, goods: Goods, users: Histories, policy: PurchasedPolicy, _depth: int) -> Ranked:
    """Return the lists without what their users bought within the policy's days before the histories' moment.

    Raises:
        ReloopError: the histories do not say what kind of events they hold.
    """
    if users.event_type is None:
        raise ReloopError("histories", found="no event types", allowed="those that tell purchases from looks")
    bought = users.event_type == c.EVENT_TYPES.index(c.PURCHASE)
    if policy.within_days is not None:
        bought &= users.at >= users.as_of - int(policy.within_days * DAY_US)
    width = max(len(goods), 1)
    taken = np.unique(users.row_of_event()[bought] * width + users.item[bought])
    key = np.arange(len(lists.item))[:, None] * width + lists.item
    return lists.kept(lists.listed & ~np.isin(key, taken))
