"""LightGBM rank_xendcg: trees trained on the cross entropy between a list's gains and its scores, which bounds NDCG.

Bruch, "An alternative cross entropy loss for learning-to-rank" (WWW 2021). A row's target is 2^grade - g,
g drawn in [0, 1) anew each round from the seed; grades count the gains in their order (0, 1, 2, ...),
so it is their order that is learnt, not their ratio. Linear in the length of a list, lambdarank is quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.ranking.lambdarank import inverse
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.trees import Aim, Boosted, graded


@dataclass(frozen=True, kw_only=True)
class XeNdcg(Boosted):
    """Trees that give the items of a list probabilities near its gains.

    Attributes:
        debias: with `weight` a list counts as much as the mean inverse propensity of its positives. LightGBM
            learns no bias of places for this objective.
    """

    debias: Literal["off", "weight"] = "off"

    name: ClassVar[str] = "xendcg"

    def aim(self, rows: RankingRows) -> Aim:
        """Return the grades, and weights where they are asked for.

        Raises:
            StateError: the rows lack what the debiasing needs.
        """
        label, label_gain = graded(rows.gain)
        parameters = {"objective": "rank_xendcg", "metric": "ndcg", "eval_at": [10], "label_gain": label_gain}
        return Aim(parameters, label, inverse(rows)[1] if self.debias == "weight" else None)
