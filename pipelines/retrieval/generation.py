"""Candidates for everybody: fitted sources asked for one block of users after the other, a Parquet part a block.

    training/<as_of>/generation/           (or any folder)
        plan.json                 what the parts are made of; parts of another plan are thrown away
        part-000000.parquet ...   the columns of `blend`, rows by (user, blend_rank); `user` counts all users through
        manifest.json             written last: every part with its digest, how many users and rows

One block of users is held at a time, so memory grows with the block and the models, not with the users. A
part appears whole or not at all, and holds what its block and the plan say and nothing of when it
was made: a generation that was killed goes on behind its last part and ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home, TrainingSettings
from pipelines.datasets import interactions as events
from pipelines.datasets import profiles, universe
from pipelines.datasets.interactions import Dense, Histories
from pipelines.datasets.universe import Universe
from pipelines.errors import StateError
from pipelines.publish import Manifest
from pipelines.retrieval import blend, cold_users, fitting, lineup, merging
from pipelines.retrieval.ann import keeping
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.protocol import Retriever
from pipelines.window import micros

PLAN: Final = "plan.json"
USERS_AT_ONCE: Final = 20_000


@dataclass(frozen=True)
class Wanted:
    """What is generated for each user.

    Attributes:
        k_per_source: items asked of each source.
        k: candidates a user after the blend.
        exclude_seen: never propose what the user met.
        recipe: how the sources' lists are merged.
    """

    k_per_source: int = 50
    k: int = 150
    exclude_seen: bool = False
    recipe: Recipe = field(default_factory=Recipe)


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the candidates of all users of a run are kept."""
    return universe.run_folder(home, as_of) / "generation"


def generate(
    target: Path,
    sources: Mapping[str, Retriever],
    blocks: Iterable[Histories],
    wanted: Wanted,
    made_of: Mapping[str, Any],
    *,
    tell: Callable[[int], None] = lambda _: None,
) -> Manifest:
    """Write the candidates of all users, a part a block, and return the manifest; what is there already is kept.

    Args:
        target: the folder to fill, alone.
        sources: fitted retrievers over one catalogue.
        blocks: the histories of the users in their order, some thousands at a time; the same blocks at every call.
        made_of: what tells these histories from others (a digest, a moment, the size of a block); JSON values.
        tell: hears how many users are done.

    Raises:
        StateError: there is no source, one was not fitted, or has another catalogue than the histories.
    """
    if not sources:
        raise StateError("generation", found="no source", allowed="at least one", hint="see retrieval.sources in the settings")
    plan = {
        "sources": {name: keeping.digest(retriever) for name, retriever in sources.items()},
        "wanted": asdict(wanted) | {"recipe": wanted.recipe.to_json()},
        "made_of": dict(made_of),
    }
    with publish.locked(target.with_name(f".{target.name}.lock")):
        if _started(target, plan) and (done := _finished(target)) is not None:
            return done
        n_users, names = 0, []
        for number, histories in enumerate(blocks):
            names.append(f"part-{number:06}.parquet")
            if not (target / names[-1]).is_file():
                publish.write_parquet(target / names[-1], _part(sources, histories, n_users, wanted))
            n_users += histories.n_users
            tell(n_users)
        return _close(target, names, {**plan, "users": n_users})


def of_run(home: Home, as_of: datetime, *, users_at_once: int = USERS_AT_ONCE, tell: Callable[[int], None] = lambda _: None) -> Manifest:
    """Generate the candidates of every user of a training run, from all that was known as of it, by the sources that a bundle releases.

    Raises:
        StateError: a source was not fitted, or the blend not published.
    """
    settings = config.load(home)
    with cycle.stage(home, as_of, "generation") as record:
        blend.check_settings(home, as_of, settings.retrieval)
        world = universe.load(home, as_of)
        fitted = {name: fitting.folder(home, as_of, name) for name in settings.retrieval.sources}
        released = {name: publish.manifest(path, verify=True).digest for name, path in fitted.items()}
        wanted = Wanted(
            settings.retrieval.k_per_source, settings.retrieval.k_blend, settings.training.exclude_seen, blend.recipe(home, as_of)
        )
        made_of = {"universe": world.digest, "released": released, "users_at_once": users_at_once}
        histories = everyone(world, as_of, settings.training, users_at_once)
        made = generate(
            folder(home, as_of),
            {name: lineup.load(path) for name, path in fitted.items()},
            histories,
            wanted,
            made_of,
            tell=tell,
        )
        record.update({name: made.facts[name] for name in ("users", "rows")})
    return made


def everyone(world: Universe, as_of: datetime, settings: TrainingSettings, users_at_once: int) -> Iterator[Histories]:
    """Yield the histories of all users of a run in their order, read from its events a block at a time."""
    people = profiles.newest(pq.read_table(world.path / "user_versions.parquet"), len(world.user_ids), micros(as_of))
    file = pq.ParquetFile(world.path / "events.parquet")
    groups = (file.read_row_group(number) for number in range(file.num_row_groups))
    held = file.schema_arrow.empty_table()
    for first in range(0, len(world.user_ids), users_at_once):
        last = min(first + users_at_once, len(world.user_ids))
        parts = [held]
        while (not len(parts[-1]) or parts[-1]["user"][-1].as_py() < last) and (group := next(groups, None)) is not None:
            parts.append(group)
        held = pa.concat_tables(parts)
        cut = int(np.searchsorted(held["user"].to_numpy(), last))
        mine, held = held.slice(0, cut), held.slice(cut)
        user = pa.array(mine["user"].to_numpy() - np.int32(first), pa.int32())
        block = Dense(mine.set_column(mine.column_names.index("user"), "user", user), world.user_ids[first:last], world.item_ids)
        known = replace(events.arrays(block, as_of, settings), users=people.slice(first, last - first))
        yield events.histories(known, block.user_ids)


def candidates(target: Path) -> Iterator[pa.Table]:
    """Yield the parts of a finished generation in the order of their users.

    Raises:
        StateError: it was not finished, or a part is not what was written.
    """
    for name in sorted(publish.manifest(target, verify=True).files):
        if name != PLAN:
            yield pq.read_table(target / name)


def _started(target: Path, plan: dict[str, Any]) -> bool:
    """Tell whether the folder holds parts of this very plan; if it does not, make it an empty one that does."""
    if (target / PLAN).is_file() and (target / PLAN).read_bytes() == publish.to_json(plan).encode():
        return True
    shutil.rmtree(target, ignore_errors=True)
    publish.write_json(target / PLAN, plan)
    return False


def _finished(target: Path) -> Manifest | None:
    """Return the manifest of a finished generation; where a part is not what was written, it goes, with the manifest, to be made again."""
    if not (target / publish.MANIFEST).is_file():
        return None
    done = publish.manifest(target)
    damaged = [
        name for name, said in done.files.items() if not (target / name).is_file() or publish.digest(target / name) != said["sha256"]
    ]
    if not damaged:
        return done
    (target / publish.MANIFEST).unlink()
    for name in damaged:
        (target / name).unlink(missing_ok=True)
    return None


def _part(sources: Mapping[str, Retriever], histories: Histories, first: int, wanted: Wanted) -> pa.Table:
    """Return the candidates of one block, whose first user is number `first` of all."""
    lists = {name: source.retrieve(histories, wanted.k_per_source, exclude_seen=wanted.exclude_seen) for name, source in sources.items()}
    user = np.arange(first, first + histories.n_users, dtype=np.int32)
    tables = [
        blend.tabulate(merging.merge(some, wanted.k, wanted.recipe), user[rows]) for rows, some in merging.blocks(cold_users.alone(lists))
    ]
    return pa.concat_tables(tables)


def _close(target: Path, names: list[str], facts: dict[str, Any]) -> Manifest:
    """Publish the manifest over the parts, after sweeping parts that no block has."""
    for litter in set(target.glob("part-*.parquet")) - {target / name for name in names}:
        litter.unlink()
    rows = sum(pq.read_metadata(target / name).num_rows for name in names)
    files = {name: {"sha256": publish.digest(target / name), "bytes": (target / name).stat().st_size} for name in [*names, PLAN]}
    publish.write_json(target / publish.MANIFEST, asdict(Manifest(files, {**facts, "rows": rows})))
    return publish.manifest(target)
