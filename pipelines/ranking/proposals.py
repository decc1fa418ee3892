"""Candidates as flat rows, whether they were just blended or read back from a run's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.datasets.interactions import Floats, Ints, Longs
from pipelines.datasets.labels import Labels
from pipelines.retrieval.merging import Blend

LISTS_PER_BLOCK: Final = 2048  # 2,048 lists x 150 candidates x 100 features x 4 bytes = 120 MB


@dataclass(frozen=True)
class Proposals:
    """Candidates as flat rows, the lists of one user together, best of the blend first.

    Attributes:
        row: int64 [n], not decreasing: whose list, as a row of some histories or labels.
        item: int32 [n], dense items, each once a list.
        score: float32 [n, n_sources], what each source gave the item; NaN where it did not propose it.
        rank: float32 [n, n_sources], 1 is best; NaN likewise.
        blend_score, blend_rank: float32 [n], what the blend gave it.
        sources: names of the columns of `score` and `rank`.
    """

    row: Longs
    item: Ints
    score: Floats
    rank: Floats
    blend_score: Floats
    blend_rank: Floats
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_]) -> Proposals:
        return Proposals(
            self.row[rows], self.item[rows], self.score[rows], self.rank[rows], self.blend_score[rows], self.blend_rank[rows], self.sources
        )

    def starts(self) -> Longs:
        """Return int64 [n_lists + 1], where each list begins; the last entry is the number of rows."""
        return np.append(np.flatnonzero(np.diff(self.row, prepend=-1)), len(self.row)).astype(np.int64)

    def blocks(self, n_lists: int = LISTS_PER_BLOCK) -> Iterator[Proposals]:
        """Yield the rows of at most `n_lists` whole lists at a time, as views."""
        starts = self.starts()
        for first in range(0, len(starts) - 1, n_lists):
            yield self[int(starts[first]) : int(starts[min(first + n_lists, len(starts) - 1)])]

    def gains(self, truth: Labels) -> Floats:
        """Return float32 [n], the gain of each candidate, 0 where the user ignored it; `row` counts rows of the labels."""
        width = max(len(truth.item_ids), 1)
        positive = truth.row_of_label() * width + truth.item
        if not len(positive):
            return np.zeros(len(self), np.float32)
        asked = self.row * width + self.item
        at = np.minimum(np.searchsorted(positive, asked), len(positive) - 1)
        return np.where(positive[at] == asked, truth.gain[at], np.float32(0)).astype(np.float32)

    def ranked(self, score: npt.NDArray[np.floating], n_rows: int, k: int) -> tuple[Ints, Floats, Longs]:
        """Return the k best of each list by a score; equal scores are ordered by item.

        Returns:
            int32 [n_rows, k] items, -1 pads; float32 [n_rows, k] scores, -inf pads; int64 [n_rows, k]
            which row of the proposals it is, -1 pads. A row of no list is all padding.
        """
        order = np.lexsort((self.item, -score, self.row))
        starts = self.starts()
        place = np.arange(len(self)) - np.repeat(starts[:-1], np.diff(starts))
        kept, column = order[place < k], place[place < k]
        row = self.row[kept]
        item, best = np.full((n_rows, k), -1, np.int32), np.full((n_rows, k), -np.inf, np.float32)
        at = np.full((n_rows, k), -1, np.int64)
        item[row, column], best[row, column], at[row, column] = self.item[kept], score[kept], kept
        return item, best, at


def of_table(table: pa.Table, users: npt.NDArray[np.integer]) -> Proposals:
    """Return candidates as `retrieval.blend` wrote them.

    Args:
        users: ascending, the `user` of each row of the fold's labels.
    """
    sources = tuple(name.removeprefix("score__") for name in table.column_names if name.startswith("score__"))

    def stacked(prefix: str) -> Floats:
        block = np.empty((table.num_rows, len(sources)), np.float32)
        for at, name in enumerate(sources):
            block[:, at] = table[prefix + name].to_numpy()
        return block

    return Proposals(
        np.searchsorted(users, table["user"].to_numpy()).astype(np.int64),
        table["item"].to_numpy().astype(np.int32),
        stacked("score__"),
        stacked("rank__"),
        table["blend_score"].to_numpy().astype(np.float32),
        table["blend_rank"].to_numpy().astype(np.float32),
        sources,
    )


def of_blend(merged: Blend) -> Proposals:
    """Return candidates that were just blended; row r of the blend is row r."""
    row, column = np.nonzero(merged.item >= 0)
    sources = tuple(merged.source_score)
    return Proposals(
        row.astype(np.int64),
        merged.item[row, column],
        np.column_stack([merged.source_score[name][row, column] for name in sources]),
        np.column_stack([merged.source_rank[name][row, column] for name in sources]),
        merged.score[row, column],
        (column + 1).astype(np.float32),
        sources,
    )
