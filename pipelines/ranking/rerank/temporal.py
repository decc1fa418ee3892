"""New and lasting items have their share of every beginning of the list."""

from __future__ import annotations

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import TemporalPolicy


def apply(lists: Ranked, goods: Goods, _users: Histories, policy: TemporalPolicy, depth: int) -> Ranked:
    """Return the lists with the policy's quotas of fresh and lasting items; an item of unknown age is neither."""
    age = goods.age_days[lists.item]
    quotas = [(age <= policy.fresh_days, policy.fresh_share), (age > policy.lasting_days, policy.lasting_share)]
    return greedy.with_quotas(lists, [(kind & lists.listed, share) for kind, share in quotas if share > 0], depth)
