"""LightGBM lambdarank: gradient-boosted trees trained on the pairs that move NDCG.

Burges, "From RankNet to LambdaRank to LambdaMART" (MSR-TR-2010-82), as LightGBM implements it.

People click what they see, so clicks tell of places as well as of items. Two ways to take the place out:

- `debias = "position"`: a bias per place is learnt beside the trees and left out of the score
  (LightGBM's `position`, a position-bias factor by Newton steps; after Yan et al., "Revisiting
  two-tower models for unbiased learning to rank", SIGIR 2022). Needs the places of training rows.
- `debias = "weight"`: a click counts as often as its place was not looked at (inverse propensities:
  Agarwal et al., "A general framework for counterfactual learning-to-rank", SIGIR 2019). Needs known propensities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

import numpy as np

from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError
from pipelines.knobs import Range
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.trees import Aim, Boosted, graded

MAX_GRADES: Final = 256  # LightGBM holds a counter per grade and list


@dataclass(frozen=True, kw_only=True)
class LambdaRank(Boosted):
    """Trees that order a list so that its NDCG is high.

    Attributes:
        truncation: pairs count if one of the two is among so many best; a little above the cutoff that is judged.
        debias: how the place at which an item was shown is taken out of what is learnt; `off` where places are unknown.
        position_regularization: of the bias of a place, with `debias = "position"`.
    """

    truncation: Annotated[int, Range(1, 10_000)] = 20
    debias: Literal["off", "position", "weight"] = "off"
    position_regularization: Annotated[float, Range(0)] = 0.0

    name: ClassVar[str] = "lambdarank"

    def __post_init__(self) -> None:
        if self.debias == "position" and (self.n_workers or self.scheduler):
            raise StateError(
                self.name, found="biases of places, and several workers", allowed="one of the two: LightGBM learns such biases in one process",
                hint="leave n_workers and scheduler out of ranking.parameters, or take debias = 'weight'",
            )  # fmt: skip

    def aim(self, rows: RankingRows) -> Aim:
        """Return the grades, and what the debiasing asks for.

        Raises:
            StateError: the rows lack what the debiasing needs.
        """
        gain, weight = rows.gain, None
        if self.debias == "weight":
            gain, weight = inverse(rows)
        label, label_gain = graded(gain)
        parameters = {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [10],
            "label_gain": label_gain,
            "lambdarank_truncation_level": self.truncation,
        }
        if self.debias != "position":
            return Aim(parameters, label, weight)
        if rows.position is None:
            raise lacking("position", "the place at which each row was shown")
        return Aim(parameters | {"lambdarank_position_bias_regularization": self.position_regularization}, label, None, rows.position)


def inverse(rows: RankingRows) -> tuple[Floats, Floats]:
    """Return gains and weights float32 [n] under which NDCG's pairs are an unbiased sample of those of a world where all is seen.

    Within a list gains are multiplied by the weights of their rows. NDCG divides by the list's best
    and so takes out what is common to a list, above all the weight of a single click; that part goes to the
    weight of the whole list: the mean weight of its positives, by gain.

    Raises:
        StateError: the rows have no weights.
    """
    if rows.weight is None:
        raise lacking("weight", "the inverse propensity of each row")
    starts = np.cumsum(rows.group) - rows.group
    worth = np.add.reduceat(rows.gain.astype(np.float64) * rows.weight, starts)
    plain = np.add.reduceat(rows.gain.astype(np.float64), starts)
    of_list = np.divide(worth, plain, out=np.ones_like(worth), where=plain > 0)
    weight = np.repeat(of_list, rows.group)
    gain = rows.gain * rows.weight / weight
    if len(np.unique(gain)) > MAX_GRADES:
        # Steps of equal ratio, about a hundredth of the range of gains each.
        positive = gain > 0
        low, high = np.log(gain[positive].min()), np.log(gain[positive].max())
        step = (high - low) / (MAX_GRADES - 2)
        gain[positive] = np.exp(low + np.round((np.log(gain[positive]) - low) / step) * step)
    return gain.astype(np.float32), weight.astype(np.float32)


def lacking(column: str, meaning: str) -> StateError:
    """Return the error of rows that lack what a debiasing needs."""
    return StateError(
        "training rows of the ranker",
        found=f"no {column}",
        allowed=meaning,
        hint=f"debias = '{column}' needs rows made from impressions; see ranking.parameters in the settings",
    )
