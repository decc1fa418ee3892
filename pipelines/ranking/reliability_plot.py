"""A reliability table as a plot that needs no colour: what was promised, and what happened."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure


def svg(found: Mapping[str, Any], title: str) -> str:
    """Return an SVG of what `calibration.reliability` found; the same figures give the same text.

    Points on the dashed line are promises kept. Bars are intervals of 95%. Both axes are logarithmic: most candidates are unlikely.
    """
    bins = [one for one in found["bins"] if one["promised"] > 0]
    promised, happened = (np.array([one[name] for one in bins]) for name in ("promised", "happened"))
    error = np.array([[one["happened"] - one["lower"], one["upper"] - one["happened"]] for one in bins]).reshape(-1, 2).T
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.6, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.errorbar(promised, happened, yerr=np.maximum(error, 0), fmt="o", color="black", ecolor="0.5", capsize=2, markersize=4)
        if bins:
            low = min(promised.min(), happened[happened > 0].min(initial=1)) / 2
            axes.plot([low, 1], [low, 1], color="0.4", linestyle="--", linewidth=0.8)
            axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1))
        axes.set_xlabel("probability that was promised")
        axes.set_ylabel("share that happened")
        said = "nothing to compare" if found["ece"] is None else f"ECE {found['ece']:.4f}, Brier {found['brier']:.4f}"
        axes.set_title(f"{title}\n{said}", fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
