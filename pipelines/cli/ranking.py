"""`reloop ranking`: what can be asked of the second stage by itself."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.cli.answers import NO, out, records_of
from pipelines.cli.options import AsOfOption, HomeOption, JsonOption, home_at
from pipelines.errors import StateError
from pipelines.model_settings import SearchSettings
from pipelines.window import utc

SHOWN = 5  # trials of the table, the best ones
FOUND = ("step", "against", "NDCG@10", "recall@50", "ceiling")
WORDS = {"step", "against", "own", "rule", "own measure"}

app = typer.Typer(help="What can be asked of the second stage by itself.", no_args_is_help=True)


@app.callback()
def ranking() -> None:
    """Group the verbs."""


@app.command()
def attribution(
    as_of: Annotated[str | None, typer.Option("--as-of", help="A training run; default: the newest.")] = None,
    group: Annotated[str, typer.Option("--slice", help="all, light_users, tail_items, country:GB, device:mobile, ...")] = "all",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show what each step of a list is worth on the judged window: sources, blend, ranker, and every rule of re-ranking."""
    from pipelines.ranking import attribution as steps

    state = home_at(home)
    moment = steps.newest(state, utc(as_of) if as_of else None)
    rows = steps.load(state, moment)
    if as_json:
        typer.echo(json.dumps({"as_of": moment.isoformat(), "steps": steps.nested(rows)}, indent=2))
        return
    known = list(dict.fromkeys(row["slice"] for row in rows))
    if group not in known:
        raise StateError(f"slice {group!r}", found="nobody in it", allowed=f"one of {known}")
    lines = steps.cells(rows, group)
    shown = [name for name in lines[0] if name not in FOUND and any(line[name] not in {"", "-"} for line in lines)]
    out.print(_grid(f"What each step is worth as of {moment:%Y-%m-%d}, {group}", lines, FOUND))
    if shown:
        out.print(_grid("What it does to the catalogue and to tastes", lines, ("step", *shown)))
    out.print(steps.LEGEND, highlight=False, markup=False)


def _grid(title: str, lines: list[dict[str, str]], names: tuple[str, ...]) -> Table:
    """Return lines of texts as a table; words stand left, numbers right."""
    grid = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in names:
        grid.add_column(name, justify="left" if name in WORDS else "right", no_wrap=name in {"step", "rule"})
    for line in lines:
        grid.add_row(*(escape(line[name]) for name in names))
    return grid


@app.command()
def rules(
    as_of: Annotated[str | None, typer.Option("--as-of", help="A training run that was evaluated; default: the newest.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Try every rule of re-ranking alone on the judged window of a run: what it costs in NDCG, what it brings in its own measure.

    Nothing is changed. A rule that the settings configure is tried as configured, every other at its default strength.
    """
    from pipelines.ranking import attribution as steps
    from pipelines.ranking import rules_tried

    state = home_at(home)
    moment = steps.newest(state, utc(as_of) if as_of else None)
    with Progress(TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        bar.add_task("trying the rules", total=None)
        rows = rules_tried.tried(state, moment)
    if as_json:
        typer.echo(json.dumps({"as_of": moment.isoformat(), "steps": steps.nested(rows)}, indent=2))
        return
    lines = rules_tried.lines(rows)
    out.print(
        _grid(
            f"Each rule alone as of {moment:%Y-%m-%d}: what it costs and what it is for",
            lines,
            ("rule", "NDCG@10", "own measure", "before", "change"),
        )
    )
    out.print(_grid("What else it moves", lines, ("rule", "recall@50", "coverage", "Gini")))
    out.print("Changes at 10 places against what is served without any rule, on the same users, with 95% intervals.", highlight=False)


@app.command()
def search(
    as_of: AsOfOption,
    trials: Annotated[int, typer.Option("--trials", min=1, max=10_000, help="How many sets of knobs to try.")] = 30,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="After so many seconds of trials none begins; 0: no limit.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed finds the same.")] = SearchSettings().seed,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Search knobs for the ranker on the rows of a training run; the next `rank` of that run uses what was shown to be better.

    A search that was interrupted goes on where it was. Exit code 1: nothing was shown to be better than the settings' own knobs.
    """
    from pipelines.ranking import search as searching

    state, moment = home_at(home), utc(as_of)
    policy = SearchSettings(n_trials=trials, seconds=seconds, seed=seed)
    best = 0.0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("trials", total=trials + 1)

        def told(trial: dict[str, Any]) -> None:
            nonlocal best
            best = max(best, trial["ndcg_at_10"])
            bar.update(task, advance=1, description=f"trials, best NDCG@10 {best:.4f}")

        searching.search(state, moment, policy, told)
    found, tried = records_of(state, moment, "search")["search"], searching.trials(state, moment)
    if as_json:
        typer.echo(json.dumps({**found, "tried": tried}, indent=2, sort_keys=True, default=str))
    else:
        _show(found, tried)
    if not found["used"]:
        raise typer.Exit(NO)


def _show(found: dict[str, Any], tried: list[dict[str, Any]]) -> None:
    """Print the best trials beside the settings' own knobs, and what comes of it."""
    ranked = sorted(tried, key=lambda trial: -trial["ndcg_at_10"])[:SHOWN]
    shown = ranked + [trial for trial in tried[:1] if trial not in ranked]
    knobs = dict.fromkeys(name for trial in shown for name in trial["knobs"])
    grid = Table(title=f"The best of {max(len(tried) - 1, 0)} trials, and 0: the settings' own knobs", title_justify="left")
    for heading in ("trial", *(str(trial["number"]) for trial in shown)):
        grid.add_column(heading, justify="left" if heading == "trial" else "right")
    grid.add_row("NDCG@10", *(f"{trial['ndcg_at_10']:.4f}" for trial in shown))
    grid.add_row("rounds", *(str(trial["rounds"]) for trial in shown))
    for name in knobs:
        grid.add_row(name, *(f"{trial['knobs'][name]:.3g}" if name in trial["knobs"] else "" for trial in shown))
    if tried:
        out.print(grid)
    for reason in found["reasons"]:
        out.print(escape(reason), highlight=False, soft_wrap=True)
