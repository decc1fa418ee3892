"""What a model answered when it was built, kept in its bundle, to be asked again wherever the bundle is first loaded.

    golden/lists.npz    histories of made-up users, and the candidates that were blended for them
    golden/rows.npz     feature rows, and the ranker's score of each; missing where the bundle has no ranker

Neither holds anybody's data: the histories are drawn from the catalogue by lot, and every column of the
feature rows is drawn on its own from the training rows, so that no row is a person's and the trees are
still asked at the values they split. A file that loads and answers otherwise (a damaged native file
often does, with its digest made to fit) is found here and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipelines import publish
from pipelines.datasets.interactions import Floats, Histories
from pipelines.errors import StateError
from pipelines.ranking import rankers
from pipelines.ranking.protocol import Ranker
from pipelines.retrieval import cold_users, lineup, merging
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.protocol import Retriever
from pipelines.window import micros

LISTS_FILE: Final = "lists.npz"
ROWS_FILE: Final = "rows.npz"
LENGTHS: Final = (0, 1, 2, 3, 5, 8, 13, 40)  # events of the made-up users: strangers to heavy ones
N_ROWS: Final = 256
HOUR: Final = 3_600_000_000  # microseconds
SEED: Final = 7

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Parts:
    """What of a two-stage model proposes and orders, as it lies in a bundle."""

    n_items: int
    retrievers: dict[str, Retriever]
    ranker: Ranker | None
    facts: dict[str, Any]

    @classmethod
    def load(cls, model: Path) -> Parts:
        """Read the parts of a saved model whose bytes the caller has checked.

        Raises:
            StateError: a part does not hold what it should.
        """
        facts: dict[str, Any] = json.loads((model / "two_stage.json").read_text(encoding="utf-8"))
        return cls(
            pq.read_metadata(model / "items.parquet").num_rows,
            {name: lineup.load(model / "retrieval" / name) for name in facts["sources"]},
            rankers.load(model / "ranker") if facts["ranker"] else None,
            facts,
        )

    def blended(self, users: Histories) -> dict[str, npt.NDArray[np.generic]]:
        """Return the candidates of some histories as `TwoStage.propose` blends them: item and score, [n_users, k]."""
        lists = {
            name: model.retrieve(users, self.facts["k_per_source"], exclude_seen=self.facts["exclude_seen"])
            for name, model in self.retrievers.items()
        }
        recipe = Recipe.from_json(self.facts["recipe"]) if "recipe" in self.facts else Recipe()
        merged = merging.merge(cold_users.alone(lists), self.facts["k_blend"], recipe)
        return {"item": merged.item, "score": merged.score}


def histories(n_items: int, as_of: datetime) -> Histories:
    """Return made-up users of `LENGTHS` events each, an hour apart, on items drawn by lot."""
    indptr = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
    n, end = int(indptr[-1]) if n_items else 0, micros(as_of)
    if not n_items:
        indptr = np.zeros_like(indptr)
    item = np.random.default_rng(SEED).integers(0, max(n_items, 1), n).astype(np.int32)
    at = end - HOUR * (np.repeat(indptr[1:], np.diff(indptr)) - np.arange(n))
    return Histories(
        indptr, item, at.astype(np.int64), np.ones(n, np.float32), n_items, end,
        rating=np.full(n, np.nan, np.float32), event_type=np.zeros(n, np.int8),
    )  # fmt: skip


def rows(training_rows: Path, names: tuple[str, ...]) -> Floats:
    """Return float32 [N_ROWS, n_features], each column drawn on its own from the first rows of a training file.

    Args:
        training_rows: Parquet with a column a feature.
    """
    table = pq.ParquetFile(training_rows).read_row_group(0, columns=list(names))
    rng, drawn = np.random.default_rng(SEED), np.empty((N_ROWS, len(names)), np.float32)
    for at, name in enumerate(names):
        drawn[:, at] = rng.choice(table[name].to_numpy(), N_ROWS)
    return drawn


def write(out: Path, model: Path, as_of: datetime, training_rows: Path) -> None:
    """Ask a saved model and keep what it answers in a folder that is being published.

    Args:
        model: as it will lie in the bundle; it is read back, so that what is asked is what was written.
        training_rows: the first fold's; read where the model has a ranker.
    """
    asked = Parts.load(model)
    users = histories(asked.n_items, as_of)
    told: dict[str, npt.NDArray[Any]] = {"indptr": users.indptr, "item": users.item, "at": users.at, "as_of": np.array(users.as_of)}
    out.mkdir()
    _save(out / LISTS_FILE, told | {f"golden_{name}": array for name, array in asked.blended(users).items()})
    if asked.ranker is not None:
        matrix = rows(training_rows, asked.ranker.features)
        _save(out / ROWS_FILE, {"features": matrix, "score": asked.ranker.score(matrix)})


def _save(path: Path, arrays: Arrays) -> None:
    with publish.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **dict(arrays))


def check(folder: Path, asked: Parts, tolerance: float) -> float:
    """Ask a loaded model again; return the largest distance from what it answered when it was built.

    Raises:
        StateError: a list or a score differs by more than `tolerance`, or is no number.
    """
    with np.load(folder / LISTS_FILE, allow_pickle=False) as kept:
        users = histories_of(kept, asked.n_items)
        item, score = kept["golden_item"], kept["golden_score"].astype(np.float64)
    now = asked.blended(users)
    if now["item"].shape != item.shape or not np.array_equal(now["item"], item):
        user = int(np.flatnonzero((now["item"] != item).any(axis=1))[0]) if now["item"].shape == item.shape else 0
        raise _differs("lists", f"other candidates for the made-up user with {np.diff(users.indptr)[user]} events")
    furthest = _distance("lists", now["score"].astype(np.float64)[item >= 0], score[item >= 0], tolerance)
    if asked.ranker is not None:
        with np.load(folder / ROWS_FILE, allow_pickle=False) as kept:
            features, told = kept["features"], kept["score"]
        furthest = max(furthest, _distance("rows", asked.ranker.score(features), told, tolerance))
    return furthest


def histories_of(kept: Any, n_items: int) -> Histories:
    """Return the made-up users that were kept."""
    n = len(kept["item"])
    return Histories(
        kept["indptr"], kept["item"], kept["at"], np.ones(n, np.float32), n_items, int(kept["as_of"]),
        rating=np.full(n, np.nan, np.float32), event_type=np.zeros(n, np.int8),
    )  # fmt: skip


def _distance(what: str, now: npt.NDArray[np.float64], then: npt.NDArray[np.float64], tolerance: float) -> float:
    if now.shape != then.shape:
        raise _differs(what, f"{len(now)} scores instead of {len(then)}")
    furthest = float(np.abs(now - then).max(initial=0.0))
    if not furthest <= tolerance:  # a score that is no number is no answer, either
        raise _differs(
            what, f"scores that are {furthest:.3g} away, at {int((~(np.abs(now - then) <= tolerance)).sum())} of {len(then)} places"
        )
    return furthest


def _differs(what: str, found: str) -> StateError:
    return StateError(
        f"golden {what}",
        found=found,
        allowed="what the model answered when it was built",
        hint="the bundle is damaged, or this machine or its libraries compute otherwise; bundle.golden_tolerance says by how much they may",
    )
