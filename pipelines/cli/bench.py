"""`reloop bench`: what the models are worth, measured."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipelines import publish
from pipelines.cli.answers import out
from pipelines.cli.options import HomeOption, home_at
from pipelines.config import REPOSITORY

app = typer.Typer(help="What the models are worth, measured.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep `retrieval` a verb of its own, though it is the only one."""


@app.command()
def retrieval(
    data_set: Annotated[
        str,
        typer.Option(
            "--dataset", help="online-retail, retailrocket, movielens-100k, simulated, simulated-taste, simulated-popularity, or lake."
        ),
    ],
    path: Annotated[Path | None, typer.Option("--path", help="The data set's file or folder; default: below RELOOP_REAL_DATA.")] = None,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be repeated. Default: the whole line-up.")
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0, max=1_000_000, help="Training budget of each neural source; 0: its epochs.")
    ] = 60.0,
    timeout: Annotated[float, typer.Option("--timeout", min=1, max=1_000_000, help="Seconds after which a source is given up.")] = 1800.0,
    tune: Annotated[bool, typer.Option("--tune", help="Choose knobs of the cheap sources on the validation window.")] = False,
    line_up: Annotated[bool, typer.Option("--line-up", help="Also grow the line-up that is worth most for its seconds.")] = False,
    as_of: Annotated[str | None, typer.Option("--as-of", help="Of `lake`: the end of the test window; default: of its last day.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    home: HomeOption = None,
) -> None:
    """Rank every source on the last days of a data set: quality with intervals, seconds, memory, a table and a plot.

    Sources see what had happened and been received before the test window, and rank the whole catalogue for
    everyone who did something in it. Figures go to reports/bench/retrieval-DATASET.{json,csv,svg}.
    """
    from pipelines.retrieval import lineup
    from pipelines.retrieval.leaderboard import page, session
    from pipelines.retrieval.leaderboard.board import Plan
    from pipelines.retrieval.leaderboard.data_sets import DATA_SETS

    state = home_at(home)
    if path is None and data_set in DATA_SETS and DATA_SETS[data_set].file:
        path = Path(os.environ.get("RELOOP_REAL_DATA", REPOSITORY.parent / "shared" / "data")) / DATA_SETS[data_set].file
    names = tuple(dict.fromkeys(sources)) if sources else tuple(lineup.SOURCES)
    for name in names:
        lineup.make(name)  # an unknown one is refused before a data set is read
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
    ) as bar:
        task = bar.add_task(data_set, total=len(names))

        def tell(what: str, done: int) -> None:
            bar.update(task, description=f"{data_set}: {what}" if what else data_set, completed=done)
            if not out.is_terminal and what:
                out.print(f"{data_set}: {what}", highlight=False)

        plan = Plan(names, seconds, tune, line_up, timeout)
        figures = session.run(state, data_set, plan, path=None if path is None else path.absolute(), as_of=as_of, tell=tell)
    out.print(page.table(figures))
    for sentence in page.others(figures):
        out.print(f"  {sentence}", highlight=False, soft_wrap=True, markup=False)
    for grid in page.choices(figures):
        out.print(grid)
    for file in page.write(state.reports / "bench", figures):
        out.print(f"  {file}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        publish.write_json(as_json, figures)
