"""A replay for people and machines: a table, a plot that needs no colour, and the same figures as JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import cycle as repeat
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from rich.table import Table

from pipelines import publish
from pipelines.config import Home
from pipelines.replay import policies
from pipelines.replay.outcome import Outcome

STYLES = [("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ("-", "v"), ("--", "x"), ("-.", "+"), (":", "*"), ("-", "P"), ("--", "<")]
GREYS = ["0.0", "0.35", "0.0", "0.35", "0.55", "0.0", "0.35", "0.0", "0.55", "0.55"]


def json_file(home: Home) -> Path:
    """Return where the figures of the last replay lie."""
    return home.reports / "replay" / "replay.json"


def write(home: Home, found: Sequence[Outcome], ledger: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Publish the figures and the plot, and return the figures."""
    said = {**facts, "policies": [one.to_json() for one in found], "ledger": [dict(entry) for entry in ledger]}
    publish.write_json(json_file(home), said)
    publish.write_text(json_file(home).with_suffix(".svg"), plot(found))
    return said


def table(found: Sequence[Outcome], reference: str = policies.GATE) -> Table:
    """Return what each policy would have had, best first."""
    users = found[0].ndcg["n"] if found else 0
    weeks = len(found[0].weeks) if found else 0
    grid = Table(title=f"NDCG@10 of what would have served, {weeks} weeks, {users:,} users")
    for heading in ("policy", "NDCG@10", "95%", f"to {reference}", "95%", "regret", "trainings", "promotions", "seconds"):
        grid.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    for one in found:
        versus = one.difference
        grid.add_row(
            one.name,
            _number(one.ndcg["value"]),
            _span(one.ndcg),
            "" if one.name == reference else _signed(versus["value"]),
            "" if one.name == reference else _span(versus, signed=True),
            _number(one.regret),
            f"{one.trainings}",
            f"{one.promotions}",
            "-" if one.training_seconds is None else f"{one.training_seconds:,.0f}",
        )
    return grid


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


def _span(found: Mapping[str, Any], *, signed: bool = False) -> str:
    told = _signed if signed else _number
    return f"{told(found['lower'])} {told(found['upper'])}"


def plot(found: Sequence[Outcome]) -> str:
    """Return an SVG: above, each week's NDCG@10 less that of the model that was never replaced; below, the champion's age."""
    with rc_context({"svg.hashsalt": "replay", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.5, 7.5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        looks = repeat(zip(STYLES, GREYS, strict=True))
        for one, ((line, marker), grey) in zip(found, looks, strict=False):
            when = [datetime.fromisoformat(week["start"]) for week in one.weeks]
            ndcg = np.array([week["ndcg_at_10"] for week in one.weeks])
            style = {
                "linestyle": line,
                "marker": marker,
                "color": grey,
                "markersize": 4,
                "linewidth": 1.0,
                "markevery": max(1, len(when) // 16),
            }
            above.plot(when, ndcg, label=f"{one.name} ({_number(one.ndcg['value'])})", **style)
            below.plot(when, [week["age_days"] for week in one.weeks], **style)
        above.set_ylabel("NDCG@10 of the week")
        above.legend(fontsize=7, ncols=2, frameon=False, loc="best")
        below.set_ylabel("age of what serves, days")
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        below.xaxis.set_major_locator(locator)
        below.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
