"""The verbs that are stages of the loop, in its order, and `run`, which is all of them."""

from __future__ import annotations

import secrets
import shlex
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipelines import config
from pipelines.cli.answers import answer, out, records_of
from pipelines.cli.options import (
    DEFAULT,
    AsOfOption,
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
from pipelines.config import Home, Settings
from pipelines.sources.request import Request, Source
from pipelines.window import Window, stamp, utc

if TYPE_CHECKING:
    from pipelines.run import Plan  # Airflow's neighbours behind it take seconds to import


def span_of(home: Home, request: Request, start: str | None, end: str | None, default_days: int | None = None) -> Window:
    """Return the window asked for, its open ends filled from the source."""
    from pipelines.sources import plan

    whole = plan.span(home, request)
    first = utc(start) if start else whole.start
    if end:
        return Window(first, utc(end))
    return Window(first, first + timedelta(days=default_days)) if default_days else Window(first, whole.end)


def planned(
    home: Home,
    request: Request,
    start: str | None,
    end: str | None,
    *,
    step_days: int,
    warmup_days: int | None,
    batch_days: int,
    more_days: int,
) -> tuple[Plan, Settings]:
    """Return the cycles that were asked for and the settings they run under, checked before anything is read.

    Args:
        more_days: after the warm-up, of a simulated shop whose end is left open.

    Raises:
        StateError: a source, a knob, or what the gate holds a model against is unknown.
    """
    from pipelines import run as running
    from pipelines.ranking import rankers
    from pipelines.registry import gate_incumbents
    from pipelines.retrieval import lineup
    from pipelines.sources import normalising

    simulated = request.source is Source.SIMULATED
    warmup = warmup_days if warmup_days is not None or not simulated else 56
    span = span_of(home, request, start, end, default_days=(warmup or 0) + more_days if simulated else None)
    settings = config.resolve(home, str(request.source), {} if simulated else normalising.normalised(home, request).settings)
    rankers.chosen(settings.ranking)
    gate_incumbents.check(settings.gate, settings.retrieval.sources)
    lineup.chosen(settings.retrieval)
    return running.plan(request, span, settings, step_days=step_days, warmup_days=warmup, batch_days=batch_days), settings


def run(
    source: SourceOption = Source.SIMULATED,
    path: PathOption = None,
    mapping: MapOption = None,
    start: FromOption = None,
    end: ToOption = None,
    step_days: Annotated[int, typer.Option("--step-days", min=1, help="Days between two cycles, that is two trainings.")] = 7,
    warmup_days: WarmupOption = None,
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

    state = home_at(home)
    request = Request(source=source, path=path, mapping=mapping, world=world_of(seed, users, items, events_per_day, faults, shifts))
    asked, settings = planned(state, request, start, end, step_days=step_days, warmup_days=warmup_days, batch_days=batch_days, more_days=7)
    results = running.execute(state, asked, settings, out)
    if as_json:
        summary.write(state, results, as_json)
    summary.show(out, results)
    further(state, results)


def further(home: Home, results: list[dict[str, Any]]) -> None:
    """Print where to look further: files that are there, and commands that work as they are printed."""
    last = stamp(utc(results[-1]["as_of"])) if results else ""
    files = {
        "report": home.reports / "index.html",
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
        "recommendations": f"{here}reloop serve --now data",
        "state": f"{here}reloop status",
        "Airflow and MLflow": f"{here}make up",
        "features": f"(cd feature_repo && {yaml}feast feature-views list)",
        "tables": f"(cd dbt && {here}dbt docs generate)",
    }
    for what, where in {**{what: file for what, file in files.items() if file.is_file()}, **commands}.items():
        out.print(f"  {what:<20} {where}", highlight=False, soft_wrap=True, markup=False)


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
    from pipelines.streaming import collecting
    from pipelines.validation import checkpoint

    state = home_at(home)
    request = Request(source=source, path=path, mapping=mapping, world=world_of(seed, users, items, events_per_day, faults, shifts))
    if start and end:
        Window.parse(start, end)  # refuses an end before the start by name
    collecting.collect(state)
    windows = plan.windows(state, request, start=utc(start) if start else None, end=utc(end) if end else None, batch_days=batch_days)
    if not windows:
        days, asked = lake.days(state), f"{start or 'where the lake ends'}..{end or 'its end'}"
        held = f"{days[0]} to {days[-1]}" if days else "nothing"
        nothing = f"nothing: {source} has {plan.span(state, request)}, the lake holds {held}, and {asked} asks for no day beyond"
        answer(as_json, "ingest", {"landed": nothing}, yes=False)
    landed: dict[str, Any] = {}
    for window in windows:
        batch = reading.stage_batch(state, request, window)
        checkpoint.validate_batch(state, window.end, batch)
        lake.land(state, window.end, batch)
        landed |= records_of(state, window.end, "ingest")
    answer(as_json, "ingest", landed)


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

    state = home_at(home)
    moment = utc(as_of)
    request = Request(source=source, path=path, mapping=mapping)
    batch = reading.stage_batch(state, request, Window.ending(moment, days))
    try:
        checkpoint.validate_batch(state, moment, batch, dry_run=True)
        passed = True
    except ValidationBlocked as blocked:
        passed = False
        out.print(escape(str(blocked)))
    answer(as_json, "validation", records_of(state, moment, "dry_run"), yes=passed)


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

    state, moment = home_at(home), utc(as_of)
    if not verify:
        build.build(state, moment)
        checkpoint.validate_features(state, moment)
        store.apply(state)
        store.materialize(state, moment)
    parity.check(state, moment, sample=sample)
    if verify:
        answer(as_json, "parity", records_of(state, moment, "parity"))
        return
    answer(as_json, "features", records_of(state, moment, "features", "feature_validation", "materialize", "parity"))


def train(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Train retrievers and ranker as of a day, evaluate them, and register the bundle as challenger; due or not."""
    from pipelines.monitoring import retraining, triggers
    from pipelines.ranking import rankers
    from pipelines.registry import gate_incumbents

    state, moment = home_at(home), utc(as_of)
    rankers.chosen(config.load(state).ranking)
    gate_incumbents.check(config.load(state).gate, config.load(state).retrieval.sources)
    trigger = triggers.decide(state, moment, "by hand: `reloop train`")
    if not trigger.due:
        typer.echo(f"trained all the same, though {trigger.reasons[0]}", err=True)
    retraining.train(state, moment)
    answer(
        as_json, "training", records_of(state, moment, "retrieval", "blend", "attribution", "training_set", "ranker", "ranking", "bundle")
    )


def evaluate(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Evaluate the models trained as of a day on the week that they did not see."""
    from pipelines.ranking import judging

    state, moment = home_at(home), utc(as_of)
    judging.evaluate(state, moment)
    answer(as_json, "evaluation", records_of(state, moment, "ranking"))


def promote(
    as_of: AsOfOption,
    again: Annotated[
        bool, typer.Option("--again", help="Judge anew what was decided before: after a rollback, or a change of policy.")
    ] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Put the challenger of a day before the gate. Exit code 1: the champion stays."""
    from pipelines.registry import promotion

    state, moment = home_at(home), utc(as_of)
    promotion.decide(state, moment, again=secrets.token_hex(6) if again else None)
    record = records_of(state, moment, "gate")["gate"]
    answer(as_json, "gate", record, yes=record["outcome"] == "promoted")


def monitor(as_of: AsOfOption, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Hold a day against what the champion learnt from, and say what to do: nothing, retrain, rebuild, or block. Exit code 1: something."""
    from pipelines.monitoring import triage

    state, moment = home_at(home), utc(as_of)
    found = triage.check(state, moment)
    answer(as_json, "monitor", records_of(state, moment, "triage", "drift", "quality"), yes=found.action == "nothing")
