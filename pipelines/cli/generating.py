"""`reloop retrieval generate`: candidates for everybody, for whoever sends or stores them in bulk."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from pipelines.cli.answers import out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.window import utc


def generate(
    as_of: Annotated[str | None, typer.Option("--as-of", help="A training run; default: the newest.")] = None,
    users_at_once: Annotated[int, typer.Option("--users-at-once", min=1, help="Users of a part, and in memory at a time.")] = 20_000,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Write the candidates of every user of a training run as Parquet parts; killed, it goes on where it stood."""
    from pipelines.datasets import universe
    from pipelines.retrieval import attribution, generation

    state = home_at(home)
    moment = attribution.newest(state, utc(as_of) if as_of else None)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=as_json,
    ) as progress:
        users = progress.add_task("users", total=len(universe.load(state, moment).user_ids))
        made = generation.of_run(state, moment, users_at_once=users_at_once, tell=lambda done: progress.update(users, completed=done))
    folder = generation.folder(state, moment)
    size = sum(entry["bytes"] for entry in made.files.values())
    record = {
        "as_of": moment.isoformat(),
        "users": made.facts["users"],
        "candidates": made.facts["rows"],
        "parts": len(made.files) - 1,
        "bytes": size,
        "folder": str(folder),
    }
    if as_json:
        typer.echo(json.dumps(record, indent=2))
        return
    grid = Table(title=f"Candidates for everybody as of {moment:%Y-%m-%d}")
    for heading in ("users", "candidates", "parts", "MB"):
        grid.add_column(heading, justify="right")
    grid.add_row(f"{record['users']:,}", f"{record['candidates']:,}", str(record["parts"]), f"{size / 2**20:,.1f}")
    out.print(grid)
    out.print(str(folder), highlight=False, soft_wrap=True)
