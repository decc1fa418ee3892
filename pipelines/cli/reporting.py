"""`reloop report`: what the loop measured and decided, as a page, as metrics, as JSON."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from pipelines.cli.answers import out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.window import stamp, utc


def report(
    as_of: Annotated[str | None, typer.Option("--as-of", help="The cycle to report on; default: the newest.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Write the page of a cycle, reports/index.html and reports/metrics.prom anew from what is on record; nothing is measured."""
    from pipelines.errors import StateError
    from pipelines.monitoring import report as reports

    state = home_at(home)
    known = reports.moments(state)
    moment = utc(as_of) if as_of else max(known, default=None)
    if moment is None or moment < min(known, default=moment):
        first = f"{min(known):%Y-%m-%d} or later" if known else "a cycle that ran; none has"
        raise StateError("report", found=f"as of {moment:%Y-%m-%d}" if moment else "no cycle", allowed=first, hint="reloop run")
    figures = reports.write(state, moment)
    if as_json:
        typer.echo(json.dumps(figures, indent=2, sort_keys=True))
        return
    last, champion = figures["cycles"][-1], figures["champion"] or {}
    quality = champion.get("quality") or {}
    grid = Table(title=f"As of {moment:%Y-%m-%d}", show_header=False)
    grid.add_row("champion", f"version {champion['version']}, {champion['age_days']:.0f} days old" if champion else "none")
    grid.add_row("NDCG@10 on fresh labels", f"{quality['ndcg_at_10']:.4f}" if quality else "-")
    for name in ("drift", "triage", "gate"):
        found = last[name] or {}
        grid.add_row(name, str(found.get("verdict") or found.get("action") or "-"))
    grid.add_row("alarms", "\n".join(alarm["what"] for alarm in figures["alarms"]) or "none")
    out.print(grid)
    page = reports.folder(state) / f"{stamp(moment)}.html"
    for name, file in {"page": page, "all runs": state.reports / "index.html", "metrics": state.reports / "metrics.prom"}.items():
        out.print(f"  {name:<20} {file}", highlight=False, soft_wrap=True, markup=False)
