"""What cannot be bought is not shown."""

from __future__ import annotations

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import AvailabilityPolicy


def apply(lists: Ranked, goods: Goods, _users: Histories, _policy: AvailabilityPolicy, _depth: int) -> Ranked:
    """Return the lists without items that the shop says are not available."""
    return lists.kept(goods.available[lists.item] & lists.listed)
