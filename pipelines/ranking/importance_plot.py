"""What features are worth, as plots that need no colour."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure

N_BARS: Final = 20


def importance(found: Mapping[str, Any], title: str) -> str:
    """Return an SVG of gain (grey, above) and permutation (hatched, below): of the groups, then of the features of the largest gain.

    The same figures give the same text.
    """
    groups = sorted(found["groups"], key=lambda one: -one["gain"])
    panels = [("group", groups), ("feature", found["features"][:N_BARS])]
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.5, 1.4 + 0.24 * (len(groups) + len(panels[1][1]))), layout="constrained")
        rows = figure.subplots(2, 2, height_ratios=[max(len(some), 1) for _, some in panels])
        for (left, right), (what, some) in zip(rows, panels, strict=True):
            names = [one[what] for one in some][::-1]
            left.barh(names, [one["gain"] for one in some][::-1], color="0.45")
            left.set_xlabel("share of the split gain")
            right.barh(names, [one["permuted"] or 0.0 for one in some][::-1], color="0.85", edgecolor="black", hatch="///", linewidth=0.6)
            right.axvline(0, color="black", linewidth=0.8)
            right.set_xlabel("NDCG@10 lost when permuted")
            right.set_yticks(range(len(names)), ["" if one["permuted"] is not None else "not tried" for one in some][::-1])
        figure.suptitle(f"{title}: NDCG@10 {found['ndcg_at_10']:.4f} on {found['lists']} lists", fontsize=9)
        return _text(figure)


def contributions(request: Mapping[str, Any], title: str) -> str:
    """Return an SVG of what each feature added to one item's score: to the right what raised it (grey), to the left what lowered it (hatched)."""
    told = [
        (f"{one['feature']} = {'missing' if one['value'] is None else format(one['value'], '.4g')}", one["added"])
        for one in request["told"]
    ]
    told.append(("all others", request["rest"]))
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.0, 1.0 + 0.26 * len(told)), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(
            [name for name, _ in told][::-1], [added for _, added in told][::-1], color="0.45", edgecolor="black", linewidth=0.6
        )
        for bar, (_, added) in zip(bars, told[::-1], strict=True):
            if added < 0:
                bar.set(facecolor="0.95", hatch="///")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("added to the score")
        axes.set_title(f"{title}: score {request['score']:.3f} from {request['start']:.3f}", fontsize=9)
        return _text(figure)


def _text(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
