"""Several judged weeks as one comparison: users who come back are one cluster, and no single week may carry the result.

A window holds one week's challenger and the champion on that week's users, which neither had seen. Challengers of one recipe
(the same settings) are trials of the same thing: would a retrain be better than what serves? What is asked of the newest challenger
itself, that it is not worse, is a guardrail on the fresh window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.evaluation import clustered
from pipelines.evaluation.clustered import Change

Scores = npt.NDArray[np.floating[Any]]
Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """One judged window.

    Attributes:
        as_of: of the cycle whose challenger it is.
        users: [n], who; the same user has the same value in every window.
        champion, challenger: [n], NDCG@10.
    """

    as_of: str
    users: Ids
    champion: Scores
    challenger: Scores


@dataclass(frozen=True)
class Pooled:
    """Some windows together.

    Attributes:
        change: relative, clustered by user.
        base: mean NDCG@10 of the champion in the newest window.
        each: the change of each window alone, oldest first.
        without_best: the change without the window that speaks loudest for the challenger; None where there is one window only.
    """

    change: Change
    base: float
    each: tuple[tuple[str, Change], ...]
    without_best: float | None


def pool(windows: Sequence[Window]) -> Pooled:
    """Return some windows, oldest first, as one comparison; each row counts alike."""
    before = np.concatenate([np.asarray(window.champion, dtype=np.float64) for window in windows])
    after = np.concatenate([np.asarray(window.challenger, dtype=np.float64) for window in windows])
    users = np.concatenate([window.users for window in windows])
    each = tuple((window.as_of, clustered.change(window.champion, window.challenger)) for window in windows)
    without = None
    if len(windows) > 1:
        best = int(np.argmax([float((np.asarray(window.challenger) - window.champion).sum()) for window in windows]))
        rest = [window for number, window in enumerate(windows) if number != best]
        without = clustered.change(
            np.concatenate([np.asarray(window.champion) for window in rest]),
            np.concatenate([np.asarray(window.challenger) for window in rest]),
        ).value
    whole = clustered.change(before, after, users if len(windows) > 1 else None)
    fresh = np.asarray(windows[-1].champion, dtype=np.float64)
    return Pooled(whole, float(fresh.mean()) if len(fresh) else float("nan"), each, without)
