"""The gate's curves as SVG that needs no colour: how often gains are found, and how often noise and harm are let in."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipelines import publish

STYLES = (("black", "o", "-"), ("black", "s", "--"), ("0.45", "^", "-"), ("0.45", "D", "--"))


def curves(rows: Sequence[Mapping[str, Any]], power: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Publish `gate-power.svg` and `gate-errors.svg`."""
    publish.write_text(folder / "gate-power.svg", _svg(lambda figure: _power(figure, power), (6.5, 3.6)))
    errors = [row for row in rows if not row["case"].startswith("truly +")]
    publish.write_text(folder / "gate-errors.svg", _svg(lambda figure: _errors(figure, errors), (9.5, 0.32 * len(errors) + 1)))


def _power(figure: Figure, power: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    axes = figure.subplots()
    for (name, points), (colour, marker, dash) in zip(power.items(), STYLES, strict=False):
        x, y = [point["users"] for point in points], [point["share"] for point in points]
        spread = [
            [y_ - point["interval"][0] for point, y_ in zip(points, y, strict=True)],
            [point["interval"][1] - y_ for point, y_ in zip(points, y, strict=True)],
        ]
        axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, linestyle=dash, label=name, capsize=2, markersize=5, linewidth=1.2)
    axes.axhline(0.8, color="0.6", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{one:,}" for one in x])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("users a window")
    axes.set_ylabel("promoted")
    axes.legend(title="truly better by", frameon=False, loc="lower right")


def _errors(figure: Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    axes = figure.subplots()
    for at, row in enumerate(rows):
        reach = [[row["ours"] - row["lower"]], [row["upper"] - row["ours"]]]
        gate = "by the rule" not in row["case"] and not row["case"].startswith(("the same, every look", "the same with"))
        axes.errorbar([row["ours"]], [at], xerr=reach, fmt="o" if gate else "s", color="black" if gate else "0.55", capsize=2, markersize=5)
    axes.axvline(5, color="0.5", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(-1, 101)
    axes.set_xlabel("% promoted; circles: the gate, squares: other rules; dotted: 5%")


def _svg(draw: Any, size: tuple[float, float]) -> str:
    with rc_context({"svg.hashsalt": "gate", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    return "\n".join(line.rstrip() for line in body[body.index("<svg") :].splitlines()) + "\n"
