"""The one function that makes the ranker's feature matrix, for training rows, for judging and for serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.datasets.interactions import Floats
from pipelines.features import store
from pipelines.ranking.contact import activity, contact, usual_log_price
from pipelines.ranking.context import Context
from pipelines.ranking.proposals import Proposals

CONTACT: Final = {
    "count": "events of the user with the {}",
    "weight": "summed strength of those events, halved every 14 days",
    "share": "that strength over the user's total, 0 to 1",
    "days_since": "days since the user's last event with the {}; missing without one",
    "events_since": "the user's events since the last one with the {}; missing without one",
}


@dataclass(frozen=True)
class FeatureSpec:
    """One column of the matrix.

    Attributes:
        name: as the ranker knows it.
        meaning: what it is, with its unit.
        source: who computes it: `retrieval`, `history`, `catalogue`, or `feature store`.
        online: whether it follows the last event at once, without a batch job in between.
    """

    name: str
    meaning: str
    source: str
    online: bool = True


def specs(sources: tuple[str, ...], known: Context) -> list[FeatureSpec]:
    """Return the table of features, in the order of the matrix."""
    described = {spec.name: spec.description for spec in store.schema()}
    proposed = [
        FeatureSpec(f"{source}_{what}", meaning, "retrieval")
        for source in sources
        for what, meaning in (
            ("score", f"score that {source} gave the item, in its own unit; missing where it did not propose it"),
            ("rank", f"place in the list of {source}, 1 is best; missing where it did not propose it"),
        )
    ]
    return [
        *proposed,
        FeatureSpec("blend_score", "reciprocal-rank fusion of the sources", "retrieval"),
        FeatureSpec("blend_rank", "place in the blend, 1 is best", "retrieval"),
        FeatureSpec("n_sources", "sources that proposed the item", "retrieval"),
        FeatureSpec("best_rank", "best place in the list of any source", "retrieval"),
        *(
            FeatureSpec(name, described.get(name, ""), "feature store", online=False)
            for stored in (known.user, known.item, known.pair, known.brand)
            for name in stored.names
        ),
        *(
            FeatureSpec(f"own_{thing}_{name}", meaning.format(thing), "history")
            for thing in ("item", "category", "brand")
            for name, meaning in CONTACT.items()
        ),
        FeatureSpec("own_events", "events in the user's history", "history"),
        FeatureSpec("own_days_since", "days since the user's last event; missing without one", "history"),
        FeatureSpec("price_to_usual", "log of the item's price over the decayed geometric mean price of what the user met", "catalogue"),
    ]


def assemble(known: Context, proposals: Proposals) -> tuple[Floats, tuple[str, ...]]:
    """Return the matrix float32 [n, n_features] of whole lists of candidates, in their order, and the names of its columns.

    Memory follows the candidates: call it on `Proposals.blocks`. A value depends on its own list and
    the context alone, so blocks of any size give the same matrix.
    """
    row, item, goods = proposals.row, proposals.item, known.catalogue
    proposed = np.isfinite(proposals.rank)
    columns = [block[:, source] for source in range(len(proposals.sources)) for block in (proposals.score, proposals.rank)]
    columns += [proposals.blend_score, proposals.blend_rank, proposed.sum(axis=1)]
    columns.append(np.where(proposed, proposals.rank, np.inf).min(axis=1, initial=np.inf))

    columns += [known.user.rows(row), known.item.rows(item.astype(np.int64))]
    for stored, code, words in ((known.pair, goods.category[item], goods.categories), (known.brand, goods.brand[item], goods.brands)):
        columns.append(stored.rows(np.where(code < 0, -1, row * max(len(words), 1) + code)))

    # Only the users of this block: contact costs in proportion to the events it is shown.
    first, last = (int(row[0]), int(row[-1]) + 1) if len(row) else (0, 0)
    histories, own = known.histories.rows(first, last), row - first
    for key_of_item in (np.arange(histories.n_items, dtype=np.int32), goods.category, goods.brand):
        met = contact(histories, own, key_of_item[item], key_of_item)
        columns += [met.count, met.weight, met.share, met.days_since, met.events_since]
    columns += [per_user[own] for per_user in activity(histories)]
    with np.errstate(invalid="ignore", divide="ignore"):
        price = np.where(goods.price > 0, goods.price, np.nan)
        columns.append(np.log(price[item]) - usual_log_price(histories, goods.price)[own])

    names = tuple(spec.name for spec in specs(proposals.sources, known))
    return np.column_stack([column.astype(np.float32, copy=False) for column in columns]), names
