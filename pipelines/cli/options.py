"""The options that several verbs share, each with its help, and what they say once read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.config import Home
from pipelines.sources.request import Source, World

HomeOption = Annotated[Path | None, typer.Option("--home", help="State folder; default: RELOOP_HOME, else var/.")]
AsOfOption = Annotated[str, typer.Option("--as-of", help="The first instant that is not yet known: 2025-03-03 means all of 2 March is in.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
SourceOption = Annotated[Source, typer.Option("--source", help="Where events come from.")]
PathOption = Annotated[Path | None, typer.Option("--path", help="File or folder of the source.")]
MapOption = Annotated[Path | None, typer.Option("--map", help="Mapping file (YAML) of `--source table`; see docs/your-own-data.md.")]
FromOption = Annotated[str | None, typer.Option("--from", help="First day to read; default: the first of the source.")]
ToOption = Annotated[str | None, typer.Option("--to", help="Day after the last to read; default: the end of the source.")]
BatchOption = Annotated[
    int,
    typer.Option("--batch-days", min=1, help="Days that are staged and landed in one go; checks and lake files are by day all the same."),
]
WarmupOption = Annotated[
    int | None, typer.Option("--warmup-days", min=1, help="Days before the first training; simulated: 56, else what training needs.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the simulated shop.")]
UsersOption = Annotated[int, typer.Option("--users", help="Users of the simulated shop.")]
ItemsOption = Annotated[int, typer.Option("--items", help="Items of the simulated shop.")]
RateOption = Annotated[int, typer.Option("--events-per-day", help="Events a day of the simulated shop.")]
FaultOption = Annotated[list[str] | None, typer.Option("--fault", help="Fault to inject, NAME@YYYY-MM-DD; may be repeated.")]
ShiftOption = Annotated[list[str] | None, typer.Option("--shift", help="Shift of the world, NAME@YYYY-MM-DD; may be repeated.")]

DEFAULT = World()


def home_at(folder: Path | None) -> Home:
    """Return the state folder named by `--home`, else the one of the environment."""
    return Home.from_environment() if folder is None else Home(folder.resolve())


def world_of(seed: int, users: int, items: int, events_per_day: int, faults: list[str] | None, shifts: list[str] | None) -> World:
    """Return the simulated shop that the options describe."""
    return World(seed=seed, users=users, items=items, events_per_day=events_per_day, faults=tuple(faults or ()), shifts=tuple(shifts or ()))
