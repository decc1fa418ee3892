"""`reloop`: one verb a stage. Exit code 0: done; 1: decided no (kept, not due, drift found); 2: error."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.errors import ReloopError
from pipelines.sources.request import Request, Source, World
from pipelines.window import Window, utc

app = typer.Typer(
    help="Keep a recommender system trained, fresh and honest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console(width=None if sys.stdout.isatty() else 120)

NO = 1  # the exit code of a decision that says no

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
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the simulated shop.")]
UsersOption = Annotated[int, typer.Option("--users", help="Users of the simulated shop.")]
ItemsOption = Annotated[int, typer.Option("--items", help="Items of the simulated shop.")]
RateOption = Annotated[int, typer.Option("--events-per-day", help="Events a day of the simulated shop.")]
FaultOption = Annotated[list[str] | None, typer.Option("--fault", help="Fault to inject, NAME@YYYY-MM-DD; may be repeated.")]
ShiftOption = Annotated[list[str] | None, typer.Option("--shift", help="Shift of the world, NAME@YYYY-MM-DD; may be repeated.")]

DEFAULT = World()


def main() -> None:
    """Run the command line; turn an error that a person can act on into one line and exit code 2."""
    # A terminated run takes its Airflow process along: the exit unwinds the stack that started it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except ReloopError as error:
        _complain(str(error))
    except ValidationError as error:
        for wrong in error.errors():
            _complain(
                f"{'.'.join(map(str, wrong['loc']))}: {wrong['input']!r}; {wrong['msg']}. Hint: `reloop COMMAND --help` lists what is allowed"
            )
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the outermost edge
        # Exit code 1 says that a decision was no, so a defect must not leave with Python's own 1.
        Console(stderr=True).print_exception()
        _complain(f"{type(error).__name__}: {error}. Hint: this is a defect of Reloop; the trace above says where")


def _complain(text: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {_escape(text)}")
    sys.exit(2)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _home(folder: Path | None) -> Home:
    return Home.from_environment() if folder is None else Home(folder.resolve())


def _print(as_json: bool, value: Any, title: str = "") -> None:
    """Print a record: as JSON, or as a table of its fields."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, sort_keys=True, default=str))
        return
    grid = Table(title=title, show_header=False)
    for name, field in value.items():
        text = (
            "\n".join(map(str, field))
            if isinstance(field, list)
            else json.dumps(field, default=str)
            if isinstance(field, dict)
            else str(field)
        )
        grid.add_row(name, _escape(text))
    out.print(grid)


def _answer(as_json: bool, title: str, record: dict[str, Any], *, yes: bool = True) -> None:
    """Print a verb's record; leave with exit code 1 where the decision was no."""
    _print(as_json, record, title)
    if not yes:
        raise typer.Exit(NO)


def _world(seed: int, users: int, items: int, events_per_day: int, faults: list[str] | None, shifts: list[str] | None) -> World:
    return World(seed=seed, users=users, items=items, events_per_day=events_per_day, faults=tuple(faults or ()), shifts=tuple(shifts or ()))


def _span(home: Home, request: Request, start: str | None, end: str | None, default_days: int | None = None) -> Window:
    """Return the window asked for, its open ends filled from the source."""
    from pipelines.sources import plan

    whole = plan.span(home, request)
    first = utc(start) if start else whole.start
    if end:
        return Window(first, utc(end))
    return Window(first, first + timedelta(days=default_days)) if default_days else Window(first, whole.end)


def _stages(home: Home, as_of: datetime, *names: str) -> dict[str, Any]:
    """Return the records of some stages of a cycle, those of keyed stages by key."""
    found: dict[str, Any] = {}
    for name in names:
        for record in cycle.records(home, as_of, name):
            label = name if record["key"] is None else f"{name}.{record['key']}"
            found[label] = {field: value for field, value in record.items() if field not in {"stage", "key"}}
    return found


@app.command()
def run(
    source: SourceOption = Source.SIMULATED,
    path: PathOption = None,
    mapping: MapOption = None,
    start: FromOption = None,
    end: ToOption = None,
    step_days: Annotated[int, typer.Option("--step-days", min=1, help="Days between two cycles, that is two trainings.")] = 7,
    warmup_days: Annotated[
        int | None, typer.Option("--warmup-days", min=1, help="Days before the first training; simulated: 56, else what training needs.")
    ] = None,
    batch_days: BatchOption = 7,
    seed: SeedOption = DEFAULT.seed,
    users: UsersOption = DEFAULT.users,
    items: ItemsOption = DEFAULT.items,
    events_per_day: RateOption = DEFAULT.events_per_day,
    faults: FaultOption = None,
    shifts: ShiftOption = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    home: HomeOption = None,
) -> None:
    """Run the whole loop through the Dags, cycle after cycle, and print what each one did."""
    from pipelines import run as running
    from pipelines import summary
    from pipelines.sources import normalising

    state = _home(home)
    request = Request(source=source, path=path, mapping=mapping, world=_world(seed, users, items, events_per_day, faults, shifts))
    simulated = source is Source.SIMULATED
    warmup = warmup_days if warmup_days is not None or not simulated else 56
    span = _span(state, request, start, end, default_days=(warmup or 0) + 7 if simulated else None)
    settings = config.resolve(state, str(source), {} if simulated else normalising.normalised(state, request).settings)
    planned = running.plan(request, span, settings, step_days=step_days, warmup_days=warmup, batch_days=batch_days)
    results = running.execute(state, planned, settings, out)
    if as_json:
        summary.write(state, results, as_json)
    summary.show(out, results)
    _further(state, results)


def _further(home: Home, results: list[dict[str, Any]]) -> None:
    """Print where to look further: files that are there, and commands that work as they are printed."""
    last = results[-1]["as_of"][:10] if results else ""
    files = {
        "figures": home.reports / "run.json",
        "Data Docs": home.reports / "gx" / "index.html",
        "drift report": home.reports / "evidently" / f"{last}.html",
    }
    usual = home.root == config.REPOSITORY / "var" == Home.from_environment().root
    here = "" if usual else f"RELOOP_HOME={shlex.quote(str(home.root))} "
    yaml = "" if usual else f"FEAST_FS_YAML_FILE_PATH={shlex.quote(str(home.feast / 'feature_store.yaml'))} "
    commands = {
        "once, in this shell": f"source {shlex.quote(str(Path(sys.prefix, 'bin', 'activate')))}",
        "releases": f"{here}reloop releases",
        "state": f"{here}reloop status",
        "Airflow and MLflow": f"{here}make up",
        "features": f"(cd feature_repo && {yaml}feast feature-views list)",
        "tables": f"(cd dbt && {here}dbt docs generate)",
    }
    for what, where in {**{what: file for what, file in files.items() if file.is_file()}, **commands}.items():
        out.print(f"  {what:<20} {where}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def ingest(
    source: SourceOption = Source.SIMULATED,
    path: PathOption = None,
    mapping: MapOption = None,
    start: FromOption = None,
    end: ToOption = None,
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
    """Read a source, judge its rows, and land what passes; the rest is in quarantine with its reasons."""
    from pipelines import lake
    from pipelines.sources import plan, reading
    from pipelines.validation import checkpoint

    state = _home(home)
    request = Request(source=source, path=path, mapping=mapping, world=_world(seed, users, items, events_per_day, faults, shifts))
    if start and end:
        Window.parse(start, end)  # refuses an end before the start by name
    windows = plan.windows(state, request, start=utc(start) if start else None, end=utc(end) if end else None, batch_days=batch_days)
    if not windows:
        days, asked = lake.days(state), f"{start or 'where the lake ends'}..{end or 'its end'}"
        held = f"{days[0]} to {days[-1]}" if days else "nothing"
        nothing = f"nothing: {source} has {plan.span(state, request)}, the lake holds {held}, and {asked} asks for no day beyond"
        _answer(as_json, "ingest", {"landed": nothing}, yes=False)
    landed: dict[str, Any] = {}
    for window in windows:
        batch = reading.stage_batch(state, request, window)
        checkpoint.validate_batch(state, window.end, batch)
        lake.land(state, window.end, batch)
        landed |= _stages(state, window.end, "ingest")
    _answer(as_json, "ingest", landed)


@app.command()
def validate(
    as_of: AsOfOption,
    source: SourceOption = Source.SIMULATED,
    path: PathOption = None,
    mapping: MapOption = None,
    days: Annotated[int, typer.Option("--days", min=1, help="Days before --as-of to judge.")] = 7,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Judge the days of a source before --as-of without landing anything: a dry run of ingest.

    What it refuses lies in quarantine/_dry_run/ of the state folder until the next dry run of the same days.
    """
    from pipelines.errors import ValidationBlocked
    from pipelines.sources import reading
    from pipelines.validation import checkpoint

    state = _home(home)
    moment = utc(as_of)
    request = Request(source=source, path=path, mapping=mapping)
    batch = reading.stage_batch(state, request, Window.ending(moment, days))
    try:
        checkpoint.validate_batch(state, moment, batch, dry_run=True)
        passed = True
    except ValidationBlocked as blocked:
        passed = False
        out.print(_escape(str(blocked)))
    _answer(as_json, "validation", _stages(state, moment, "dry_run"), yes=passed)


@app.command()
def features(
    as_of: AsOfOption,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Build and load nothing: compare what is served with what training sees, at the day loaded, which --as-of must not be after.",
        ),
    ] = False,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Entities of each view to compare.")] = 2000,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Build the feature marts up to --as-of, check them, load the online store, and compare it with what training sees."""
    from pipelines.features import build, parity, store
    from pipelines.validation import checkpoint

    state, moment = _home(home), utc(as_of)
    if not verify:
        build.build(state, moment)
        checkpoint.validate_features(state, moment)
        store.apply(state)
        store.materialize(state, moment)
    parity.check(state, moment, sample=sample)
    if verify:
        _answer(as_json, "parity", _stages(state, moment, "parity"))
        return
    _answer(as_json, "features", _stages(state, moment, "features", "feature_validation", "materialize", "parity"))


@app.command()
def train(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Train retrievers and ranker as of a day, evaluate them, and register the bundle as challenger."""
    from pipelines.ranking import judging, lambdarank, training_set
    from pipelines.registry import bundle
    from pipelines.retrieval import blend, fitting

    state, moment = _home(home), utc(as_of)
    for source in config.load(state).retrieval.sources:
        fitting.fit(state, moment, source)
    blend.blend(state, moment)
    training_set.build(state, moment)
    lambdarank.train(state, moment)
    judging.evaluate(state, moment)
    bundle.build(state, moment)
    _answer(as_json, "training", _stages(state, moment, "retrieval", "blend", "training_set", "ranker", "ranking", "bundle"))


@app.command()
def evaluate(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Evaluate the models trained as of a day on the week that they did not see."""
    from pipelines.ranking import judging

    state, moment = _home(home), utc(as_of)
    judging.evaluate(state, moment)
    _answer(as_json, "evaluation", _stages(state, moment, "ranking"))


@app.command()
def promote(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Put the challenger of a day before the gate. Exit code 1: the champion stays."""
    from pipelines.registry import promotion

    state, moment = _home(home), utc(as_of)
    promotion.decide(state, moment)
    record = _stages(state, moment, "gate")["gate"]
    _answer(as_json, "gate", record, yes=record["verdict"] == "promote")


@app.command()
def monitor(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Compare the features of a day with the champion's training reference. Exit code 1: they drifted."""
    from pipelines.monitoring import drift

    state, moment = _home(home), utc(as_of)
    drift.check(state, moment)
    record = _stages(state, moment, "drift")["drift"]
    _answer(as_json, "drift", record, yes=record["verdict"] != "drift")


@app.command()
def stream(
    bus: Annotated[
        str, typer.Option("--bus", envvar="RELOOP_BUS", help="The event bus: redis://HOST:PORT/DB or kafka://HOST:PORT.")
    ] = "redis://127.0.0.1:6379/0",
    topic: Annotated[str, typer.Option("--topic", help="Stream or topic of the events.")] = "events",
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
    from pipelines.streaming.bus import connect
    from pipelines.streaming.consumer import Consumer, Counts
    from pipelines.streaming.files import events

    state = _home(home)
    with closing(connect(bus, topic=topic, group=group, consumer=consumer)) as events_bus:
        if publish is not None:
            _answer(as_json, "stream", {"published": events_bus.publish(events(publish))})
            return
        with (
            closing(Consumer(state, events_bus)) as taking,
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
        _answer(as_json, "stream", taking.counts.record())


@app.command()
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

    shop = Shop(_world(seed, users, items, events_per_day, faults, shifts))
    window = Window.parse(start, end)
    tables = {"events": shop.raw_events(window), "items": shop.items(window), "users": shop.users(window)}
    for name, table in tables.items():
        publish.write_parquet(target / f"{name}.parquet", table)
        out.print(f"{table.num_rows:>12,} {name}", highlight=False)


@app.command()
def releases(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the ledger of decisions, newest last."""
    from pipelines.registry import releases as ledger

    entries = ledger.history(_home(home))
    if as_json:
        typer.echo(json.dumps(entries, indent=2, default=str))
        return
    grid = Table(title="Releases")
    for heading in ("as of", "decision", "before", "after", "reasons"):
        grid.add_column(heading, no_wrap=heading != "reasons")
    for entry in entries:
        grid.add_row(*ledger.line(entry))
    out.print(grid)


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option("--to", help="Version to return to; default: the previous champion.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Make an earlier release champion again: one pointer flip."""
    from pipelines.registry import releases as ledger

    _answer(as_json, "rollback", ledger.rollback(_home(home), to=to))


@app.command()
def status(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show how far every stage has come."""
    from pipelines import inspection

    _answer(as_json, "status", inspection.status(_home(home)))


@app.command()
def doctor(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Check the installation and the state folder; each line says what to do. Exit code 1: something is wrong."""
    from pipelines import inspection

    findings = list(inspection.examine(_home(home)))
    record = {finding.name: str(finding) for finding in findings}
    _answer(as_json, "doctor", record, yes=all(finding.ok for finding in findings))
