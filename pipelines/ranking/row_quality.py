"""How well a score orders training rows, list by list."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.evaluation import metrics
from pipelines.evaluation.metrics import Judged
from pipelines.ranking.protocol import RankingRows

Doubles = npt.NDArray[np.float64]
CUTOFF: Final = 10


def per_list(score: Doubles, rows: RankingRows) -> Doubles:
    """Return NDCG@10 float64 [n_groups] of training rows ordered by a score; the rows' order breaks ties.

    The ideal is that of the list's own rows, and its ignored candidates are a sample: for comparing rankers on the same
    rows, not a figure to publish.
    """
    n, whose = len(rows.group), np.repeat(np.arange(len(rows.group)), rows.group)
    place = np.arange(len(whose)) - np.repeat(np.cumsum(rows.group) - rows.group, rows.group)
    gain = np.zeros((n, CUTOFF))
    best_first = np.lexsort((-np.asarray(score), whose))
    top = place < CUTOFF
    gain[whose[top], place[top]] = rows.gain[best_first][top]
    largest_first = np.lexsort((-rows.gain, whose))
    ideal = rows.gain[largest_first].astype(np.float64)
    indptr = np.append(0, np.cumsum(np.bincount(whose[rows.gain > 0], minlength=n)))
    return metrics.ndcg(Judged(gain, indptr, ideal[ideal > 0]), CUTOFF)
