"""What a release is worth and what it stands on, as plots that need no colour; the same figures give the same text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from matplotlib import rc_context
from matplotlib.figure import Figure

N_BARS: Final = 20


def slices(overall: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """Return an SVG of NDCG@10 with its interval, of everybody and of every slice; how many users each is about stands beside it.

    Args:
        overall, found: {"ndcg_at_10", "lower", "upper", "n_users"} each; a slice that nobody is in has None and no mark.
    """
    rows = [("all users", overall), *sorted(found.items())][::-1]
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (_, one) in enumerate(rows):
            if one["ndcg_at_10"] is not None and one["lower"] is not None and one["upper"] is not None:
                mean = one["ndcg_at_10"]
                error = [[max(mean - one["lower"], 0.0)], [max(one["upper"] - mean, 0.0)]]
                axes.errorbar(mean, place, xerr=error, fmt="o", color="black", ecolor="0.45", capsize=3, markersize=4)
        axes.set_yticks(range(len(rows)), [f"{name} ({one['n_users']:,})" for name, one in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        if overall["ndcg_at_10"] is not None:
            axes.axvline(overall["ndcg_at_10"], color="0.6", linestyle="--", linewidth=0.8)
        axes.set_xlabel("NDCG@10 on the judged window, 95% interval")
        axes.set_title(title, fontsize=9)
        return _text(figure)


def importance(shares: Mapping[str, float], title: str) -> str:
    """Return an SVG of the features that carry most of the ranker's gain."""
    most = sorted(shares.items(), key=lambda one: -one[1])[:N_BARS][::-1]
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(6.4, 1.2 + 0.24 * max(len(most), 1)), layout="constrained")
        axes = figure.subplots()
        axes.barh([name for name, _ in most], [share for _, share in most], color="0.45")
        axes.set_xlabel("share of the ranker's gain, stored features")
        axes.set_title(title if most else f"{title}: no ranker", fontsize=9)
        return _text(figure)


def movement(usual: Mapping[str, Mapping[int, float]], title: str, drift: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """Return an SVG of PSI a feature: what it moved in the week before the bundle was built (grey), and at the last check (marks).

    Args:
        usual: feature -> {days before -> PSI}.
        drift: feature -> {"psi", "threshold"}, of the cycle's drift check, where there was one.
    """
    week = {name: lags[min(lags)] for name, lags in usual.items() if lags}
    checked = {name: one for name, one in (drift or {}).items() if one.get("psi") is not None}
    names = sorted(week.keys() | checked.keys(), key=lambda name: (-checked.get(name, {}).get("psi", week.get(name, 0.0)), name))[:N_BARS][
        ::-1
    ]
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(6.4, 1.4 + 0.24 * max(len(names), 1)), layout="constrained")
        axes = figure.subplots()
        axes.barh(names, [week.get(name, 0.0) for name in names], color="0.75", label="usual: the week before")
        rows = [(place, checked[name]) for place, name in enumerate(names) if name in checked]
        if rows:
            axes.plot([one["psi"] for _, one in rows], [place for place, _ in rows], "ko", markersize=4, label="at the drift check")
            axes.plot([one["threshold"] for _, one in rows], [place for place, _ in rows], "k|", markersize=9, label="threshold")
        if names:
            axes.legend(loc="lower right", fontsize=7)
        axes.set_xlabel("PSI")
        axes.set_title(title if names else f"{title}: history is too short to tell", fontsize=9)
        return _text(figure)


def _text(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
