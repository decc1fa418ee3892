"""The lines of the published tables: the split, the metrics, each model with its knobs, what was published, what we aim at.

Knobs were chosen on the validation splits alone. Neural models say how many epochs they may take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import REPOSITORY
from pipelines.retrieval.als import Als
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.graph_filter import GraphFilter
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.lightgcn import LightGcn
from pipelines.retrieval.neumf import NeuMf
from pipelines.retrieval.nmf import Nmf
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.protocol import Retriever
from pipelines.retrieval.pure_svd import PureSvd
from pipelines.retrieval.sasrec import SasRec
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.session_knn import SessionKnn
from pipelines.retrieval.user_knn import UserKnn

sys.path.insert(0, str(REPOSITORY / "tests" / "retrieval"))
import paper_data
from paper_data import Split

Pair = tuple[float | None, float | None]


@dataclass(frozen=True)
class Line:
    """A model, what was published for it, and what we set out to reach, as pairs of the table's two metrics."""

    name: str
    model: Retriever
    published: Pair = (None, None)
    target: Pair = (None, None)


@dataclass(frozen=True)
class Table:
    """A published table: its data, its two metrics and its lines."""

    load: Callable[[Path], Split]
    validation: Callable[[Split], Split]
    metrics: tuple[str, str]
    k: int
    lines: tuple[Line, ...]


def tenth(split: Split) -> Split:
    """Return a random tenth of each user's training events as what is asked for."""
    return paper_data.leave_share_out(split, 0.1, seed=1)


TABLES = {
    "ncf": Table(
        paper_data.ncf_ml_1m,
        paper_data.leave_one_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.4533, 0.2542)),
            Line("item_knn", ItemKnn(weighting="bm25", n_neighbours=50, shrinkage=10.0, max_history=5000), (0.6694, 0.3979)),
            Line("user_knn", UserKnn(max_history=5000), (0.6768, 0.4100)),
            Line("pure_svd", PureSvd(n_factors=32, max_history=5000), (0.6937, 0.4303)),
            Line("nmf", Nmf(max_history=5000)),
            Line("bpr", Bpr(max_history=5000), (0.6305, 0.3730)),
            Line("als", Als(n_factors=96, regularization=30.0, frequency_exponent=1.0, alpha=1.0), (0.7109, 0.4382), (0.72, 0.445)),
            Line("ease", Ease(regularization=1000.0, n_neighbours=4000, max_history=5000), (0.7192, 0.4494), (0.718, 0.449)),
            Line("graph_filter", GraphFilter(n_neighbours=4000, max_history=5000)),
            Line(
                "neumf",
                # Its first epoch is its best: what the factors know alone is hardly bettered.
                NeuMf(
                    n_epochs=3,
                    patience=1,
                    learning_rate=1e-4,
                    batch_size=16,
                    n_factors=64,
                    max_history=400,
                    dropout=0.2,
                    validation="last",
                    final_epochs=0,
                ),
                (0.7093, 0.4349),
                (0.709, 0.435),
            ),
        ),
    ),
    "sequences": Table(
        paper_data.ml_1m_sequences,
        paper_data.leave_last_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.0364, 0.0179)),
            Line("bpr", Bpr(max_history=5000), (0.0740, 0.0377)),
            Line("ease", Ease(max_history=5000), (0.1099, 0.0544)),
            Line("sequence_rules", SequenceRules(decay=0.75, popularity_exponent=0.15), (0.2788, 0.1611), (None, 0.161)),
            Line("session_knn", SessionKnn()),
            # 72 minutes of one core.
            Line(
                "sasrec",
                SasRec(
                    n_epochs=24,
                    patience=24,
                    max_history=200,
                    n_factors=128,
                    n_heads=1,
                    n_negatives=0,
                    dropout=0.25,
                    batch_size=32,
                    decay=0.02,
                    validation="last",
                ),
                (0.3058, 0.1779),
                (None, 0.178),
            ),
        ),
    ),
    "gowalla": Table(
        paper_data.gowalla,
        tenth,
        ("R@20", "NDCG@20"),
        20,
        (
            Line("popular", Popular(), (0.0416, 0.0317)),
            Line("item_knn", ItemKnn(n_neighbours=400, shrinkage=0.0, max_history=5000), (0.1570, 0.1214)),
            Line(
                "graph_filter",
                GraphFilter(user_exponent=0.7, from_exponent=0.9, to_exponent=0.175, power=1.3, n_neighbours=1000, max_history=5000),
                (0.1862, 0.1563),
                (0.186, None),
            ),
            Line(
                "lightgcn",
                # 23 minutes of one core.
                LightGcn(patience=8, n_factors=128, temperature=0.075, decay=0.05, validation="last", n_validation=2000, final_epochs=0),
                (0.1823, 0.1554),
                (0.182, None),
            ),
        ),
    ),
    "beauty": Table(
        paper_data.beauty,
        paper_data.leave_last_known_out,
        ("HR@10", "NDCG@10"),
        10,
        (
            Line("popular", Popular(), (0.0120, None)),
            Line("sequence_rules", SequenceRules(), target=(None, 0.0531)),
            Line("session_knn", SessionKnn(), target=(None, 0.0531)),
        ),
    ),
}
