"""`reloop batch`: lists for everybody, made beforehand."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.cli.answers import answer
from pipelines.cli.options import AsOfOption, HomeOption, JsonOption, home_at
from pipelines.window import utc


def batch(
    as_of: AsOfOption,
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, max=1000, help="Items a user; default: serving.batch.k.")] = None,
    active_days: Annotated[
        int | None,
        typer.Option(
            "--active-days", min=0, help="Users with an event in so many days before; 0: everybody. Default: serving.batch.active_days."
        ),
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Make the lists that answer when no better rung can, publish them as Parquet and load them for the service."""
    from pipelines.serving import batch as batches

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("users", total=None)
        made = batches.run(
            home_at(home),
            utc(as_of),
            k=k,
            active_days=active_days,
            on_block=lambda done, total: bar.update(task, completed=done, total=total),
        )
    answer(as_json, "batch", made)
