"""Which source earns its place: what each one finds, what only it finds, and what it costs.

    training/<as_of>/attribution/sources.parquet, a row a source in the order of the settings; judged window:
        source                   string
        weight                   float64, of its vote in the blend
        users, users_served      int64, who was judged, and who of them got any item from it
        ndcg_at_10, recall_at_50 float64, of its own list
        ceiling                  float64, recall of its whole list
        contribution             float64, recall of the blend minus recall of the blend without the source, both at
                                 k_blend, the other sources' weights as they are
        contribution_lower, _upper   float64, bounds of its mean over users (`evaluation.paired`, 95%)
        share_of_places, share_of_places_alone   float64, of all candidates: those it proposed, those that only it did
        share_of_hits, share_of_hits_alone       float64, of the candidates that the user then took, likewise
        state_mb                 float64, what a bundle carries of it

What was clocked is no content, for the same input gives the same bytes: `fit_seconds` (all folds),
`retrieve_ms_per_user` and `peak_mb` (memory of the process above where the source's training found it)
stand in the run's records. `load` lays both side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Longs
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.evaluation import metrics, paired
from pipelines.evaluation.metrics import Doubles
from pipelines.retrieval import cold_users, fitting
from pipelines.retrieval.merging import Recipe, Union, blocks, gains
from pipelines.retrieval.protocol import Candidates
from pipelines.window import stamped

CONFIDENCE: Final = 0.95
MEGABYTE: Final = 1e6
COSTS: Final = ("fit_seconds", "retrieve_ms_per_user", "peak_mb")

Row = dict[str, Any]


def folder(home: Home, as_of: datetime) -> Path:
    """Return where the table of a run is kept."""
    return universe.run_folder(home, as_of) / "attribution"


@dataclass(frozen=True)
class Judgement:
    """Sources and their blend on one window.

    Attributes:
        recall: float64 [n_users], of the blend at k.
        without: per source, the same of the blend that never asked it.
        places, alone: per source int64 [2]: candidates of the blend and hits among them that it proposed, that only it proposed.
        n_places: int64 [2], candidates and hits of the blend.
    """

    recall: Doubles
    without: dict[str, Doubles]
    places: dict[str, Longs]
    alone: dict[str, Longs]
    n_places: Longs


def judge(lists: Mapping[str, Candidates], truth: Labels, k: int, recipe: Recipe) -> Judgement:
    """Blend some lists with every source, and with every source but one; users are taken in blocks.

    Args:
        lists: per source the candidates of the labels' users.
    """
    recall, without = [np.zeros(0)], {name: [np.zeros(0)] for name in lists}
    counted = np.zeros((3, len(lists), 2), dtype=np.int64)
    for rows, some in blocks(lists):
        union, labels = Union.of(cold_users.alone(some)), truth.take(np.arange(rows.start, rows.stop))
        pairs, _, _ = union.chosen(recipe, k)
        hit = gains(union, labels)[pairs] > 0
        proposers = union.proposers[pairs]
        for number in range(len(lists)):
            bit = np.uint64(1 << number)
            mine, only = (proposers & bit) > 0, proposers == bit
            counted[0, number] += mine.sum(), (mine & hit).sum()
            counted[1, number] += only.sum(), (only & hit).sum()
        counted[2] += len(pairs), hit.sum()
        recall.append(recall_of(union, labels, k, recipe))
        for name, found in without.items():
            others = {other: some[other] for other in lists if other != name}
            # Without the ladder its users are everybody's again.
            left = Union.of(others) if name == cold_users.NAME else union.of_sources(list(others))
            found.append(recall_of(left, labels, k, recipe))
    return Judgement(
        np.concatenate(recall),
        {name: np.concatenate(found) for name, found in without.items()},
        dict(zip(lists, counted[0], strict=True)),
        dict(zip(lists, counted[1], strict=True)),
        counted[2, 0],
    )


def recall_of(union: Union, truth: Labels, k: int, recipe: Recipe) -> Doubles:
    """Return float64 [n_rows], the share of each user's positives that have a place in the blend."""
    return metrics.recall(metrics.judge(union.items(recipe, k), truth.indptr, truth.item, truth.gain), k)


def rows(lists: Mapping[str, Candidates], truth: Labels, k: int, recipe: Recipe, seed: int) -> list[Row]:
    """Return the table's rows, but for what only the files know (`state_mb`).

    Args:
        seed: of the bootstrap where fewer than a thousand users were judged.
    """
    found, table = judge(lists, truth, k, recipe), []
    for name, proposed in lists.items():
        judged = metrics.judge(proposed.item, truth.indptr, truth.item, truth.gain)
        difference = paired.interval(found.recall - found.without[name], CONFIDENCE, seed)
        shares = np.divide([found.places[name], found.alone[name]], np.maximum(found.n_places, 1))
        table.append(
            {
                "source": name,
                "weight": float(recipe.weights.get(name, 1.0)),
                "users": truth.n_users,
                "users_served": int((proposed.item >= 0).any(axis=1).sum()),
                "ndcg_at_10": metrics.mean(metrics.ndcg(judged, 10)),
                "recall_at_50": metrics.mean(metrics.recall(judged, 50)),
                "ceiling": metrics.mean(metrics.recall(judged, proposed.item.shape[1])),
                "contribution": _known(difference.mean),
                "contribution_lower": _known(difference.lower),
                "contribution_upper": _known(difference.upper),
                "share_of_places": float(shares[0, 0]),
                "share_of_places_alone": float(shares[1, 0]),
                "share_of_hits": float(shares[0, 1]),
                "share_of_hits_alone": float(shares[1, 1]),
            }
        )
    return table


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def attribute(home: Home, as_of: datetime, recipe: Recipe) -> None:
    """Publish the table of a run, and record it with what each source cost.

    Raises:
        StateError: a source was not fitted, or on another universe.
    """
    settings = config.load(home)
    names = settings.retrieval.sources
    with cycle.stage(home, as_of, "attribution") as record:
        world = universe.load(home, as_of)
        truth = world.labels(JUDGE)
        lists = {name: fitting.candidates(home, as_of, name, JUDGE, world.digest) for name in names}
        table = rows(lists, truth, settings.retrieval.k_blend, recipe, settings.training.seed)
        for row in table:
            files = publish.manifest(fitting.folder(home, as_of, row["source"])).files
            proposals = {f"{fold.name}.npz" for fold in world.folds}
            row["state_mb"] = sum(entry["bytes"] for name, entry in files.items() if name not in proposals) / MEGABYTE
        facts = {
            "universe": world.digest,
            "recipe": recipe.to_json(),
            "k": settings.retrieval.k_blend,
            "users_of_all_folds": sum(world.labels(fold.name).n_users for fold in world.folds),
        }
        with publish.folder(folder(home, as_of), facts) as out:
            publish.write_parquet(out / "sources.parquet", _table(table))
        record["sources"] = {row["source"]: {name: value for name, value in row.items() if name != "source"} for row in load(home, as_of)}


def _table(table: list[Row]) -> pa.Table:
    kinds = {"source": pa.string(), "users": pa.int64(), "users_served": pa.int64()}
    return pa.Table.from_pylist(table, pa.schema([(name, kinds.get(name, pa.float64())) for name in table[0]]))


def _costs(home: Home, as_of: datetime, n_users: int) -> dict[str, Row]:
    """Return what the run's records say that each source cost; None where nothing was measured."""
    costs = {}
    for found in cycle.records(home, as_of, "retrieval"):
        seconds = found.get("retrieve_seconds")
        costs[str(found["key"])] = {
            "fit_seconds": found.get("fit_seconds"),
            "retrieve_ms_per_user": None if seconds is None else 1000 * seconds / max(n_users, 1),
            "peak_mb": found.get("peak_mb"),
        }
    return costs


def load(home: Home, as_of: datetime) -> list[Row]:
    """Return the table of a run with what each source cost, a dict a source; None where nothing was measured.

    Raises:
        StateError: the run was not blended, or the table was changed.
    """
    path = folder(home, as_of)
    costs = _costs(home, as_of, publish.manifest(path, verify=True).facts["users_of_all_folds"])
    table: list[Row] = pq.read_table(path / "sources.parquet").to_pylist()
    return [{**row, **{name: costs.get(row["source"], {}).get(name) for name in COSTS}} for row in table]


def runs(home: Home) -> list[datetime]:
    """Return the moments of the training runs that have a table, oldest first."""
    found = [stamped(path.parent.parent.name) for path in home.training.glob(f"*/attribution/{publish.MANIFEST}")]
    return sorted(moment for moment in found if moment is not None)


def up_to(home: Home, as_of: datetime | None, n_runs: int, sources: Sequence[str]) -> dict[datetime, dict[str, Row]]:
    """Return the tables of some runs by source, oldest first: of the run at a moment (by default the newest) and those before it.

    They go back as long as runs have all of some sources, and no further than was asked; no other table is read.

    Raises:
        StateError: there is no such run, or it lacks one of the sources.
    """
    last = newest(home, as_of)
    found: dict[datetime, dict[str, Row]] = {}
    for run in reversed([run for run in runs(home) if run <= last]):
        table = {row["source"]: row for row in load(home, run)}
        if len(found) == n_runs or not set(sources) <= set(table):
            break
        found[run] = table
    if not found:
        raise StateError(
            f"training run {last:%Y-%m-%d}",
            found=f"no table of {sorted(set(sources) - {row['source'] for row in load(home, last)})}",
            allowed="all sources of the settings",
            hint="run `reloop train` with them first, or name an earlier run with --as-of",
        )
    return dict(reversed(found.items()))


def newest(home: Home, until: datetime | None = None) -> datetime:
    """Return the newest run that has a table, or the run at a moment.

    Raises:
        StateError: there is none.
    """
    found = [run for run in runs(home) if until is None or run == until]
    if not found:
        there = [f"{run:%Y-%m-%d}" for run in runs(home)]
        raise StateError(
            "table of sources" if until is None else f"table of sources as of {until:%Y-%m-%d}",
            found=f"runs with one: {there}" if there else "no training run has one",
            allowed="a run that was trained",
            hint="run `reloop train` first",
        )
    return found[-1]


LEGEND: Final = (
    "adds: recall of the blend minus recall without the source. ceiling: recall of its whole list. "
    "alone: places, or hits, that no other source proposed. Costs: of the whole run, of a user, of a bundle."
)


def by_contribution(table: Iterable[Row]) -> list[Row]:
    """Return the rows, what contributes most first."""
    return sorted(table, key=lambda row: -(row["contribution"] or 0.0))


def cells(row: Row) -> dict[str, str]:
    """Return a row as texts; what was not measured is a dash."""

    def number(name: str, digits: int, sign: str = "") -> str:
        return "-" if row[name] is None else f"{row[name]:{sign}.{digits}f}"

    digits = {"ndcg_at_10": 4, "recall_at_50": 4, "ceiling": 4, "weight": 2, "fit_seconds": 1, "retrieve_ms_per_user": 3}
    digits |= {"state_mb": 2, "peak_mb": 0}
    return {
        "source": row["source"],
        "contribution": number("contribution", 4, "+"),
        "interval": f"{number('contribution_lower', 3, '+')}..{number('contribution_upper', 3, '+')}",
        "places": f"{row['share_of_places']:.0%} ({row['share_of_places_alone']:.0%})",
        "hits": f"{row['share_of_hits']:.0%} ({row['share_of_hits_alone']:.0%})",
        "users_served": f"{row['users_served'] / max(row['users'], 1):.0%}",
        **{name: number(name, places) for name, places in digits.items()},
    }


def text(home: Home, as_of: datetime) -> str:
    """Return the table of a run as plain text, for a log."""
    table = [cells(row) for row in by_contribution(load(home, as_of))]
    widths = {name: max(len(name), *(len(row[name]) for row in table)) for name in table[0]}
    head = "  ".join(f"{name:<{width}}" for name, width in widths.items())
    return "\n".join([head, *("  ".join(f"{row[name]:<{width}}" for name, width in widths.items()) for row in table), LEGEND])
