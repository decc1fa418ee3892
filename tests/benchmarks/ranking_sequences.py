"""Two stages on MovieLens-1M as SASRec cut it: from counts and factors alone, no neural model among the sources.

The file has an order and no time, so the windows of the ranker are places from the end: sources learn from
every sequence less its last four, three and two items, and the ranker from what came next; the judged items are the
last, of which neither saw anything. How many trees there are is chosen on the newest of the ranker's windows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from pipelines.config import REPOSITORY
from pipelines.datasets.interactions import Interactions, histories
from pipelines.evaluation import paired
from pipelines.ranking.lambdarank import LambdaRank
from pipelines.ranking.protocol import RankingRows
from pipelines.retrieval.als import Als
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.session_knn import SessionKnn

sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
import paper_data
from paper_data import Split

K, PUBLISHED, TARGET = 10, 0.1779, 0.185  # SASRec's NDCG@10 as published on this split
WINDOWS = 3
CANDIDATES, PER_SOURCE, NEGATIVES, NEWEST = 200, 100, 100, 5
SOURCES: dict[str, Any] = {
    "session_knn": SessionKnn(),
    "sequence_rules": SequenceRules(decay=0.75, popularity_exponent=0.15),
    "last_item_rules": SequenceRules(decay=0.3, popularity_exponent=0.15),
    "long_rules": SequenceRules(decay=0.93, popularity_exponent=0.15),
    "ease": Ease(max_history=5000),
    "als": Als(),
    "item_knn": ItemKnn(n_neighbours=400, max_history=5000),
    "bpr": Bpr(max_history=5000),
    "popular": Popular(),
}
RANKER = LambdaRank(learning_rate=0.05, num_leaves=31, n_rounds=200, min_data_in_leaf=100)


class Fold:
    """Sequences less their last items, the item that came next, and what every source says of the whole catalogue."""

    def __init__(self, split: Split) -> None:
        self.rows = np.flatnonzero(np.diff(split.indptr))
        self.known, self.target = split.known, split.item[split.indptr[self.rows]]
        self.asked = histories(self.known, self.known.user_ids[self.rows])
        self.score = {name: self._scored(source) for name, source in SOURCES.items()}
        self.about_items, self.about_pairs = items(self.known), pairs(self.known)

    def _scored(self, source: Any) -> np.ndarray:
        """Return float32 [n_users, n_items], -inf for what is not proposed or was seen."""
        found = source.fit(self.known).retrieve(self.asked, self.asked.n_items, exclude_seen=True)
        scores = np.full((len(self.rows), self.asked.n_items + 1), -np.inf, dtype=np.float32)
        np.put_along_axis(scores, np.where(found.item < 0, self.asked.n_items, found.item).astype(np.int64), found.score, axis=1)
        return scores[:, :-1]

    def blocks(self, n_users: int = 500) -> Any:
        """Yield (candidates int [n, CANDIDATES], features float32 [n, CANDIDATES, n_features], target [n], names) of some users at a time."""
        for first in range(0, len(self.rows), n_users):
            yield self._block(slice(first, first + n_users))

    def _block(self, users: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
        target = self.target[users]
        ranks = {name: places(scores[users]) for name, scores in self.score.items()}
        votes = sum(np.where(rank <= PER_SOURCE, 1 / (60 + rank), 0) for rank in ranks.values())
        candidates = np.argsort(-votes, axis=1, kind="stable")[:, :CANDIDATES]

        def of(matrix: np.ndarray) -> np.ndarray:
            return np.take_along_axis(matrix, candidates, axis=1).astype(np.float32)

        columns = {"votes": of(votes)}
        for name, rank in ranks.items():
            score = of(self.score[name][users])
            score[~np.isfinite(score)] = np.nan
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = np.nanstd(score, axis=1, keepdims=True)
                z = (score - np.nanmean(score, axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)
            columns |= {f"{name}_score": score, f"{name}_z": z, f"{name}_rank": np.where(of(rank) <= PER_SOURCE, of(rank), np.nan)}
        for name, values in self.about_items.items():
            columns[name] = values[candidates]
        indptr = self.asked.indptr
        length = np.diff(indptr)[users]
        newest = [self.asked.item[np.maximum(indptr[1:][users] - 1 - back, indptr[:-1][users])] for back in range(NEWEST)]
        columns["own_length"] = np.broadcast_to(length[:, None], candidates.shape)
        for name in ("popularity", "usual_place"):
            usual = np.mean([self.about_items[name][item] for item in newest], axis=0)
            columns[f"{name}_to_own"] = self.about_items[name][candidates] - usual[:, None]
        for name, matrix in self.about_pairs.items():
            beside = np.stack([matrix[item[:, None], candidates] for item in newest])
            columns |= {f"{name}_{back}": beside[back] for back in range(3)} | {
                f"{name}_most": beside.max(0),
                f"{name}_mean": beside.mean(0),
            }
        features = np.stack([np.asarray(column, dtype=np.float32) for column in columns.values()], axis=2)
        return candidates, features, target, tuple(columns)

    def training_rows(self, window: int, rng: np.random.Generator) -> RankingRows:
        """Return a list of every user whose item is among its candidates: that item and candidates drawn among the others."""
        parts, positive, names = [], [], ()
        for candidates, features, target, named in self.blocks():
            hit = candidates == target[:, None]
            found = hit.any(axis=1)
            # Kept in the order of the votes: were the positive first, trees that tell nothing apart would seem perfect.
            order = np.sort(np.argsort(np.where(hit, -1.0, rng.random(hit.shape)), axis=1)[found, : NEGATIVES + 1], axis=1)
            positive.append(np.take_along_axis(hit[found], order, axis=1))
            parts.append(np.take_along_axis(features[found], order[:, :, None], axis=1))
            names = named
        lists = np.concatenate(parts)
        gain = np.concatenate(positive).astype(np.float32)
        group = np.full(len(lists), NEGATIVES + 1, dtype=np.int32)
        flat = lists.reshape(-1, lists.shape[2])
        return RankingRows(flat, names, gain.ravel(), group, np.full(len(lists), window, dtype=np.int32))


def places(scores: np.ndarray) -> np.ndarray:
    """Return float32 like the scores, 1 for the best of each row; what is not proposed comes last."""
    order = np.argsort(-scores, axis=1, kind="stable")
    rank = np.empty(scores.shape, dtype=np.float32)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(1, scores.shape[1] + 1, dtype=np.float32), scores.shape), axis=1)
    rank[~np.isfinite(scores)] = scores.shape[1] + 1
    return rank


def items(known: Interactions) -> dict[str, np.ndarray]:
    """Return what is known of each item: how often it was met, how early in a sequence, and whether rather of late."""
    n = len(known.item_ids)
    starts = np.searchsorted(known.user, np.arange(len(known.user_ids) + 1))
    place, length = np.arange(len(known.user)) - starts[known.user], np.diff(starts)[known.user]
    often = np.bincount(known.item, minlength=n)
    late, early = (np.bincount(known.item[chosen], minlength=n) for chosen in (place >= length - 10, place < 10))
    usual = np.bincount(known.item, place / np.maximum(length - 1, 1), minlength=n) / np.maximum(often, 1)
    return {"popularity": np.log1p(often), "late": np.log1p(late), "trend": np.log((late + 5) / (early + 5)), "usual_place": usual}


def pairs(known: Interactions) -> dict[str, np.ndarray]:
    """Return float32 [n_items, n_items] each: cosine of who met both, how often one followed the other, and preceded it."""
    n = len(known.item_ids)
    met = sparse.csr_matrix((np.ones(len(known.user), dtype=np.float32), (known.user, known.item)), shape=(len(known.user_ids), n))
    norm = np.sqrt(np.maximum(np.asarray(met.sum(axis=0)).ravel(), 1)).astype(np.float32)
    cosine = (met.T @ met).toarray() / norm[:, None] / norm
    np.fill_diagonal(cosine, 0)
    same = known.user[1:] == known.user[:-1]
    step = sparse.csr_matrix(
        (np.ones(int(same.sum()), dtype=np.float32), (known.item[:-1][same], known.item[1:][same])), shape=(n, n)
    ).toarray()
    follows = step / np.maximum(step.sum(axis=1, keepdims=True), 1)
    return {"cosine": cosine, "follows": follows, "precedes": follows.T}


def gains(score: np.ndarray, target_at: np.ndarray) -> np.ndarray:
    """Return NDCG@10 of each user, for one target; a tie counts half."""
    own = np.where(target_at, score, -np.inf).max(axis=1, keepdims=True)
    rank = (score > own).sum(axis=1) + ((score == own) & np.isfinite(own) & ~target_at).sum(axis=1) / 2
    return np.where(np.isfinite(own[:, 0]) & (rank < K), 1 / np.log2(rank + 2), 0.0)


def measured(real: Path, tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Return the rows of the page: ours beside the best source, and beside the published neural model."""
    begun = time.perf_counter()
    split = paper_data.ml_1m_sequences(real)
    rng, parts, cut = np.random.default_rng(7), [], split
    for back in range(WINDOWS):
        cut = paper_data.leave_last_known_out(cut)
        parts.append(Fold(cut).training_rows(WINDOWS - 1 - back, rng))
        tell(f"sequences: window {WINDOWS - back} of {WINDOWS}, {time.perf_counter() - begun:.0f} s")
    parts.reverse()
    rows = RankingRows(
        np.concatenate([part.features for part in parts]),
        parts[0].names,
        np.concatenate([part.gain for part in parts]),
        np.concatenate([part.group for part in parts]),
        np.concatenate([part.window for part in parts]),
    )
    ranker = RANKER.fit(rows)
    tell(f"sequences: {len(rows.gain):,} rows, {rows.features.shape[1]} features, {time.perf_counter() - begun:.0f} s")
    del parts, rows
    judged = Fold(split)
    single = {name: gains(scores, np.arange(scores.shape[1]) == judged.target[:, None]) for name, scores in judged.score.items()}
    found, fused = [], []
    for candidates, features, target, names in judged.blocks():
        score = ranker.score(features.reshape(-1, features.shape[2])).reshape(candidates.shape)
        found.append(gains(score, candidates == target[:, None]))
        fused.append(gains(features[:, :, names.index("votes")], candidates == target[:, None]))
    ours, blend = np.concatenate(found), np.concatenate(fused)
    best = max(single, key=lambda name: single[name].mean())
    tell("sequences: " + ", ".join(f"{name} {values.mean():.4f}" for name, values in {**single, "blend": blend, "ranked": ours}.items()))
    rows_of_page = []
    for case, theirs in ((f"the best source ({best})", single[best]), ("the blend", blend)):
        gap = paired.interval(ours - theirs, 0.95, 7)
        rows_of_page.append(page_row(f"sequences: two stages over {case}", ours.mean(), theirs.mean(), "lower bound > 0", gap.lower > 0))
        rows_of_page[-1]["interval"] = f"{gap.mean:+.4f} [{gap.lower:+.4f}, {gap.upper:+.4f}], {gap.n} users"
    rows_of_page.append(
        page_row("sequences: two stages over SASRec as published", ours.mean(), PUBLISHED, f">= {TARGET}", ours.mean() >= TARGET)
    )
    return rows_of_page


def page_row(case: str, ours: float, theirs: float, target: str, met: bool) -> dict[str, Any]:
    """Return one line of the page."""
    ratio = round(float(ours / theirs), 3)
    return {
        "case": case,
        "ours": round(float(ours), 4),
        "peer": round(float(theirs), 4),
        "unit": "NDCG@10",
        "ratio": ratio,
        "target": target,
        "met": bool(met),
    }
