"""The catalogue for serving: what is said of every item, what goes with it, and what everybody likes; one folder, memory-mapped.

    items.arrow     item_id (sorted), title, category, brand, price, attributes, available, created_at, first_us, n_events
    lists.arrow     kind (`popular`, `trending`), segment ("" is everybody, or "country=DE", "age_band=..."), item and score, best first
    <kind>_ptr.npy, <kind>.npy, <kind>_score.npy    of each item those bought (`bought`) or viewed (`viewed`) with it, best first

With it a shop answers before there is any release: popular in a segment, popular, trending, bought together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import tables
from pipelines.config import Home
from pipelines.features.history_snapshot import Array, mapped, mapped_arrow, save_arrow
from pipelines.lake.engine import parquet
from pipelines.window import micros

ITEMS: Final = (c.TITLE, c.CATEGORY, c.BRAND, c.PRICE, c.ATTRIBUTES, c.AVAILABLE, c.CREATED_AT)
TOLD: Final = (c.TITLE, c.CATEGORY, c.BRAND, c.PRICE, c.AVAILABLE)
REMEMBERED: Final = 20_000
SEGMENTS: Final = (c.COUNTRY, c.AGE_BAND)
POPULAR: Final = "popular"
TRENDING: Final = "trending"
TOGETHER: Final = {"bought": ("bought_together_rank", "bought_together_score"), "viewed": ("similar_rank", "similar_score")}
KEPT: Final = 500  # items a list
MOST_SEGMENTS: Final = 200  # the heaviest of each kind
DAYS: Final = 28  # of events that popularity counts
HALF_LIFE_DAYS: Final = 7.0
PRIOR: Final = 1000.0  # event weight of everybody's shares in a segment's (Dirichlet prior, as `popular_by_segment`)
FEW: Final = 1024  # items that are looked through at first
LATE_DAYS: Final = 3  # what is trending is what rises in these over the rest of `DAYS` (as `retrieval.trending`)
TRENDING_PRIOR: Final = 5.0  # mean items' weight a day that is added to the usual


@dataclass(frozen=True)
class CatalogueSnapshot:
    """The mapped files of a folder.

    Attributes:
        item_ids: sorted; the places that all else counts by.
        items: one row an item.
        lists: (kind, segment) -> (int32 places, float32 scores), best first.
        together: kind -> (indptr, places, scores) over the items.
    """

    item_ids: pa.ChunkedArray
    items: pa.Table
    lists: dict[tuple[str, str], tuple[Array, Array]]
    together: dict[str, tuple[Array, Array, Array]]
    _told: dict[int, Mapping[str, object]] = field(default_factory=dict, repr=False, compare=False)

    def place(self, item_id: str) -> int:
        """Return the row of an item, -1 where unknown."""
        at = bisect_left(range(len(self.item_ids)), item_id, key=lambda row: self.item_ids[row].as_py())
        return at if at < len(self.item_ids) and self.item_ids[at].as_py() == item_id else -1

    def told(self, place: int) -> Mapping[str, object]:
        """Return what is said of an item, as people are shown it; what is unknown is left out. Not to be written to.

        The items of lists repeat, so what was looked up is kept for a while.
        """
        if (found := self._told.get(place)) is None:
            columns = ((name, self.items[name]) for name in TOLD)
            found = {name: value for name, column in columns if (value := column[place].as_py()) is not None}
            if len(self._told) >= REMEMBERED:
                self._told.clear()
            self._told[place] = found
        return found

    def beside(self, kind: str, place: int) -> tuple[Array, Array]:
        """Return places and scores of what was bought, or viewed, with an item, best first."""
        indptr, items, scores = self.together[kind]
        part = slice(int(indptr[place]), int(indptr[place + 1])) if place >= 0 else slice(0, 0)
        return items[part], scores[part]

    @cached_property
    def available(self) -> Array:
        """Return bool [n_items]; true where nothing is said."""
        return np.asarray(pa.compute.fill_null(self.items[c.AVAILABLE], fill_value=True).to_numpy(), bool)

    @cached_property
    def most_met(self) -> Array:
        """Return int64 [n_items], every place, that of the most events first; equals by place."""
        return np.argsort(-self.items["n_events"].to_numpy(), kind="stable")

    def parts(self) -> Iterator[Array]:
        """Yield all places, the most met first: few, then ever more, since most have found enough after the first."""
        first, size = 0, FEW
        while first < len(self.item_ids):
            yield self.most_met[first : first + size]
            first, size = first + size, 4 * size

    @cached_property
    def price(self) -> Array:
        """Return float64 [n_items], NaN where unknown."""
        return np.asarray(self.items[c.PRICE].to_numpy(), np.float64)

    @cached_property
    def words(self) -> dict[str, tuple[Array, tuple[str, ...]]]:
        """Return of category and brand int32 [n_items] codes, -1 where unknown, and what they stand for, sorted."""
        found = {}
        for name in (c.CATEGORY, c.BRAND):
            column = pa.compute.fill_null(self.items[name].combine_chunks(), "")
            vocabulary = pa.compute.unique(column).sort()
            vocabulary = vocabulary.filter(pa.compute.not_equal(vocabulary, ""))
            codes = pa.compute.fill_null(pa.compute.index_in(column, vocabulary), -1)
            found[name] = (codes.to_numpy(zero_copy_only=False).astype(np.int32), tuple(vocabulary.to_pylist()))
        return found


def index_items(db: duckdb.DuckDBPyConnection) -> None:
    """Create the table `item_index` (item_id, item): everything that has an event or a description, sorted."""
    db.execute(
        """CREATE TEMP TABLE item_index AS SELECT item_id, (row_number() OVER (ORDER BY item_id) - 1)::INT AS item
        FROM (SELECT item_id FROM events UNION SELECT item_id FROM items)"""
    )


def write(home: Home, db: duckdb.DuckDBPyConnection, folder: Path, as_of: datetime, gains: dict[str, float]) -> dict[str, int]:
    """Write the files into a folder that the caller publishes; return how many items there are.

    Args:
        db: the lake as of the moment, with the table `item_index`.
        as_of: the day of the marts.
        gains: weight of an event by its type.
    """
    kept = ", ".join(ITEMS)
    items = db.sql(
        f"""SELECT item_id, {kept}, first_us, coalesce(n_events, 0) AS n_events FROM item_index
        LEFT JOIN (SELECT item_id, {kept} FROM items
            QUALIFY row_number() OVER (PARTITION BY item_id ORDER BY valid_from DESC, received_at DESC) = 1) USING (item_id)
        LEFT JOIN (SELECT item_id, min(epoch_us(event_at)) AS first_us, count(*) AS n_events FROM events GROUP BY item_id) USING (item_id)
        ORDER BY item"""
    ).to_arrow_table()
    schema = pa.schema(
        [
            *(tables.ITEMS.field(name) for name in (c.ITEM_ID, *ITEMS)),
            pa.field("first_us", pa.int64()),
            pa.field("n_events", pa.int64()),
        ]
    )
    save_arrow(folder / "items.arrow", items.cast(schema))
    _write_lists(db, folder, as_of, gains, len(items))
    file = home.features / "item_pairs_daily" / f"as_of={as_of:%Y-%m-%d}.parquet"
    for kind, (rank, score) in TOGETHER.items():
        source = (
            parquet([file]) if file.is_file() else f"SELECT '' AS item_id, '' AS other_item_id, 0 AS {rank}, 0.0 AS {score} WHERE false"
        )
        pairs = db.sql(
            f"""SELECT one.item AS one, other.item AS other, {score}::FLOAT AS score FROM ({source}) AS pairs
            JOIN item_index AS one ON one.item_id = pairs.item_id JOIN item_index AS other ON other.item_id = other_item_id
            WHERE {rank} IS NOT NULL ORDER BY one.item, {rank}, other.item"""
        ).to_arrow_table()
        counts = np.bincount(pairs["one"].to_numpy(), minlength=len(items))
        np.save(folder / f"{kind}_ptr.npy", np.append(0, np.cumsum(counts)).astype(np.int64))
        np.save(folder / f"{kind}.npy", pairs["other"].to_numpy().astype(np.int32))
        np.save(folder / f"{kind}_score.npy", pairs["score"].to_numpy().astype(np.float32))
    return {"items": len(items)}


def _write_lists(db: duckdb.DuckDBPyConnection, folder: Path, as_of: datetime, gains: dict[str, float], n_items: int) -> None:
    """Write what is liked and what rises, of everybody and of segments."""
    gain = " ".join(f"WHEN '{name}' THEN {value!r}" for name, value in sorted(gains.items()))
    age = f"({micros(as_of)} - epoch_us(event_at)) / 86400e6"
    # Decimals add up alike in any order, so that the same lake gives the same bytes.
    db.execute(
        f"""CREATE TEMP TABLE liked AS SELECT user_id, item, {age} AS age,
            (CASE event_type {gain} ELSE 0 END)::DECIMAL(18, 6) AS gain,
            ((CASE event_type {gain} ELSE 0 END) * pow(0.5, ({age}) / {HALF_LIFE_DAYS}))::DECIMAL(18, 6) AS faded
        FROM events JOIN item_index USING (item_id) WHERE {age} <= {DAYS}"""
    )
    db.execute(
        f"CREATE TEMP TABLE profiles AS SELECT user_id, {', '.join(SEGMENTS)} FROM users QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY valid_from DESC, received_at DESC) = 1"
    )
    days = float(db.sql(f"SELECT coalesce(greatest(least(max(age), {DAYS}) - {LATE_DAYS}, 1), 1) FROM liked").fetchall()[0][0])
    sums = f"item, sum(faded)::DOUBLE AS faded, coalesce(sum(gain) FILTER (age <= {LATE_DAYS}), 0)::DOUBLE / {LATE_DAYS} AS late, coalesce(sum(gain) FILTER (age > {LATE_DAYS}), 0)::DOUBLE / {days!r} AS usual"
    table = db.sql(f"SELECT {sums} FROM liked GROUP BY item ORDER BY item").to_arrow_table()
    everybody = {name: np.zeros(n_items) for name in ("faded", "late", "usual")}
    for name, values in everybody.items():
        values[table["item"].to_numpy()] = table[name].to_numpy()
    share = everybody["faded"] / max(everybody["faded"].sum(), np.finfo(float).tiny)
    rows = [(POPULAR, "", *_first(share)), (TRENDING, "", *_first(_rise(everybody["late"], everybody["usual"])))]
    for column in SEGMENTS:
        heaviest = db.sql(
            f"""SELECT {column} AS word, sum(faded) AS weight FROM liked JOIN profiles USING (user_id)
            WHERE {column} IS NOT NULL GROUP BY word ORDER BY weight DESC, word LIMIT {MOST_SEGMENTS}"""
        ).fetchall()
        for word, weight in sorted(heaviest):
            inside = db.sql(
                f"SELECT {sums} FROM liked JOIN profiles USING (user_id) WHERE {column} = $word GROUP BY item ORDER BY item",
                params={"word": word},
            ).to_arrow_table()
            of = {name: np.zeros(n_items) for name in everybody}
            for name, values in of.items():
                values[inside["item"].to_numpy()] = inside[name].to_numpy()
            rows.append((POPULAR, f"{column}={word}", *_first((of["faded"] + PRIOR * share) / (float(weight) + PRIOR))))
            rows.append((TRENDING, f"{column}={word}", *_first(_rise(of["late"], of["usual"]))))
    kinds, segments, items, scores = zip(*rows, strict=True)
    lists = {"kind": pa.array(kinds), "segment": pa.array(segments)}
    lists |= {"item": pa.array(items, pa.list_(pa.int32())), "score": pa.array(scores, pa.list_(pa.float32()))}
    save_arrow(folder / "lists.arrow", pa.table(lists))


def _rise(late: Array, usual: Array) -> Array:
    """Return how much more an item is met a day of late than it usually is."""
    mean = late[late > 0].mean() if (late > 0).any() else 1.0
    return np.asarray(late / (usual + TRENDING_PRIOR * mean))


def _first(score: Array) -> tuple[Array, Array]:
    """Return the best items with a score, and their scores; equals by item."""
    score = score.astype(np.float32)
    order = np.argsort(-score, kind="stable")[:KEPT]
    order = order[score[order] > 0]
    return order.astype(np.int32), score[order]


def read(folder: Path) -> CatalogueSnapshot:
    """Map what `write` wrote."""
    items = mapped_arrow(folder / "items.arrow")
    lists = mapped_arrow(folder / "lists.arrow").to_pylist()
    return CatalogueSnapshot(
        item_ids=items[c.ITEM_ID],
        items=items,
        lists={(row["kind"], row["segment"]): (np.array(row["item"], np.int32), np.array(row["score"], np.float32)) for row in lists},
        together={
            kind: (mapped(folder / f"{kind}_ptr.npy"), mapped(folder / f"{kind}.npy"), mapped(folder / f"{kind}_score.npy"))
            for kind in TOGETHER
        },
    )
