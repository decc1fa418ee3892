"""`reloop replay`: past time lived through again, and what every other policy would have had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.cli.answers import out
from pipelines.cli.options import (
    DEFAULT,
    BatchOption,
    FaultOption,
    FromOption,
    HomeOption,
    ItemsOption,
    JsonOption,
    MapOption,
    PathOption,
    RateOption,
    SeedOption,
    ShiftOption,
    SourceOption,
    ToOption,
    UsersOption,
    WarmupOption,
    home_at,
    world_of,
)
from pipelines.sources.request import Request, Source

if TYPE_CHECKING:
    from pipelines.replay.live import Tell  # the stages behind it take seconds to import


@contextmanager
def _progress(quiet: bool) -> Iterator[Tell]:
    """Yield what tells a person what is being done: a line that moves, or lines where the output is no terminal."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=quiet or not out.is_terminal,
    ) as bar:
        task = bar.add_task("replay")

        def tell(what: str, as_of: datetime) -> None:
            bar.update(task, description=f"{as_of:%Y-%m-%d} {what}")
            if not quiet and not out.is_terminal:
                out.print(f"{as_of:%Y-%m-%d} {what}", highlight=False)

        yield tell


def replay(
    source: SourceOption = Source.SIMULATED,
    path: PathOption = None,
    mapping: MapOption = None,
    start: FromOption = None,
    end: ToOption = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Days between two decisions; each one trains.")] = 7,
    warmup_days: WarmupOption = None,
    policies: Annotated[list[str] | None, typer.Option("--policies", help="Only this policy; may be repeated. Default: all.")] = None,
    max_age_days: Annotated[
        int | None,
        typer.Option("--max-age-days", min=1, help="Do not measure models in weeks that begin later than this after their training."),
    ] = None,
    batch_days: BatchOption = 7,
    seed: SeedOption = DEFAULT.seed,
    users: UsersOption = DEFAULT.users,
    items: ItemsOption = DEFAULT.items,
    events_per_day: RateOption = DEFAULT.events_per_day,
    faults: FaultOption = None,
    shifts: ShiftOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Live through past time as if it were now, and measure what each policy of retraining and release would have had.

    Every cycle reads, trains and decides by the real stages; the ledger is the real one. What is done already is not
    done again: a replay that was killed goes on. Figures and plot: reports/replay/replay.{json,svg}.
    """
    from pipelines.cli.stages import planned
    from pipelines.errors import ReloopError
    from pipelines.registry import releases
    from pipelines.replay import live, matrix, outcome, page, signals
    from pipelines.replay.policies import POLICIES, Rules, asked_of

    if strangers := [name for name in policies or () if name not in POLICIES]:
        raise ReloopError("--policies", found=str(strangers), allowed=f"some of {list(POLICIES)}")
    state = home_at(home)
    request = Request(source=source, path=path, mapping=mapping, world=world_of(seed, users, items, events_per_day, faults, shifts))
    asked, settings = planned(
        state, request, start, end, step_days=every, warmup_days=warmup_days, batch_days=batch_days, more_days=4 * every
    )
    with _progress(as_json) as tell:
        done = live.live(state, request, asked.windows, batch_days=batch_days, tell=tell)
        bundles = {as_of: digest for as_of, digest in live.cycles(state).items() if as_of in set(done)}
        ledger = [entry for entry in releases.history(state) if entry.get("as_of")]
        first, released = outcome.first(ledger, sorted(bundles)), outcome.released(ledger)
        oldest = timedelta(days=max_age_days) if max_age_days else None
        measured = matrix.measure(state, bundles, max_age=oldest, always={first, *released}, tell=tell)
        rules = Rules(asked_of(settings.gate, measured), released, signals.drifted(state, bundles, tell))
        found = outcome.outcomes(measured, rules, first, names=policies, seconds=live.seconds(state, bundles))
    facts = {
        "source": str(source),
        "from": asked.windows[0].start.isoformat(),
        "to": asked.windows[-1].end.isoformat(),
        "every_days": every,
        "first": first.isoformat(),
    }
    figures = page.write(state, found, ledger, facts)
    if as_json:
        typer.echo(json.dumps(figures, indent=2, sort_keys=True, default=str))
        return
    grid = Table(title="The ledger")
    for heading in ("as of", "decision", "before", "after", "reasons"):
        grid.add_column(heading, no_wrap=heading != "reasons")
    for entry in ledger:
        *cells, reasons = releases.line(entry)
        grid.add_row(*cells, reasons.split("\n", 1)[0])
    out.print(grid)
    out.print(page.table(found))
    out.print(
        f"  figures and plot     {page.json_file(state)}, {page.json_file(state).with_suffix('.svg')}", highlight=False, soft_wrap=True
    )
