"""One training cycle as figures: read from the stages' records, written as JSON, printed as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.window import utc

FATES = ("read", "accepted", "quarantined", "duplicates")
RANKING = ("ndcg_at_10", "lower", "upper", "n_users", "best_single", "difference", "difference_lower")

Figures = dict[str, Any]


def _one(home: Home, as_of: datetime, stage: str) -> Figures:
    """Return the record of a stage that runs once a cycle; empty if it did not run."""
    found = cycle.records(home, as_of, stage)
    return found[-1] if found else {}


def _pick(record: Figures, names: Iterable[str]) -> Figures | None:
    """Return some fields of a record; None where the stage did not finish, for unmeasured is not zero."""
    return {name: record.get(name) for name in names} if record.get("state") == "done" else None


def _seconds(home: Home, as_of: datetime) -> dict[str, float]:
    """Return seconds of work a stage, summed over its keys, and the cycle's wall time as `total`."""
    spent: Counter[str] = Counter()
    wall = None
    for path in sorted(cycle.folder(home, as_of).glob("*.json")):
        record = cycle.read(path)
        if record["stage"] == "walk":
            wall = record["wall_seconds"]
        else:
            spent[record["stage"]] += record["seconds"]
    rounded = {stage: round(seconds, 2) for stage, seconds in spent.items()}
    return {**rounded, "total": round(wall if wall is not None else sum(spent.values()), 2)}


def figures(home: Home, as_of: datetime) -> Figures:
    """Return what one cycle did, in the shape that design, README and dashboards rely on.

    A section of a stage that did not run is None; a count is 0 only where something was counted.
    """
    batches = [record for record in cycle.records(home, as_of, "ingest") if record["state"] == "done"]
    reasons: Counter[str] = Counter()
    for batch in batches:
        reasons.update(batch["reasons"])
    gate = _one(home, as_of, "gate")
    drift = _one(home, as_of, "drift")
    return {
        "as_of": utc(as_of).isoformat(),
        "source": batches[-1]["source"] if batches else None,
        "rows": {fate: sum(batch["rows"][fate] for batch in batches) for fate in FATES},
        "reasons": dict(sorted(reasons.items())),
        "value": {fate: round(sum(batch["value"][fate] for batch in batches), 2) for fate in FATES},
        "features": _one(home, as_of, "features").get("features", {}),
        "online": _one(home, as_of, "materialize").get("online", {}),
        "parity": _parity(_one(home, as_of, "parity")),
        "training_rows": _one(home, as_of, "training_set").get("training_rows"),
        "retrieval": {
            record["key"]: {
                "ndcg_at_10": record["ndcg_at_10"],
                "recall_at_50": record["recall_at_50"],
                "seconds": record["seconds"],
            }
            for record in cycle.records(home, as_of, "retrieval")
            if record["state"] == "done"
        },
        "blend": _pick(_one(home, as_of, "blend"), ("ndcg_at_10", "recall_at_50", "ceiling")),
        "attribution": _one(home, as_of, "attribution").get("sources"),
        "ranking_attribution": _one(home, as_of, "ranking_attribution").get("steps"),
        "fairness": _pick(_one(home, as_of, "fairness"), ("popularity_lift", "miscalibration", "quality", "reasons")),
        "ranking": _pick(_one(home, as_of, "ranking"), RANKING),
        "cold": _one(home, as_of, "ranking").get("cold"),
        "gate": _pick(gate, ("verdict", "outcome", "champion_before", "champion_after", "reasons")),
        "drift": _pick(drift, ("verdict", "features", "reasons")),
        "retraining": _pick(_one(home, as_of, "trigger"), ("due", "reasons")),
        "seconds": _seconds(home, as_of),
    }


def _parity(record: Figures) -> Figures | None:
    """Return how many online values were compared with the point-in-time join, and the share of them that differ."""
    if "views" not in record:
        return None
    views = record["views"].values()
    compared = sum(view["values"] for view in views)
    differing = sum(view["mismatch_rate"] * view["values"] for view in views)
    return {"values": compared, "mismatch_rate": differing / compared if compared else 0.0}


def write(home: Home, cycles: Sequence[Figures], *files: Path) -> None:
    """Publish the figures of a run to `reports/run.json` and to each of `files`."""
    for file in (home.reports / "run.json", *files):
        publish.write_json(file, list(cycles))


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _list(texts: Iterable[str]) -> str:
    return "\n".join(texts)


def _rows(cycle_figures: Figures) -> Iterable[tuple[str, str]]:
    """Yield the label and the cell of every line of the table for one cycle."""
    rows, ranking, gate, drift = (cycle_figures[name] for name in ("rows", "ranking", "gate", "drift"))
    yield "rows read", _count(rows["read"])
    yield "  accepted", _count(rows["accepted"])
    yield "  quarantined", _count(rows["quarantined"]) + "".join(f"\n{n:>8,} {reason}" for reason, n in cycle_figures["reasons"].items())
    yield "  duplicates", _count(rows["duplicates"])
    yield "feature rows", _list(f"{mart} {n:,}" for mart, n in cycle_figures["features"].items())
    yield "online rows", _list(f"{view} {n:,}" for view, n in cycle_figures["online"].items())
    if parity := cycle_figures.get("parity"):
        yield "  equal to the training join", f"{1 - parity['mismatch_rate']:.2%} of {_count(parity['values'])} values"
    yield "point-in-time training rows", _count(cycle_figures["training_rows"])
    best_first = sorted(cycle_figures["retrieval"].items(), key=lambda entry: -(entry[1]["ndcg_at_10"] or 0.0))
    yield "retrieval NDCG@10", _list(f"{_number(found['ndcg_at_10'])} {source}" for source, found in best_first)
    if blend := cycle_figures["blend"]:
        yield "blend NDCG@10", f"{_number(blend['ndcg_at_10'])} (recall ceiling {_number(blend['ceiling'], 3)})"
    if sources := cycle_figures.get("attribution"):
        adding = sorted(sources.items(), key=lambda entry: -(entry[1]["contribution"] or 0.0))
        yield "  recall that only it adds", _list(f"{_signed(found['contribution'])} {source}" for source, found in adding)
    if ranking:
        yield (
            "ranking NDCG@10",
            f"{_number(ranking['ndcg_at_10'])} [{_number(ranking['lower'])}, {_number(ranking['upper'])}] on {_count(ranking['n_users'])} users",
        )
        yield (
            "  against the best source",
            f"{_signed(ranking['difference'])} over {ranking['best_single']}, at least {_signed(ranking['difference_lower'])}",
        )
    for name, found in (cycle_figures.get("cold") or {}).items():
        yield f"  {name.replace('_', ' ')}", _list(_cold(found))
    if gate:
        said = gate["verdict"] if gate.get("outcome") in {None, "promoted", "kept"} else f"{gate['verdict']}, {gate['outcome']}"
        yield "gate", f"{said}: champion {gate['champion_before'] or 'none'} -> {gate['champion_after'] or 'none'}"
        yield "  gate reasons", _list(gate["reasons"])
    if retraining := cycle_figures["retraining"]:
        yield "retraining", ("due: " if retraining["due"] else "not due: ") + "; ".join(retraining["reasons"])
    if drift:
        worst = sorted(drift["features"].items(), key=lambda entry: -entry[1]["psi"])[:3]
        yield (
            "drift (PSI)",
            drift["verdict"] + "".join(f"\n{name} {found['psi']:.3f} (threshold {found['threshold']:.3f})" for name, found in worst),
        )
        yield "  drift reasons", _list(drift["reasons"])
    seconds = cycle_figures["seconds"]
    yield (
        "seconds",
        _list(f"{spent:7.1f} {stage}" for stage, spent in seconds.items() if stage != "total") + f"\n{seconds['total']:7.1f} in all",
    )


def _cold(found: Figures) -> Iterable[str]:
    """Yield how the served list and the best other one do on a slice of which little is known, against the baseline."""
    lists = found["lists"]
    others = sorted((name for name in lists if name != "served"), key=lambda name: -(lists[name]["ndcg_at_10"] or 0.0))
    for name in ("served", *others[:1]):
        if name in lists and lists[name]["ndcg_at_10"] is not None:
            one = lists[name]
            sure = f"{_signed(one['difference'])} over {found['baseline']}, at least {_signed(one['difference_lower'])}"
            yield f"{_number(one['ndcg_at_10'])} {name}" + (f" ({sure})" if one["difference"] is not None else "")
    yield f"on {_count(found['n_users'])} users"


def table(cycles: Sequence[Figures]) -> Table:
    """Return the table of a run, a column a cycle."""
    grid = Table(title="Reloop", show_lines=False, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for figures_of_one in cycles:
        grid.add_column(f"as of {figures_of_one['as_of'][:10]}", overflow="fold")
    columns = [dict(_rows(one)) for one in cycles]
    labels = dict.fromkeys(label for column in sorted(columns, key=len, reverse=True) for label in column)
    for label in labels:
        cells = [column.get(label, "-") for column in columns]
        grid.add_row(label, *cells, end_section=label in {"  duplicates", "  equal to the training join", "  against the best source"})
    return grid


def show(console: Console, cycles: Sequence[Figures], *, columns: int = 4) -> None:
    """Print a run; of a long one the last cycles in full and every cycle on one line."""
    if len(cycles) > columns:
        console.print(timeline(cycles))
    console.print(table(cycles if len(cycles) <= columns else cycles[-2:]))


def timeline(cycles: Sequence[Figures]) -> Table:
    """Return the run as a table with one line a cycle."""
    grid = Table(title="Every cycle")
    for heading in (
        "as of",
        "accepted",
        "quarantined",
        "duplicates",
        "best source",
        "NDCG@10",
        "ranked NDCG@10",
        "gate",
        "champion",
        "drift",
        "s",
    ):
        grid.add_column(heading, justify="left" if heading in {"as of", "best source", "gate", "drift"} else "right")
    for one in cycles:
        ranking, gate, drift = one["ranking"] or {}, one["gate"] or {}, one["drift"] or {}
        best = ranking.get("best_single")
        source = one["retrieval"].get(best, {})
        grid.add_row(
            one["as_of"][:10],
            *(_count(one["rows"][fate]) for fate in FATES[1:]),
            best or "-",
            _number(source.get("ndcg_at_10")),
            _number(ranking.get("ndcg_at_10")),
            gate.get("verdict", "-"),
            str(gate.get("champion_after") or "-"),
            drift.get("verdict", "-"),
            f"{one['seconds']['total']:.0f}",
        )
    return grid
