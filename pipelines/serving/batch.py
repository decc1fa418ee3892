"""Lists for all users, or all active ones, made beforehand: in blocks, so that memory does not grow with them, and the same bytes each time.

    recommendations/as_of=<moment>/lists.parquet     one row a user, sorted by user_id (`LISTS`)
    recommendations/as_of=<moment>/manifest.json     facts: which release made them, of whom, how many

They are what `reloop` would answer at that moment from the lake, without exploration and without what is blocked when they are made;
a takedown since then makes them anew. Where they go from here, `batch_lists` says.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import columns as c
from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets.interactions import Ids, Interactions, histories, load
from pipelines.errors import StateError
from pipelines.ranking.protocol import Lists
from pipelines.ranking.rerank import chain
from pipelines.registry import choosing
from pipelines.registry.choosing import Serving
from pipelines.serving import batch_lists, blocked
from pipelines.serving_policies import BatchPolicy
from pipelines.window import stamp, utc

DAY_US: Final = 86_400_000_000
LISTS: Final = pa.schema(
    [
        pa.field(c.USER_ID, pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # best first
        pa.field("scores", pa.list_(pa.float32()), nullable=False),  # what each was ordered by, comparable within a list
        pa.field("sources", pa.list_(pa.uint64()), nullable=False),  # bit s: `source_names[s]` of the facts proposed it
    ]
)

Progress = Callable[[int, int], None]  # users done, of how many


@dataclass(frozen=True)
class Batch:
    """A published batch.

    Attributes:
        facts: as_of, version, digest, parts, k, active_days, users, source_names, blocked (a digest of what was).
    """

    folder: Path
    facts: dict[str, Any]


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the lists of a moment lie."""
    return home.recommendations / f"as_of={stamp(as_of)}"


def run(
    home: Home, as_of: datetime, *, k: int | None = None, active_days: int | None = None, on_block: Progress | None = None
) -> dict[str, Any]:
    """Make, publish and load the lists of a moment; return the record: users, version, digest, where they were loaded, seconds.

    Run again it makes nothing that is there, and loads what is not loaded. An older moment than the one that
    serves is published and not loaded.

    Args:
        k, active_days: instead of those of the settings.

    Raises:
        StateError: there is no release yet, or the lists could not be loaded whole.
    """
    policy = config.load(home).serving.batch
    policy = policy.model_copy(update={name: value for name, value in (("k", k), ("active_days", active_days)) if value is not None})
    serving = choosing.serving(home)
    if serving is None:
        raise StateError("batch of lists", found="no release", allowed="a champion", hint="`reloop train`, `reloop promote`")
    with cycle.stage(home, as_of, "batch") as record, publish.locked(home.recommendations / ".lock"):
        made = publish_lists(home, serving, as_of, policy, on_block)
        record |= {name: made.facts[name] for name in ("users", "version", "digest", "k", "active_days")}
        record["loaded"] = batch_lists.load(home, made.folder, made.facts)
        _tidy(home, policy.kept)
    return record


def publish_lists(home: Home, serving: Serving, as_of: datetime, policy: BatchPolicy, on_block: Progress | None = None) -> Batch:
    """Publish the lists of a moment, unless the same are there."""
    target, model = folder(home, as_of), serving.model
    out = sorted(entry["item_id"] for entry in blocked.standing(home))
    wanted = {
        "as_of": utc(as_of).isoformat(),
        "version": serving.version,
        "digest": serving.digest,
        "parts": serving.parts,
        "k": policy.k,
        "active_days": policy.active_days,
        "source_names": list(model.retrievers),
        "blocked": hashlib.sha256("\0".join(out).encode("utf-8", "surrogatepass")).hexdigest(),
    }
    if (target / publish.MANIFEST).is_file():
        facts = publish.manifest(target, verify=True).facts
        if {name: facts.get(name) for name in wanted} == wanted:
            return Batch(target, facts)
    known = load(home, as_of, config.load(home).training, item_ids=model.item_ids)
    users = active(known, policy.active_days)
    goods = model.goods(known) if chain.active(model.rerank) else None
    facts = {**wanted, "users": len(users)}
    with (
        publish.folder(target, facts) as temporary,
        pq.ParquetWriter(temporary / batch_lists.FILE, LISTS, compression="zstd", version="2.6") as writer,
    ):
        for first in range(0, len(users), policy.users_at_once):
            some = users[first : first + policy.users_at_once]
            lists = model.recommend(home, some, histories(known, some), as_of, policy.k, goods=goods)
            writer.write_table(table(lists, out), row_group_size=len(some))
            if on_block is not None:
                on_block(first + len(some), len(users))
    return Batch(target, facts)


def active(known: Interactions, days: int) -> Ids:
    """Return the users with an event in so many days before the moment, sorted; with 0 all who ever had one."""
    if days == 0:
        return known.user_ids
    return known.user_ids[np.unique(known.user[known.at >= known.as_of - days * DAY_US])]


def table(lists: Lists, out: Sequence[str] = ()) -> pa.Table:
    """Return finished lists as rows of `LISTS`, without some items; those below move up."""
    listed = (lists.item_ids != "") & ~np.isin(lists.item_ids, np.array(out, np.str_))
    offsets = pa.array(np.concatenate([[0], np.cumsum(listed.sum(axis=1))]).astype(np.int32))
    columns = [
        pa.array(lists.user_ids, pa.string()),
        pa.ListArray.from_arrays(offsets, pa.array(lists.item_ids[listed], pa.string())),
        pa.ListArray.from_arrays(offsets, pa.array(lists.score[listed], pa.float32())),
        pa.ListArray.from_arrays(offsets, pa.array(lists.sources[listed], pa.uint64())),
    ]
    return pa.Table.from_arrays(columns, schema=LISTS)


def _tidy(home: Home, kept: int) -> None:
    """Take away all but the newest batches."""
    for old in sorted(home.recommendations.glob("as_of=*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)
