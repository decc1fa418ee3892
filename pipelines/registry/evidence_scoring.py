"""What it takes two models to score the same users, and what their scores are like, on a sample of the judged users.

- Missing values: of each feature among the rows that the challenger ranked, against the rows it learnt from (its newest window), both
  of users with a positive among their candidates, which is whom the training rows are of.
- Scores: no number among them, all alike, or spread otherwise than the champion's (each list standardised, so that only its shape
  counts). Where both rankers tell probabilities, how far these can be believed.
- Seconds: the same users one at a time, both models in turns, in processor seconds of this process: a busy machine does not count.
  What is timed is what differs between models: proposing, features, scoring, rules; the questions to the feature store are asked once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy import sparse

from pipelines.config import Home
from pipelines.datasets.interactions import Histories, Ids, Interactions, histories, positions
from pipelines.datasets.labels import Labels
from pipelines.errors import StateError
from pipelines.evaluation import psi, resampled
from pipelines.evaluation.resampled import Doubles, Drawn
from pipelines.ranking import training_set, two_stage
from pipelines.ranking.context import Context
from pipelines.ranking.features import assemble
from pipelines.ranking.proposals import Proposals
from pipelines.ranking.protocol import Probable
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.two_stage import RANKED, TwoStage
from pipelines.registry.gate_guardrails import Exact, PerDraw, Rates, Timed

SAMPLE: Final = 1024  # users whose candidates are scored again
TIMED: Final = 24  # of them are timed
ROUNDS: Final = 3  # times each; the median counts
K: Final = 10
BINS: Final = 10
NO_PROBABILITIES: Final = "not both rankers tell probabilities of a gain"


@dataclass(frozen=True)
class Asked:
    """One model with everything it needs to score the sample, in its own ids.

    Attributes:
        user_ids: str [n_users]; users, proposed and context have a row each.
    """

    model: TwoStage
    user_ids: Ids
    users: Histories
    proposed: Proposals
    context: Context | None
    goods: Goods

    def blocks(self) -> Iterator[tuple[Proposals, npt.NDArray[np.float32]]]:
        """Yield the candidates with the matrix that the ranker reads; nothing where the blend is served."""
        if self.model.ranker is None or self.context is None:
            return
        for block in self.proposed.blocks():
            yield block, two_stage.chosen(*assemble(self.context, block), self.model.ranker)


def ask(home: Home, model: TwoStage, known: Interactions, user_ids: Ids, cutoff: datetime) -> Asked:
    """Return a model ready to score some users from what was known at a moment.

    Args:
        known: in the model's own ids.
    """
    users = histories(known, user_ids)
    proposed = model.propose(users)
    context = model.context(home, proposed, users, user_ids, cutoff) if model.serves == RANKED else None
    return Asked(model, user_ids, users, proposed, context, model.goods(known))


def scores(asked: Asked) -> Doubles:
    """Return float64 [n], what the model orders the sample's candidates by.

    Raises:
        StateError: one of them is no number.
    """
    found = asked.model.order(asked.proposed, asked.context)
    if bad := int((~np.isfinite(found)).sum()):
        raise StateError("scores of a model", found=f"{bad} of {len(found)} that are no numbers", allowed="finite scores")
    return found


def tied(asked: Asked, score: Doubles) -> float:
    """Return the share of neighbours in the lists' first ten that have one score; 1 where there are none to compare."""
    _, best, _ = asked.proposed.ranked(score, len(asked.user_ids), K)
    listed = np.isfinite(best[:, 1:])
    return float((best[:, 1:] == best[:, :-1])[listed].mean()) if listed.any() else 1.0


def score_psi(before: tuple[Asked, Doubles], after: tuple[Asked, Doubles]) -> Exact:
    """Return the PSI between two models' scores, each list standardised; bins are the deciles of the first."""
    old, new = (_standardised(asked.proposed, score) for asked, score in (before, after))
    edges = np.unique(np.quantile(old, np.arange(1, BINS) / BINS)) if len(old) else np.zeros(0)
    counts = [np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) for values in (old, new)]
    return Exact(0.0, psi.psi(counts[0], counts[1]))


def _standardised(proposed: Proposals, score: Doubles) -> Doubles:
    starts = proposed.starts()
    length = np.diff(starts)
    of = np.repeat(np.arange(len(length)), length)
    centred = score - (np.bincount(of, score, len(length)) / np.maximum(length, 1))[of]
    spread = np.sqrt(np.bincount(of, centred**2, len(length)) / np.maximum(length, 1))[of]
    return np.divide(centred, spread, out=np.zeros(len(score)), where=spread > 0)


def missing(home: Home, as_of: datetime, challenger: Asked, truth: Labels) -> Rates:
    """Return the share of missing values of each feature, learnt from and ranked.

    Args:
        truth: labels of the sample, in the model's ids.

    Raises:
        StateError: the training rows are gone.
    """
    if challenger.model.ranker is None or challenger.context is None:
        return Rates((), np.zeros(0), np.zeros(0), np.zeros(0))
    names = challenger.model.ranker.features
    useful = np.bincount(challenger.proposed.row, challenger.proposed.gains(truth), truth.n_users) > 0
    parts = []
    for block, matrix in challenger.blocks():
        kept = useful[block.row]
        parts.append(_nulls(block.row[kept], np.isnan(matrix[kept]), np.ones(int(kept.sum()))))
    before, after = _share(*_learnt(home, as_of, names)), _share(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    return Rates(names, before[0], after[0], np.hypot(before[1], after[1]))


def _nulls(user: npt.NDArray[Any], null: npt.NDArray[np.bool_], weight: Doubles) -> tuple[Doubles, Doubles]:
    """Return float64 [n_lists, n_features] and [n_lists], weights of the missing and of all rows of each list."""
    _, of = np.unique(user, return_inverse=True)
    n = int(of.max(initial=-1)) + 1
    place = sparse.csr_matrix((weight, (of, np.arange(len(of)))), shape=(n, len(of)))
    return np.asarray(place @ null.astype(np.float64)), np.asarray(place.sum(axis=1)).ravel()


def _share(missing_: Doubles, whole: Doubles) -> tuple[Doubles, Doubles]:
    """Return the share of each column and its standard error, lists being clusters (Cochran, 1977, 6.3)."""
    total, n = float(whole.sum()), len(whole)
    if not (total > 0 and n > 1):
        nothing = np.full(missing_.shape[1], np.nan)
        return nothing, nothing
    share = missing_.sum(axis=0) / total
    apart = missing_ - whole[:, None] * share
    return share, np.sqrt(n / (n - 1) * (apart**2).sum(axis=0)) / total


def _learnt(home: Home, as_of: datetime, names: tuple[str, ...]) -> tuple[Doubles, Doubles]:
    """Return what `_nulls` does, of the newest window of the training rows."""
    folder = training_set.folder(home, as_of)
    files = sorted(folder.glob("rank_*.parquet"), key=lambda file: int(file.stem.removeprefix("rank_")))
    if not files:
        raise StateError(str(folder), found="no training rows", allowed="those that the challenger learnt from")
    file, parts = pq.ParquetFile(files[-1]), []
    for block in range(file.num_row_groups):
        table = file.read_row_group(block, columns=["user", "weight", *names])
        null = np.column_stack([np.isnan(table[name].to_numpy()) for name in names])
        parts.append(_nulls(table["user"].to_numpy(), null, table["weight"].to_numpy().astype(np.float64)))
    rows, whole = (np.concatenate(part) for part in zip(*parts, strict=True))
    return rows, whole


def calibration(before: Asked, after: Asked, truths: tuple[Labels, Labels], seed: int) -> PerDraw | None:
    """Return the expected calibration error of both rankers, users drawn again; None where not both tell probabilities of a gain."""
    found = [_ece(asked, truth, seed) for asked, truth in zip((before, after), truths, strict=True)]
    return PerDraw(found[0], found[1]) if found[0] and found[1] else None


def _ece(asked: Asked, truth: Labels, seed: int) -> Drawn | None:
    """Return the mean difference between what bins of equal mass were promised and what they got; the bins stay as they are over draws."""
    ranker: object = asked.model.ranker
    if not isinstance(ranker, Probable) or ranker.told() != "" or asked.context is None:
        return None
    promised = np.concatenate([np.zeros(0), *(ranker.probability(matrix) for _, matrix in asked.blocks())])
    met = asked.proposed.gains(truth) > 0
    edges = np.unique(np.quantile(promised, np.arange(1, BINS) / BINS))
    of, n = np.searchsorted(edges, promised, side="right"), len(asked.user_ids)
    apart = np.bincount(asked.proposed.row * BINS + of, promised - met, n * BINS).reshape(n, BINS)
    rows = np.bincount(asked.proposed.row, minlength=n).astype(np.float64)

    def figure(times: Doubles) -> Doubles:
        whole = times @ rows
        return np.asarray(np.divide(np.abs(times @ apart).sum(axis=1), whole, out=np.full(len(times), np.nan), where=whole > 0))

    return resampled.drawn({"ece": figure}, n, seed)["ece"]


def timed(before: Asked, after: Asked, n_users: int = TIMED, rounds: int = ROUNDS) -> Timed | Exact:
    """Return the processor seconds that each model takes for a user's list, alone; the first round warms up and does not count.

    Where only one of them has a ranker to ask, the challenger's median alone: a ratio to a list without features says nothing of it.
    """
    n = min(n_users, len(before.user_ids))
    taken = np.zeros((rounds + 1, n, 2))
    for turn in range(rounds + 1):
        for row in range(n):
            for side in ((0, 1), (1, 0))[(turn + row) % 2]:
                begun = time.process_time()
                _one((before, after)[side], row)
                taken[turn, row, side] = time.process_time() - begun
    middle = np.maximum(np.median(taken[1:], axis=0), 1e-9)
    if before.model.serves != after.model.serves:
        return Exact(0.0, float(np.median(middle[:, 1])))
    return Timed(middle[:, 0], middle[:, 1])


def _one(asked: Asked, row: int) -> None:
    """Make one user's list as a request would."""
    alone = asked.users.rows(row, row + 1)
    proposed = asked.model.propose(alone)
    score = asked.model.order(replace(proposed, row=np.full(len(proposed), row)), asked.context)
    asked.model.listed(asked.user_ids[row : row + 1], proposed, score, K, users=alone, goods=asked.goods)


def in_ids(truth: Labels, item_ids: Ids) -> Labels:
    """Return labels in a model's ids; what it does not know is no candidate of its own, so it is left out."""
    place = positions(truth.item_ids, item_ids)[truth.item]
    known = place >= 0
    indptr = np.concatenate([[0], np.cumsum(known)])[truth.indptr].astype(np.int64)
    return Labels(truth.user_ids, item_ids, indptr, place[known].astype(np.int32), truth.gain[known])
