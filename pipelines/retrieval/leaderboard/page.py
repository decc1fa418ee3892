"""A board as people and machines read it: a table, JSON, CSV, and a plot that needs no colour."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from pipelines import publish
from pipelines.datasets.split import Fold
from pipelines.evaluation import paired
from pipelines.evaluation.paired import Interval
from pipelines.retrieval.leaderboard.board import BASELINE, Board, Line
from pipelines.retrieval.leaderboard.selection import Blended

COLUMNS: Final = (
    "source", "status", "reason", "knobs", "ndcg_at_10", "lower", "upper", "n_users", "ndcg_at_10_known_users", "recall_at_50", "coverage_at_10",
    "fit_seconds", "fit_cpu_seconds", "ms_per_user", "peak_mb", "ndcg_per_second", "below_best", "below_best_lower", "below_best_upper",
    "above_popular", "above_popular_lower", "above_popular_upper",
)  # fmt: skip


def figures(name: str, board: Board, facts: dict[str, Any]) -> dict[str, Any]:
    """Return a board as JSON values; what was not measured is None.

    Args:
        facts: what else a reader must know: rows by fate, as_of, budget.
    """
    return {
        "name": f"retrieval-{name}",
        "machine": machine(),
        **facts,
        "validation": _window(*board.validation),
        "test": _window(*board.test),
        "items": board.n_items,
        "events": board.n_events,
        "lines": [row(line) for line in board.lines],
        "tried": {
            line.source: [{"knobs": knobs, "ndcg_at_10": quality} for knobs, quality in line.tried] for line in board.lines if line.tried
        },
    }


def machine() -> str:
    """Return what the figures were measured on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _window(fold: Fold, n_users: int, n_positives: int) -> dict[str, Any]:
    return {"cutoff": fold.cutoff.isoformat(), "window": str(fold.window), "users": n_users, "positives": n_positives}


def row(line: Line) -> dict[str, Any]:
    """Return a line in the columns `COLUMNS`, with its slices."""
    costs = asdict(line.costs) if line.costs else {}
    best, popular = _bounds("below_best", line.below_best), _bounds("above_popular", line.above_popular)
    return {
        "source": line.source,
        "status": line.status,
        "reason": line.reason,
        "knobs": line.knobs,
        "ndcg_at_10": _number(line.ndcg.mean if line.ndcg else None),
        "lower": _number(line.ndcg.lower if line.ndcg else None),
        "upper": _number(line.ndcg.upper if line.ndcg else None),
        "n_users": line.ndcg.n if line.ndcg else None,
        "ndcg_at_10_known_users": _number(known_users(line)),
        "recall_at_50": _number(line.recall_at_50),
        "coverage_at_10": _number(line.coverage_at_10),
        "fit_seconds": _number(costs.get("fit_seconds"), 3),
        "fit_cpu_seconds": _number(costs.get("fit_cpu_seconds"), 3),
        "ms_per_user": _number(line.ms_per_user, 4),
        "peak_mb": _number(costs.get("peak_mb"), 1),
        "ndcg_per_second": _number(line.ndcg_per_second, 4),
        **best,
        **popular,
        "slices": {name: {"ndcg_at_10": _number(mean), "n_users": n} for name, (mean, n) in line.slices.items()},
    }


def known_users(line: Line) -> float | None:
    """Return NDCG@10 over the users who had any event before the cutoff: what a source makes of a history."""
    parts = [(mean, n) for name, (mean, n) in line.slices.items() if name != "cold_users" and mean is not None]
    return sum(mean * n for mean, n in parts) / sum(n for _, n in parts) if parts else None


def _bounds(name: str, found: Interval | None) -> dict[str, float | None]:
    numbers = (None, None, None) if found is None else (found.mean, found.lower, found.upper)
    return dict(zip((name, f"{name}_lower", f"{name}_upper"), map(_number, numbers), strict=True))


def _number(value: float | None, digits: int = 5) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def to_csv(page: dict[str, Any]) -> str:
    """Return the lines as CSV, knobs as JSON in their column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in page["lines"]:
        writer.writerow({**line, "knobs": json.dumps(line["knobs"], sort_keys=True)})
    return text.getvalue()


def table(page: dict[str, Any]) -> Table:
    """Return what was measured as a table for a terminal."""
    test, validation = page["test"], page["validation"]
    grid = Table(
        title=f"{page['name'].removeprefix('retrieval-')}: {test['users']:,} users with {test['positives']:,} positives in {test['window']}, "
        f"{page['items']:,} items, {page['events']:,} events before {test['cutoff'][:10]}",
        caption="95%: of the mean over users; known: NDCG@10 of users with a history; per s: NDCG@10 by processor second of training; "
        f"*: a paired difference that is sure. {_chosen(page, validation)}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    heads = ("source", "NDCG@10", "95%", "known", "R@50", "cover", "fit s", "ms/user", "MB", "per s", "to best", "popular")
    for head in heads:
        grid.add_column(head, justify="left" if head == "source" else "right", no_wrap=True)
    for line in measured(page):
        grid.add_row(*cells(line, "fit_seconds", ".3g"), difference(line, "below_best"), difference(line, "above_popular"))
    return grid


def _chosen(page: dict[str, Any], validation: dict[str, Any]) -> str:
    grids = any(len(tried) > 1 for tried in page["tried"].values())
    return f"Knobs of {len(page['tried'])} sources were chosen on {validation['window']} ({validation['users']:,} users)." if grids else ""


def measured(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines with a figure, the best first."""
    return [line for line in page["lines"] if line["ndcg_at_10"] is not None]


def others(page: dict[str, Any]) -> list[str]:
    """Return a sentence for each source without a figure."""
    return [f"{line['source']}: {line['status']}: {line['reason']}" for line in page["lines"] if line["ndcg_at_10"] is None]


def cells(line: dict[str, Any], clock: str, form: str) -> tuple[str, ...]:
    """Return the columns of a line that both tables have; the clock is `fit_seconds` or `fit_cpu_seconds`."""
    return (
        line["source"],
        f"{line['ndcg_at_10']:.4f}",
        span(line["lower"], line["upper"]),
        _text(line["ndcg_at_10_known_users"], ".4f"),
        f"{line['recall_at_50']:.3f}",
        f"{line['coverage_at_10']:.3f}",
        f"{line[clock]:{form}}",
        f"{line['ms_per_user']:.3g}",
        f"{line['peak_mb']:.0f}",
        f"{line['ndcg_per_second']:.2g}",
    )


def span(lower: float | None, upper: float | None) -> str:
    """Return an interval as it stands in tables."""
    return "-" if lower is None or upper is None else f"{lower:.3f}-{upper:.3f}".replace("0.", ".")


def difference(line: dict[str, Any], name: str) -> str:
    """Return a paired difference, starred where its interval leaves zero out."""
    mean, lower, upper = (line.get(key) for key in (name, f"{name}_lower", f"{name}_upper"))
    if mean is None:
        return ""
    sure = lower is not None and upper is not None and (lower > 0 or upper < 0)
    return f"{mean:+.4f}{'*' if sure else ''}".replace("0.", ".", 1)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def markdown(page: dict[str, Any]) -> str:
    """Return the lines as a Markdown table, and a sentence for each that has no figure."""
    heads = ("source", "NDCG@10", "95%", "known users", "recall@50", "coverage", "fit CPU s", "ms/user", "peak MB", "NDCG/s", "to popular")
    text = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    text += [
        "| " + " | ".join((*cells(line, "fit_cpu_seconds", ".2f"), difference(line, "above_popular"))) + " |" for line in measured(page)
    ]
    rest = others(page)
    return "\n".join([*text, *([""] if rest else []), *(f"- {sentence}" for sentence in rest)]) + "\n"


def blends_markdown(page: dict[str, Any]) -> str:
    """Return the line-ups of a page on the test window as a Markdown table."""
    text = ["| line-up | NDCG@10 | more | recall@150 | more | seconds | sources |", "|---|--:|--:|--:|--:|--:|---|"]
    for label, found in page["blends"].items():
        worth = [text for name, value in found["test"].items() for text in (_text(value, ".4f"), difference(found, f"{name}_more"))]
        text.append("| " + " | ".join((label, *worth, _text(found["seconds"], ".1f"), " ".join(found["sources"]))) + " |")
    return "\n".join(text) + "\n"


def plot(page: dict[str, Any]) -> str:
    """Return an SVG: NDCG@10 with its interval by source, and against the seconds of training; shades of grey."""
    lines = measured(page)
    places = np.arange(len(lines))
    mean = np.array([line["ndcg_at_10"] for line in lines])
    error = np.abs(
        np.array([[line["lower"] or line["ndcg_at_10"], line["upper"] or line["ndcg_at_10"]] for line in lines]).reshape(-1, 2).T - mean
    )
    floor = next((line["ndcg_at_10"] for line in lines if line["source"] == BASELINE), None)
    with rc_context({"svg.hashsalt": page["name"], "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 0.9 + 0.24 * max(len(lines), 8)), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.errorbar(mean, places, xerr=error, fmt="o", color="black", ecolor="0.5", capsize=2, markersize=4)
        left.set_yticks(places, [line["source"] for line in lines])
        left.invert_yaxis()
        left.set_xlabel("NDCG@10, 95% interval over users")
        left.set_xlim(left=0)
        right.errorbar(
            [max(line["fit_cpu_seconds"], 1e-2) for line in lines], mean, yerr=error, fmt="o", color="black", ecolor="0.8", markersize=4
        )
        for n, line in enumerate(lines):
            shift = (4, 3) if n % 2 else (4, -9)  # neighbours by rank, so that names of like quality part
            right.annotate(
                line["source"], (max(line["fit_cpu_seconds"], 1e-2), mean[n]), xytext=shift, textcoords="offset points", fontsize=7
            )
        right.set_xscale("log")
        right.margins(x=0.15)
        right.set_xlabel("processor seconds of training")
        right.set_ylabel("NDCG@10")
        right.set_ylim(bottom=0)
        if floor is not None:
            left.axvline(floor, color="0.4", linestyle="--", linewidth=0.8)
            right.axhline(floor, color="0.4", linestyle="--", linewidth=0.8)
        figure.suptitle(f"{page['name'].removeprefix('retrieval-')}, {page['test']['window']}; dashed: {BASELINE}")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def write(folder: Path, page: dict[str, Any]) -> list[Path]:
    """Publish the JSON, the CSV and the plot of a page, and return where they are."""
    files = [folder / f"{page['name']}.{ending}" for ending in ("json", "csv", "svg")]
    publish.write_json(files[0], page)
    publish.write_text(files[1], to_csv(page))
    publish.write_text(files[2], plot(page))
    return files


def line_ups(steps: list[tuple[Blended, Blended]]) -> list[dict[str, Any]]:
    """Return growing line-ups as JSON values: what each is worth on both windows, and its seconds."""
    return [{**blend(on_test), "validation": blend(on_validation)["test"]} for on_validation, on_test in steps]


def blend(found: Blended, usual: Blended | None = None) -> dict[str, Any]:
    """Return what a line-up is worth as JSON values, and how much more than another one, paired over users."""
    worth = {name: _number(value) for name, value in found.quality.items()}
    page: dict[str, Any] = {"sources": list(found.sources), "test": worth, "seconds": _number(found.seconds, 2)}
    if usual is not None and usual is not found:
        for name, per_user in found.per_user.items():
            page |= _bounds(f"{name}_more", paired.interval(per_user - usual.per_user[name]))
    return page


def choices(page: dict[str, Any]) -> Iterator[Table]:
    """Yield the line-ups of a page as tables; nothing where none were asked for."""
    tables = {f"grown by {by} per second": dict(enumerate(steps, 1)) for by, steps in page.get("line_ups", {}).items()}
    if "blends" in page:
        tables["line-ups on the test window"] = page["blends"]
    for title, rows in tables.items():
        grid = Table(title=title)
        for head in ("", "NDCG@10", "more", "recall@150", "more", "seconds", "sources"):
            grid.add_column(head, justify="left" if head in {"", "sources"} else "right", overflow="fold")
        for label, found in rows.items():
            worth = found["test"]
            cells = [text for name in worth for text in (_text(worth[name], ".4f"), difference(found, f"{name}_more"))]
            grid.add_row(str(label), *cells, _text(found["seconds"], ".1f"), " ".join(found["sources"]))
        yield grid
