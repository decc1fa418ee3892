"""Categories of the list follow the user's history."""

from __future__ import annotations

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank import greedy
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import CalibrationPolicy


def apply(lists: Ranked, goods: Goods, users: Histories, policy: CalibrationPolicy, depth: int) -> Ranked:
    """Return the lists calibrated to the categories of the histories (`greedy.calibrated`)."""
    taste = greedy.tastes(users, goods.category, policy.half_life_days)
    return greedy.calibrated(lists, goods.category, taste, trade_off=policy.trade_off, dilution=policy.dilution, depth=depth)
