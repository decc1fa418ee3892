"""A run's report as one HTML page: no script, no network, no colour needed; every plot has its figures as a table beside it.

Everything that came from data (names of features, reasons, titles) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any, Final

from pipelines.monitoring import line_plot
from pipelines.monitoring.line_plot import Series
from pipelines.window import stamp, utc

OPEN_PANELS: Final = 12  # features whose panels are shown at once: those nearest to or furthest beyond their thresholds

STYLE: Final = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; border-bottom: 1px solid #999; }
h3 { font-size: .85rem; margin: .3rem 0 0; font-weight: 600; overflow-wrap: anywhere; }
nav a { margin-right: 1rem; } a { color: #111; text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem; margin: 1rem 0; padding: 0; }
.tiles div { border: 1px solid #777; padding: .5rem .7rem; } .tiles dt { font-size: .8rem; color: #333; } .tiles dd { margin: 0; font-size: 1.25rem; }
.alarm { border: 2px solid #111; border-left-width: .6rem; padding: .5rem .8rem; margin: .5rem 0; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .4rem 1rem; }
.panel { border-top: 1px solid #ccc; } .panel.drifted { border-top: 3px solid #111; }
svg { max-width: 100%; height: auto; } svg text { font: 9.5px system-ui, sans-serif; fill: #222; }
svg .line { fill: none; stroke: #111; stroke-width: 1.3; } svg circle, svg rect { fill: #111; } svg .open { fill: #fff; stroke: #111; }
svg .bar { fill: none; stroke: #555; stroke-width: 1; } svg .grid { stroke: #ddd; } svg .mark { stroke: #777; stroke-dasharray: 1 3; }
table { border-collapse: collapse; font-size: .85rem; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem; border-bottom: 1px solid #ccc; } td.n, th.n { text-align: right; } td:first-child { white-space: nowrap; }
.scroll { overflow-x: auto; } details { margin: .3rem 0; } summary { cursor: pointer; } .legend { font-size: .85rem; color: #222; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
"""

Figures = Mapping[str, Any]


def page(figures: Figures, links: Mapping[str, str]) -> str:
    """Return the page of a run.

    Args:
        links: name -> address of what is shown elsewhere.
    """
    cycles = figures["cycles"]
    body = [
        f"<h1>Reloop, as of {_day(figures['as_of'])}</h1>",
        '<nav aria-label="Elsewhere"><a href="../index.html">All runs</a>'
        + "".join(f'<a href="{escape(address, quote=True)}">{escape(name)}</a>' for name, address in links.items())
        + "</nav>",
        _tiles(figures),
        _section("Alarms", _alarms(figures["alarms"])),
        _section("Quality of what served", _quality(cycles)),
        _section("Age of the champion", _age(cycles, figures["decisions"])),
        _section("Drift, feature by feature", _drift(cycles)),
        _section("What was found and asked for", _asked(cycles)),
        _section("Decisions", _decisions(figures["decisions"])),
    ]
    return _document(f"Reloop, as of {_day(figures['as_of'])}", "\n".join(body))


def index(runs: Sequence[Figures]) -> str:
    """Return the page that lists all runs, newest first."""
    rows = []
    for one in sorted(runs, key=lambda run: str(run["as_of"]), reverse=True):
        last: Figures = next((found for found in reversed(one["cycles"]) if found["as_of"] == one["as_of"]), {})
        champion = one["champion"] or {}
        quality = champion.get("quality") or {}
        name = stamp(utc(one["as_of"]))
        rows.append(
            [
                f'<a href="runs/{name}.html">{_day(one["as_of"])}</a>',
                escape(str((last.get("drift") or {}).get("verdict", "-"))),
                escape(str((last.get("triage") or {}).get("action", "-"))),
                escape(str((last.get("gate") or {}).get("verdict", "-"))),
                escape(str(champion.get("version", "-"))),
                _number(champion.get("age_days"), 0),
                _number(quality.get("ndcg_at_10")),
                str(len(one["alarms"])),
            ]
        )
    heads = ("as of", "drift", "triage", "gate", "champion", "its age, days", "its NDCG@10", "alarms")
    return _document("Reloop: all runs", f"<h1>Reloop: all runs</h1>{_table(heads, rows, 'Newest first', numeric={4, 5, 6, 7})}")


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _section(title: str, body: str) -> str:
    name = title.split(",", 1)[0].lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>\n{body}</section>'


def _tiles(figures: Figures) -> str:
    champion = figures["champion"]
    last = figures["cycles"][-1] if figures["cycles"] else {}
    quality = (champion or {}).get("quality") or {}
    span = f" [{_number(quality['lower'])}, {_number(quality['upper'])}]" if quality.get("lower") is not None else ""
    tiles = {
        "champion": "none yet" if champion is None else f"version {champion['version']}",
        "its age": "-" if champion is None else f"{champion['age_days']:.0f} days",
        "its NDCG@10 on fresh labels": _number(quality.get("ndcg_at_10")) + span,
        "drift": str((last.get("drift") or {}).get("verdict", "not checked")),
        "triage": str((last.get("triage") or {}).get("action", "-")),
        "skew": str((last.get("skew") or {}).get("verdict", "not checked")),
        "last decision": str((last.get("gate") or {}).get("verdict", "none in this cycle")),
        "alarms": str(len(figures["alarms"])),
    }
    return (
        '<dl class="tiles">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items())
        + "</dl>"
    )


def _alarms(alarms: Sequence[Figures]) -> str:
    if not alarms:
        return "<p>None.</p>"
    return "".join(f'<div class="alarm"><strong>{escape(one["what"])}</strong>{_list(one["why"])}</div>' for one in alarms)


def _quality(cycles: Sequence[Figures]) -> str:
    rows = [(datetime.fromisoformat(one["as_of"]), one["quality"], one["ranking"]) for one in cycles]
    live = [(when, found["ndcg_at_10"], found.get("lower"), found.get("upper")) for when, found, _ in rows if found]
    challenger = [(when, found["ndcg_at_10"], found.get("lower"), found.get("upper")) for when, _, found in rows if found]
    popular = {when: found.get("popular") for when, found, _ in rows if found}
    marks = {datetime.fromisoformat(one["as_of"]): "released" for one in cycles if _released(one)}
    drawn = line_plot.svg(
        "quality",
        "NDCG@10 over time",
        [
            Series("live champion", live),
            Series("challenger", challenger, dash=1, marker="square"),
            Series("best sellers", line_plot.line(popular), dash=2, marker="cross"),
        ],
        marks=marks,
        described="NDCG@10 of the live champion and of each new challenger on fresh labels, with intervals; dotted lines mark releases.",
    )
    cells = [
        [
            _day(when.isoformat()),
            *_estimate(found),
            str((found or {}).get("n_users") or "-"),
            *_estimate(other),
        ]
        for when, found, other in rows
        if found or other
    ]
    heads = ("as of", "champion", "interval", "users", "challenger", "interval")
    legend = "Solid with dots: the live champion on fresh labels. Dashed with squares: each challenger on the same window. Fine dashes with crosses: what sold best the week before. Bars: intervals of 95%. Dotted lines: releases."
    return f'{drawn}<p class="legend">{legend}</p>' + _folded("Figures", _table(heads, cells, "NDCG@10", numeric={1, 2, 3, 4, 5}))


def _released(one: Figures) -> bool:
    found = one["gate"] or {}
    return found.get("champion_after") is not None and found.get("champion_after") != found.get("champion_before")


def _estimate(found: Figures | None) -> tuple[str, str]:
    if not found:
        return "-", "-"
    span = "-" if found.get("lower") is None else f"{_number(found['lower'])} to {_number(found['upper'])}"
    return _number(found["ndcg_at_10"]), span


def _age(cycles: Sequence[Figures], decisions: Sequence[Figures]) -> str:
    ages = {datetime.fromisoformat(one["as_of"]): (one["champion"] or {}).get("age_days") for one in cycles}
    drawn = line_plot.svg(
        "age",
        "Age of the champion in days",
        [Series("age", line_plot.line(ages), marker="circle")],
        size=(720, 140),
        marks={datetime.fromisoformat(one["as_of"]): "released" for one in cycles if _released(one)},
        described="Days from the training of the model that serves to each cycle; it falls where another was released.",
    )
    rolled = sum(one["kind"] == "rolled back" for one in decisions)
    cells = [[_day(one["as_of"]), str(found["version"]), _number(found["age_days"], 1)] for one in cycles if (found := one["champion"])]
    drawn += _folded("Figures", _table(("as of", "champion", "its age, days"), cells, "Age of the champion", numeric={1, 2}))
    return drawn + (f'<p class="legend">{rolled} rollbacks among the decisions below.</p>' if rolled else "")


def _drift(cycles: Sequence[Figures]) -> str:
    checked = [(datetime.fromisoformat(one["as_of"]), one["drift"]) for one in cycles if one["drift"] and one["drift"]["features"]]
    if not checked:
        return "<p>No check has compared anything yet.</p>"
    newest = checked[-1][1]["features"]
    nearness = {name: found["psi"] / found["threshold"] if found["threshold"] else 0.0 for name, found in newest.items()}
    names = sorted(newest, key=lambda name: (-nearness[name], name))
    legend = (
        '<p class="legend">Solid with dots: PSI against the champion\'s reference. Dashed: what it must exceed. '
        f"Nearest to its threshold first; a heavy rule and the word DRIFTED mark what is beyond it on {_day(checked[-1][0].isoformat())}.</p>"
    )
    panels = [_panel(place, name, checked) for place, name in enumerate(names)]
    shown = _panels(panels[:OPEN_PANELS])
    rest = panels[OPEN_PANELS:]
    more = _folded(f"{len(rest)} more features", _panels(rest)) if rest else ""
    cells = [
        [
            escape(name),
            _number(newest[name]["psi"], 3),
            _number(newest[name]["threshold"], 3),
            _number(newest[name].get("missing"), 3),
            _number(newest[name].get("importance"), 3),
        ]
        for name in names
    ]
    table = _table(("feature", "PSI", "threshold", "missing", "share of gain"), cells, "The newest check", numeric={1, 2, 3, 4})
    return legend + shown + more + _folded("Figures of the newest check", table)


def _panels(panels: Sequence[str]) -> str:
    return '<div class="panels">' + "".join(panels) + "</div>"


def _panel(place: int, name: str, checked: Sequence[tuple[datetime, Figures]]) -> str:
    """Return the small plot of one feature."""
    psi = {when: found["features"].get(name, {}).get("psi") for when, found in checked}
    threshold = {when: found["features"].get(name, {}).get("threshold") for when, found in checked}
    last = checked[-1][1]["features"][name]
    beyond = bool(last.get("drifted", last["psi"] > last["threshold"]))
    series = [Series("PSI", line_plot.line(psi)), Series("threshold", line_plot.line(threshold), dash=1, marker="none", step=True)]
    said = f"PSI {last['psi']:.3f} of {last['threshold']:.3f}"
    drawn = line_plot.svg(
        f"f{place}", f"{name}: {said}", series, size=(280, 96), described=f"PSI of {name} at each check against its threshold."
    )
    look, word = (" drifted", " DRIFTED") if beyond else ("", "")
    return f'<div class="panel{look}"><h3>{escape(name)}</h3><div class="legend">{said}{word}</div>{drawn}</div>'


def _asked(cycles: Sequence[Figures]) -> str:
    rows = []
    for one in reversed(cycles):
        drift, triage, trigger = one["drift"] or {}, one["triage"] or {}, one["trigger"] or {}
        if not (drift or triage or trigger):
            continue
        rows.append(
            [
                _day(one["as_of"]),
                f"{escape(str(drift.get('verdict', '-')))}{_list(drift.get('reasons', [])[:2])}",
                f"{escape(str(triage.get('action', '-')))}{_list(triage.get('reasons', [])[:3])}",
                ("due" if trigger.get("due") else "not due" if trigger else "-") + _list(trigger.get("reasons", [])[:3]),
            ]
        )
    return _table(("as of", "drift", "triage", "training"), rows, "Newest first")


def _decisions(decisions: Sequence[Figures]) -> str:
    rows = []
    for one in reversed(decisions):
        change = f"{one['champion_before'] or 'none'} → {one['champion_after'] or 'none'}"
        because = [*([f"trained because {reason}" for reason in one["trigger"]] if one["trigger"] else []), *one["reasons"]]
        rows.append(
            [
                str(one["seq"]),
                _day(one["as_of"]) if one["as_of"] else "-",
                escape(one["kind"]) + (f" by {escape(str(one['author']))}" if one["author"] else ""),
                change,
                escape(str(one["track"] or "-")),
                _list(because[:1]) + (_folded(f"{len(because) - 1} more reasons", _list(because[1:])) if len(because) > 1 else ""),
            ]
        )
    return _table(("#", "as of", "decision", "champion", "track", "reasons"), rows, "The ledger, newest first", numeric={0})


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], caption: str, numeric: Iterable[int] = ()) -> str:
    """Return a table; cells are HTML already."""
    right = set(numeric)

    def cell(tag: str, place: int, text: str, more: str = "") -> str:
        aligned = ' class="n"' if place in right else ""
        return f"<{tag}{aligned}{more}>{text}</{tag}>"

    head = "".join(cell("th", place, escape(name), ' scope="col"') for place, name in enumerate(heads))
    body = "".join("<tr>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(str(line))}</li>" for line in lines) + "</ul>" if lines else ""


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _day(moment: str) -> str:
    return escape(moment[:10] if moment[11:16] in {"", "00:00"} else moment[:16].replace("T", " "))
