"""LightGBM binary: trees that tell how likely a candidate is taken, each row on its own; scores that are probabilities.

    model.txt, importance.json   as all trees
    calibration.json             the map from scores to probabilities, where one is asked for and a window was held out to fit it on

The order is that of the trees; a calibration never falls, but may level what they tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats
from pipelines.errors import StateError
from pipelines.ranking import calibration
from pipelines.ranking.calibration import Calibration
from pipelines.ranking.logistic import sigmoid
from pipelines.ranking.protocol import RankingRows
from pipelines.ranking.trees import Aim, Boosted, Doubles

CALIBRATION_FILE: Final = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Pointwise(Boosted):
    """Trees for the log odds that a candidate is taken.

    Attributes:
        outcome: what is told, a column of the rows' outcomes, positive where above 0; "" is any gain at all.
        weighted: rows count by their weight where they have one. Without it probabilities are those of the sample.
        calibration: `off` takes the log odds at their word. The others are fitted on the newest window, as trees scored it that saw only
            the older ones; on real weeks they did a little worse (docs/ranking/rankers.md).
    """

    outcome: str = ""
    weighted: bool = True
    calibration: Literal["off", "isotonic", "platt"] = "off"

    name: ClassVar[str] = "pointwise"

    def aim(self, rows: RankingRows) -> Aim:
        """Return what was taken.

        Raises:
            StateError: the rows do not tell the outcome, or it is the same everywhere.
        """
        taken = self._taken(rows)
        if not taken.any() or taken.all():
            raise StateError(
                "training rows of the ranker", found=f"{int(taken.sum())} of {len(taken)} taken", allowed="both taken and ignored ones"
            )
        weight = rows.weight if self.weighted else None
        return Aim({"objective": "binary", "metric": "binary_logloss"}, taken.astype(np.float32), weight)

    def learn_more(self, margin: Doubles, held: RankingRows) -> tuple[tuple[str, bytes], ...]:
        """Return the calibration, unless it is off or the newest window has one outcome only."""
        if self.calibration == "off":
            return ()
        found = calibration.fit(self.calibration, margin, self._taken(held), held.weight if self.weighted else None)
        return ((CALIBRATION_FILE, found.to_json()),) if found else ()

    def told(self) -> str | None:
        """Return the outcome; None where no window was held out to calibrate on."""
        return self.outcome if self.calibration == "off" or CALIBRATION_FILE in dict(self.fitted().extras) else None

    def probability(self, features: Floats) -> Doubles:
        """Return float64 [n] in (0, 1), the probability that a candidate is taken.

        Raises:
            StateError: not fitted, another number of features, or not calibrated although that is asked for.
        """
        if self.calibration == "off":
            return sigmoid(self.score(features))
        kept = dict(self.fitted().extras).get(CALIBRATION_FILE)
        if kept is None:
            raise StateError(
                self.name,
                found="no calibration",
                allowed="one that was fitted on a later window",
                hint="train on two windows or more, or set calibration = 'off'",
            )
        return Calibration.of_json(kept).probability(self.score(features))

    def _taken(self, rows: RankingRows) -> npt.NDArray[np.bool_]:
        if not self.outcome:
            return rows.gain > 0
        if self.outcome not in rows.outcomes:
            raise StateError("training rows of the ranker", found=f"no outcome {self.outcome!r}", allowed=f"one of {sorted(rows.outcomes)}")
        return rows.outcomes[self.outcome] > 0
