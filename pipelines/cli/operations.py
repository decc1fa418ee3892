"""The verbs beside the loop: the event stream, the simulated shop, and how things stand."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipelines.cli.answers import answer, out
from pipelines.cli.options import (
    DEFAULT,
    FaultOption,
    HomeOption,
    ItemsOption,
    JsonOption,
    RateOption,
    SeedOption,
    ShiftOption,
    UsersOption,
    home_at,
    world_of,
)
from pipelines.window import Window


def stream(
    address: Annotated[
        str | None,
        typer.Option(
            "--bus", envvar="RELOOP_BUS", help="Another bus than the settings': sqlite:///FILE, redis://HOST:PORT/DB or kafka://HOST:PORT."
        ),
    ] = None,
    topic: Annotated[str, typer.Option("--topic", help="Stream or topic of the events, of another bus.")] = "events",
    group: Annotated[str, typer.Option("--group", help="Consumers of one group share the events.")] = "sessions",
    consumer: Annotated[str, typer.Option("--consumer", help="Name of this one; under it again it resumes what it left.")] = "1",
    count: Annotated[int, typer.Option("--count", min=1, help="Events a delivery, at most.")] = 500,
    idle: Annotated[float | None, typer.Option("--until-idle", min=0.0, help="End once nothing has come for so many seconds.")] = None,
    publish: Annotated[
        Path | None, typer.Option("--publish", help="Put the events of a Parquet or JSON-lines file on the bus, and end.")
    ] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Keep every user's session fresh online, event by event, until told to stop."""
    from pipelines.serving.realtime import touching
    from pipelines.streaming import bus, collecting
    from pipelines.streaming.consumer import Consumer, Counts
    from pipelines.streaming.files import events

    state = home_at(home)
    member = bus.connect(address, topic=topic, group=group, consumer=consumer) if address else bus.of(state, group=group, consumer=consumer)
    with closing(member) as events_bus:
        if not address:
            collecting.expect(state)
        if publish is not None:
            answer(as_json, "stream", {"published": events_bus.publish(events(publish))})
            return
        with (
            closing(Consumer(state, events_bus, on_pushed=touching(state))) as taking,
            Console(stderr=True).status("waiting for events") as line,
        ):

            def show(counts: Counts) -> None:
                line.update(", ".join(f"{number:,} {name}" for name, number in counts.record().items()))

            try:
                taking.run(count=count, idle_seconds=idle, on_step=show)
            except (KeyboardInterrupt, SystemExit):  # told to stop: what was not acknowledged is delivered again
                line.update("stopping")
        if taking.counts.refused:
            typer.echo(f"refused events, each with its reasons: {state.quarantine}/stream-*/events.parquet", err=True)
        answer(as_json, "stream", taking.counts.record())


def simulate(
    target: Annotated[Path, typer.Argument(help="Folder to write events.parquet, items.parquet and users.parquet to.")],
    start: Annotated[str, typer.Option("--from", help="First day.")],
    end: Annotated[str, typer.Option("--to", help="Day after the last.")],
    seed: SeedOption = DEFAULT.seed,
    users: UsersOption = DEFAULT.users,
    items: ItemsOption = DEFAULT.items,
    events_per_day: RateOption = DEFAULT.events_per_day,
    faults: FaultOption = None,
    shifts: ShiftOption = None,
) -> None:
    """Write days of the simulated shop, as the shop would send them, to a folder of Parquet files."""
    from pipelines import publish
    from pipelines.sources.simulator import Shop

    shop = Shop(world_of(seed, users, items, events_per_day, faults, shifts))
    window = Window.parse(start, end)
    tables = {"events": shop.raw_events(window), "items": shop.items(window), "users": shop.users(window)}
    for name, table in tables.items():
        publish.write_parquet(target / f"{name}.parquet", table)
        out.print(f"{table.num_rows:>12,} {name}", highlight=False)


def status(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show how far every stage has come."""
    from pipelines import inspection

    answer(as_json, "status", inspection.status(home_at(home)))


def doctor(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Check the installation and the state folder; each line says what to do. Exit code 1: something is wrong."""
    from pipelines import inspection

    findings = list(inspection.examine(home_at(home)))
    record = {finding.name: str(finding) for finding in findings}
    answer(as_json, "doctor", record, yes=all(finding.ok for finding in findings))
