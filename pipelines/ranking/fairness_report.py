"""The fairness report of a training run: what is served on the judged window, as JSON, a plot and a page.

reports/fairness/<as_of>.json   figures of `evaluation.fairness`, what was compared, which bounds are broken
reports/fairness/<as_of>.html   the same for people
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import sparse

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.datasets.interactions import Ints
from pipelines.decision_policies import FairnessSettings
from pipelines.evaluation import fairness, metrics
from pipelines.evaluation.fairness import Bound
from pipelines.ranking.attribution import Audience
from pipelines.ranking.rerank import greedy
from pipelines.window import stamp, utc

K: Final = 10
# Group that is bounded: the share of attention its items get over the share of what users take.
_PATHS: Final = {
    "max_popularity_lift": (("popularity_lift", "all"), True),
    "max_miscalibration": (("miscalibration",), True),
    "max_relative_quality_gap": (("quality", "relative_gap"), True),
    "max_provider_distance": (("providers", "distance"), True),
    "min_tail_ratio": (("exposure", "tail_items", "ratio"), False),
}


def bounds(settings: FairnessSettings) -> dict[str, Bound]:
    """Return the bounds that are set."""
    held = {name: getattr(settings, name) for name in _PATHS}
    return {name: Bound(_PATHS[name][0], limit, _PATHS[name][1]) for name, limit in held.items() if limit is not None}


def broken(home: Home, as_of: datetime, settings: FairnessSettings) -> tuple[str, ...]:
    """Return the bounds in force that the lists of a run break, in sentences; what was not measured breaks its bound."""
    measured = cycle.records(home, as_of, "fairness")
    return tuple(fairness.verdict(measured[0] if measured else {}, bounds(settings)))


def file(home: Home, as_of: datetime) -> Path:
    """Return where the figures of a run are kept; the page lies beside them."""
    return home.reports / "fairness" / f"{stamp(as_of)}.json"


def write(home: Home, as_of: datetime, item: Ints, audience: Audience, settings: FairnessSettings) -> dict[str, Any]:
    """Measure the lists of a run, write the report, and return it.

    Args:
        item: int32 [n_users, m], what is served.
    """
    with cycle.stage(home, as_of, "fairness") as record:
        found = report(item, audience, settings)
        publish.write_json(file(home, as_of), {"as_of": utc(as_of).isoformat(), **found})
        publish.write_text(file(home, as_of).with_suffix(".html"), page(found, f"Fairness as of {as_of:%Y-%m-%d}"))
        record.update(found)
    return found


def report(item: Ints, audience: Audience, settings: FairnessSettings) -> dict[str, Any]:
    """Return the figures of some lists and which bounds are broken."""
    truth, users, goods = audience.truth, audience.users, audience.goods
    popularity = audience.users_of_item / max(audience.n_users, 1)
    row = users.row_of_event()
    pairs = np.unique(row * max(len(goods), 1) + users.item)
    of, met = pairs // max(len(goods), 1), pairs % max(len(goods), 1)
    count = np.bincount(of, minlength=users.n_users)
    total = np.bincount(of, popularity[met], users.n_users)
    providers = goods.brands if settings.provider == "brand" else goods.sellers
    lists = fairness.Lists(
        item=item,
        ndcg=metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), K),
        taken=sparse.csr_matrix((truth.gain.astype(np.float64), truth.item, truth.indptr), shape=(truth.n_users, len(goods))),
        popularity=popularity,
        history_popularity=np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0),
        category=goods.category,
        taste=greedy.tastes(users, goods.category, None),
        parts=audience.parts,
        groups=audience.groups,
        provider=goods.brand if settings.provider == "brand" else goods.seller,
        providers=providers,
    )
    found = fairness.report(lists, k=K, seed=audience.seed, confidence=audience.confidence)
    limits = bounds(settings)
    return {
        **found,
        "provider": settings.provider,
        "n_users": truth.n_users,
        "bounds": {name: limit.limit for name, limit in limits.items()},
        "reasons": fairness.verdict(found, limits),
    }


def _told(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if found is None or found.get("value") is None:
        return "-"
    bounds_ = "" if found["lower"] is None else f" [{found['lower']:.{digits}f}, {found['upper']:.{digits}f}]"
    return f"{found['value']:.{digits}f}{bounds_}"


def page(found: Mapping[str, Any], title: str) -> str:
    """Return the report as one HTML file that loads nothing; the same figures give the same text."""
    groups = {name: each for name, each in found["providers"].items() if name not in {"distance", "gini"}}
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        (
            "<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}"
            "td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ccc}td:first-child,th:first-child{text-align:left}</style>"
        ),
        f"<h1>{html.escape(title)}</h1><p>{found['n_users']:,} users, first {found['k']} places. In brackets: 95% intervals, users drawn again.</p>",
        "".join(f"<p><b>{html.escape(reason)}</b></p>" for reason in found["reasons"]) or "<p>No bound that was set is broken.</p>",
        plot(found, title),
        _table("Item groups: attention, demand, and their ratio", found["exposure"]),
        _table(f"The {found['provider']}s that most is taken from", groups),
        "<h2>Others</h2><table>",
    ]
    others = {
        "Distance of attention from demand over all providers": found["providers"].get("distance"),
        "Gini of attention over providers": found["providers"].get("gini"),
        "Miscalibration to the categories of the history (KL, nats)": found["miscalibration"],
        **{f"Popularity lift, {name}": each for name, each in found["popularity_lift"].items()},
        **{f"NDCG@{found['k']}, {name}": each for name, each in found["quality"].items() if isinstance(each, Mapping)},
    }
    parts += [f"<tr><td>{html.escape(name)}<td>{_told(each)}" for name, each in others.items()]
    return "\n".join([*parts, "</table></html>"]) + "\n"


def _table(title: str, groups: Mapping[str, Any]) -> str:
    lines = [
        f"<tr><td>{html.escape(name)}<td>{_told(each['exposure'])}<td>{_told(each['wanted'])}<td>{_told(each['ratio'], 2)}"
        for name, each in groups.items()
    ]
    return f"<h2>{html.escape(title)}</h2><table><tr><th><th>attention<th>demand<th>ratio{''.join(lines)}</table>"


def plot(found: Mapping[str, Any], title: str) -> str:
    """Return an SVG that needs no colour: attention against demand by item group, and NDCG and popularity lift by user group."""
    quality = {name: each for name, each in found["quality"].items() if isinstance(each, Mapping) and "gap" not in name}
    panels = (
        ("attention / demand", {name: each["ratio"] for name, each in found["exposure"].items()}, 1.0),
        (f"NDCG@{found['k']}", quality, None),
        ("popularity lift", found["popularity_lift"], 0.0),
    )
    with rc_context({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9.5, 0.35 * max(len(quality), 4) + 1), layout="constrained")
        for axes, (label, groups, line) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            known = {name: each for name, each in groups.items() if each["value"] is not None}
            value = np.array([each["value"] for each in known.values()])
            reach = np.array([0 if each["upper"] is None else each["upper"] - each["value"] for each in known.values()])
            axes.errorbar(value, range(len(known)), xerr=reach, fmt="o", color="black", ecolor="0.5", capsize=2, markersize=4)
            axes.set_yticks(range(len(known)), list(known))
            axes.invert_yaxis()
            axes.set_xlabel(label)
            if line is not None:
                axes.axvline(line, color="0.4", linestyle="--", linewidth=0.8)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    return "\n".join(each.rstrip() for each in body[body.index("<svg") :].splitlines())
