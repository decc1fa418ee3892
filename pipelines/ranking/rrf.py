"""Reciprocal-rank fusion: a candidate is worth the sum of 1/(60 + its rank) over the sources. A cheap baseline that a ranker must beat.

Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods" (SIGIR 2009). It learns nothing but which columns are ranks of sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Ints
from pipelines.errors import StateError
from pipelines.knobs import Range
from pipelines.ranking.protocol import RankingRows, check_width, source_columns


@dataclass(frozen=True)
class Rrf:
    """Reciprocal-rank fusion of the sources, all of equal weight.

    Attributes:
        constant: the larger, the less the first places stand out.
        state: the features of the matrix, None until fitted.
    """

    constant: Annotated[float, Range(0, 1e6)] = 60.0
    state: tuple[str, ...] | None = None

    name: ClassVar[str] = "rrf"

    def fit(self, rows: RankingRows) -> Rrf:
        """Return a copy that knows the columns.

        Raises:
            StateError: no column is the rank of a source.
        """
        return self.restore({}, rows.names)

    def score(self, features: Floats, group: Ints | None = None) -> npt.NDArray[np.float64]:
        """Return float64 [n]; 0 for what no source proposed.

        Raises:
            StateError: not fitted, or another number of features.
        """
        del group
        names = self.features
        check_width(features, names)
        found = np.zeros(len(features))
        for _, rank in source_columns(names):
            found += np.nan_to_num(1 / (self.constant + features[:, rank].astype(np.float64)), nan=0.0)
        return found

    @property
    def features(self) -> tuple[str, ...]:
        """Return the features of its matrix; it reads the ranks."""
        return self._fitted()

    def _fitted(self) -> tuple[str, ...]:
        if self.state is None:
            raise StateError(self.name, found="not fitted", allowed="a fitted ranker", hint="call fit first")
        return self.state

    @property
    def importance(self) -> dict[str, float]:
        """Return equal shares for the ranks of the sources."""
        ranks = [self.features[rank] for _, rank in source_columns(self.features)]
        return dict.fromkeys(ranks, 1 / len(ranks))

    @property
    def size(self) -> dict[str, int]:
        """Return that nothing was learnt."""
        return {"weights": 0}

    def dump(self) -> dict[str, bytes]:
        """Return no file: the features are kept with every ranker.

        Raises:
            StateError: not fitted.
        """
        self._fitted()
        return {}

    def restore(self, files: Mapping[str, bytes], names: tuple[str, ...]) -> Rrf:
        """Return a copy that knows the columns.

        Raises:
            StateError: no column is the rank of a source.
        """
        del files
        if not source_columns(names):
            raise StateError(self.name, found="no rank of a source", allowed="SOURCE_score and SOURCE_rank among the features")
        return replace(self, state=names)
