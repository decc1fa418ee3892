"""`reloop retrieval`: which source earns its place, and which could go."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.cli.answers import NO, out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.window import utc

RunOption = Annotated[str | None, typer.Option("--as-of", help="A training run; default: the newest.")]
FOUND = {
    "source": "source",
    "contribution": "adds",
    "interval": "95%",
    "ndcg_at_10": "NDCG@10",
    "recall_at_50": "recall@50",
    "ceiling": "ceiling",
    "weight": "weight",
    "places": "places (alone)",
    "hits": "hits (alone)",
    "users_served": "served",
}
COSTS = {
    "source": "source",
    "fit_seconds": "fit s",
    "retrieve_ms_per_user": "ms/user",
    "state_mb": "MB",
    "peak_mb": "peak MB",
}

app = typer.Typer(help="Which retrieval source earns its place, and which could go.", no_args_is_help=True)


@app.command()
def sources(as_of: RunOption = None, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show what each source of a training run finds, what only it adds to the blend, and what it costs."""
    from pipelines.retrieval import attribution

    state = home_at(home)
    moment = attribution.newest(state, utc(as_of) if as_of else None)
    table = attribution.load(state, moment)
    if as_json:
        typer.echo(json.dumps({"as_of": moment.isoformat(), "sources": {row.pop("source"): row for row in table}}, indent=2))
        return
    ordered = [attribution.cells(row) for row in attribution.by_contribution(table)]
    for title, headings in (
        (f"What they find as of {moment:%Y-%m-%d}, {table[0]['users']:,} users judged", FOUND),
        ("What they cost", COSTS),
    ):
        grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for heading in headings.values():
            grid.add_column(heading, justify="left" if heading == "source" else "right", no_wrap=heading == "source")
        for cells in ordered:
            grid.add_row(*(cells[name] for name in headings))
        out.print(grid)
    out.print(attribution.LEGEND, highlight=False)


@app.command()
def prune(
    as_of: RunOption = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Judge on so many training runs together: this one and those before it.")] = 1,
    write: Annotated[bool, typer.Option("--write", help="Put the sources that stay into reloop.toml of the state folder.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say which sources could go, what would be lost and saved. Exit code 1: none; every source earns its place."""
    from pipelines.retrieval import pruning

    state = home_at(home)
    advice = pruning.advise(state, utc(as_of) if as_of else None, runs)
    written = str(pruning.write(state, advice)) if write and advice.drop else None
    record = {**advice.to_json(), "written": written}
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        _show(record)
    if not advice.drop:
        raise typer.Exit(NO)


def _show(record: dict[str, Any]) -> None:
    """Print what pruning says as a table, and what to do about it."""
    grid = Table(title=f"Pruning, judged on {', '.join(record['runs'])}")
    for heading in ("source", "verdict", "recall", "at most", "fit s", "ms/user", "MB"):
        grid.add_column(heading, justify="left" if heading in {"source", "verdict"} else "right")
    for name, row in record["drop"].items():
        costs = ("-" if row[cost] is None else f"{row[cost]:.2f}" for cost in ("fit_seconds", "retrieve_ms_per_user", "state_mb"))
        grid.add_row(name, "drop: lost by then", f"{row['lost']:.4f}", f"{row['lost_upper']:.4f}", *costs)
    for name, row in record["keep"].items():
        figures = ("-" if row[figure] is None else f"{row[figure]:.4f}" for figure in ("adds", "adds_at_most"))
        grid.add_row(name, f"keep: {row['why']}", *figures)
    out.print(grid)
    if not record["drop"]:
        out.print("nothing to drop")
        return
    saved = record["saved"]
    out.print(
        f"recall of the blend {record['recall']:.4f} -> {record['recall_after']:.4f}; saved: {saved['fit_seconds']:.1f} s of training, "
        f"{saved['retrieve_ms_per_user']:.3f} ms a user, {saved['state_mb']:.1f} MB",
        highlight=False,
    )
    said = f"written to {record['written']}" if record["written"] else "write under [retrieval] in reloop.toml, or pass --write"
    out.print(f"{said}:\n{escape(record['setting'])}", highlight=False, soft_wrap=True)
