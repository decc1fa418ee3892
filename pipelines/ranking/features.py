"""The one function that makes the ranker's feature matrix, for training rows, for judging and for serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from pipelines.datasets.interactions import Floats, Histories, Ints, Longs
from pipelines.errors import StateError
from pipelines.lake.codes import DEVICES
from pipelines.model_settings import FEATURE_GROUPS
from pipelines.ranking import likeness
from pipelines.ranking.contact import activity, contact, last_sessions, session, usual_log_price
from pipelines.ranking.context import Context
from pipelines.ranking.feature_table import Columns, specs
from pipelines.ranking.proposals import Proposals


@dataclass(frozen=True)
class Block:
    """Whole lists of candidates, and the histories of their users alone: contact costs in proportion to the events it is shown.

    Attributes:
        own: int64 [n], the row of `histories` of each candidate.
    """

    known: Context
    candidates: Proposals
    histories: Histories
    own: Longs

    @cached_property
    def scores(self) -> Floats:
        """Return float32 [n, n_sources], what each source gave the item; NaN where it did not propose it.

        Where the sources' vectors are known, a score is summed by itself once more: the product of many users' vectors at once
        rounds otherwise than that of a request's one.
        """
        scores = self.candidates.score.copy()
        for at, source in enumerate(self.candidates.sources):
            if source in self.known.vectors:
                alone = self.known.vectors[source].of_users(self.candidates.row, self.candidates.item)
                again = np.isfinite(scores[:, at]) & np.isfinite(alone)
                scores[again, at] = alone[again]
        return scores

    def per_list(self, values: Floats | npt.NDArray[np.float64]) -> Floats:
        """Return float32 [n], the value of each candidate's user."""
        return values[self.own].astype(np.float32)


def assemble(known: Context, candidates: Proposals) -> tuple[Floats, tuple[str, ...]]:
    """Return the matrix float32 [n, n_features] of whole lists of candidates, in their order, and the names of its columns.

    The columns are those of the context's groups, as `feature_table.specs` describes them. Memory follows the
    candidates: call it on `Proposals.blocks`. A value depends on its own list and the context alone, so blocks of any size
    give the same matrix, and a user's rows are the same whoever else is asked for.
    """
    row = candidates.row
    first, last = (int(row[0]), int(row[-1]) + 1) if len(row) else (0, 0)
    block = Block(known, candidates, known.histories.rows(first, last), row - first)
    columns = [column for group in FEATURE_GROUPS if group in known.groups for column in MADE[group](block)]
    stored = known.user.names + known.item.names + known.pair.names + known.brand.names
    names = _names(candidates.sources, tuple(known.vectors), stored, known.groups)
    matrix = np.empty((len(row), len(names)), np.float32)
    at = 0
    for column in columns:
        width = 1 if column.ndim == 1 else column.shape[1]
        matrix[:, at : at + width] = column.reshape(len(row), width)
        at += width
    if at != len(names):
        raise StateError("feature matrix", found=f"{at} columns", allowed=f"the {len(names)} that feature_table describes")
    return matrix, names


@lru_cache(maxsize=64)
def _names(sources: tuple[str, ...], placed: tuple[str, ...], stored: tuple[str, ...], groups: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs(Columns(sources, placed, dict.fromkeys(stored, "")), groups))


def _retrieval(block: Block) -> list[Floats]:
    """Return what the sources and the blend said."""
    found = block.candidates
    proposed = np.isfinite(found.rank)
    columns = [given[:, source] for source in range(len(found.sources)) for given in (block.scores, found.rank)]
    best = np.where(proposed, found.rank, np.inf).min(axis=1, initial=np.inf)
    return [*columns, found.blend_score, found.blend_rank, proposed.sum(axis=1).astype(np.float32), best.astype(np.float32)]


def _standardised(block: Block) -> list[Floats]:
    """Return each source's scores less their mean in the list, over their deviation; 0 where all of them are equal."""
    columns = []
    starts = block.candidates.starts()[:-1]
    owner = np.repeat(np.arange(len(starts)), np.diff(block.candidates.starts()))
    for source in range(len(block.candidates.sources)):
        score = block.scores[:, source].astype(np.float64)
        given = np.isfinite(score)
        n = np.maximum(np.bincount(owner[given], minlength=len(starts)), 1)
        mean = np.bincount(owner[given], weights=score[given], minlength=len(starts)) / n
        apart = np.where(given, score - mean[owner], 0.0)
        deviation = np.sqrt(np.bincount(owner, weights=apart**2, minlength=len(starts)) / n)
        # What is left of equal scores after a mean was taken off is rounding, no distance.
        spread = np.where(deviation > 1e-6 * np.abs(mean), deviation, np.inf)[owner]
        columns.append(np.where(given, apart / spread, np.nan).astype(np.float32))
    return columns


def _embedding(block: Block) -> list[Floats]:
    """Return, of every source that has vectors, the user's and the last item's affinity to the candidate."""
    ends, filled = block.histories.indptr[1:], block.histories.lengths() > 0
    newest = np.full(block.histories.n_users, -1, np.int32)
    newest[filled] = block.histories.item[ends[filled] - 1]
    columns = []
    for placed in block.known.vectors.values():
        columns.append(placed.of_users(block.candidates.row, block.candidates.item))
        columns.append(placed.of_items(newest[block.own], block.candidates.item))
    return columns


def _stored(block: Block) -> list[Floats]:
    """Return what the feature store holds of the user, the item, and the user with its category and brand."""
    known, goods, row, item = block.known, block.known.catalogue, block.candidates.row, block.candidates.item
    columns = [known.user.rows(row), known.item.rows(item.astype(np.int64))]
    for stored, code, words in ((known.pair, goods.category[item], goods.categories), (known.brand, goods.brand[item], goods.brands)):
        columns.append(stored.rows(np.where(code < 0, -1, row * max(len(words), 1) + code)))
    return columns


def _contact(block: Block) -> list[Floats]:
    """Return the user's own dealings with the item, its category and its brand, and how active they are."""
    goods, item, columns = block.known.catalogue, block.candidates.item, []
    n_items = block.histories.n_items
    keys = ((_itself(n_items), n_items), (goods.category, len(goods.categories)), (goods.brand, len(goods.brands)))
    for key_of_item, width in keys:
        met = contact(block.histories, block.own, key_of_item[item], key_of_item, max(width, 1))
        columns += [met.count, met.weight, met.share, met.days_since, met.events_since]
    return columns + [block.per_list(per_user) for per_user in activity(block.histories)]


@lru_cache(maxsize=2)
def _itself(n_items: int) -> Ints:
    """Return int32 [n_items], every item as a key of its own; not to be written to."""
    return np.arange(n_items, dtype=np.int32)


def _price(block: Block) -> list[Floats]:
    """Return the price against the user's usual one."""
    price = block.known.catalogue.price
    asked = price[block.candidates.item]
    with np.errstate(invalid="ignore", divide="ignore"):
        log_price = np.log(np.where(asked > 0, asked, np.nan))
    return [(log_price - block.per_list(usual_log_price(block.histories, price))).astype(np.float32)]


def _content(block: Block) -> list[Floats]:
    """Return how alike the descriptions of the candidate and of what the user met are."""
    vectors = block.known.described().content
    return [likeness.cosine(profile, block.own, vectors, block.candidates.item) for profile in likeness.profiles(block.histories, vectors)]


def _session(block: Block) -> list[Floats]:
    """Return, of every source that has vectors, how near the candidate is to the items of the user's last session."""
    begin, end = last_sessions(block.histories), block.histories.indptr[1:]
    length = np.where(block.histories.lengths() > 0, end - begin, 0)
    indptr = np.append(0, np.cumsum(length)).astype(np.int64)
    member = block.histories.item[np.arange(indptr[-1]) - np.repeat(indptr[:-1] - begin, length)]
    return [placed.of_lists(indptr, member, block.own, block.candidates.item) for placed in block.known.vectors.values()]


def _request(block: Block) -> list[Floats]:
    """Return when the list is made, on what, and the session it is made in."""
    moment = datetime.fromtimestamp(block.histories.as_of / 1e6, UTC)
    n = len(block.own)
    events, minutes = session(block.histories)
    when = [moment.hour + moment.minute / 60, float(moment.weekday())]
    device = np.full(block.histories.n_users, -1) if block.histories.device is None else block.histories.device
    on = [block.per_list(np.where(device < 0, np.nan, device == DEVICES.index(kind))) for kind in ("phone", "tablet")]
    return [*(np.full(n, value, np.float32) for value in when), block.per_list(events), block.per_list(minutes), *on]


def _encoding(block: Block) -> list[Floats]:
    """Return what the item, its category and its brand were worth in the window before."""
    known, goods, item = block.known, block.known.catalogue, block.candidates.item
    encoding = known.described().encoding
    columns = [known.encoded.rows(item.astype(np.int64))]
    for kind, code, words in (("category", goods.category[item], goods.categories), ("brand", goods.brand[item], goods.brands)):
        worth = np.append(encoding.of(kind, words), np.float32(np.nan))  # the last is for an item without one
        columns.append(worth[code])
    return columns


MADE: Final[dict[str, Callable[[Block], list[Floats]]]] = {
    "retrieval": _retrieval,
    "standardised": _standardised,
    "embedding": _embedding,
    "stored": _stored,
    "contact": _contact,
    "price": _price,
    "content": _content,
    "session": _session,
    "request": _request,
    "encoding": _encoding,
}
