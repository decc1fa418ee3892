"""Tasks that more than one Dag wires: reading to landing, and building to serving features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from airflow.sdk import Metadata, Param, get_current_context, task
from reloop_assets import features, lake
from reloop_defaults import DUCKDB, as_of_param, current_as_of, moment, proceed

PLACE = r"^[^\u0000-\u001f\{\}$`;\|&<>*?]+$"  # also valid where a browser checks it
SWITCH = r"^[a-z][a-z0-9_]*@\d{4}-\d{2}-\d{2}$"


def source_params() -> dict[str, Param]:
    """Return the Params that say what to read. Their defaults are those of `pipelines.sources.request` (a test holds them equal)."""
    return {
        "source": Param(
            "simulated",
            type="string",
            enum=["simulated", "online-retail", "movielens", "retailrocket", "table"],
            title="Source",
            description_md="Where events come from. `table` reads any CSV or Parquet with a mapping file.",
        ),
        "path": _place("Path", "File or folder of the source, on the machine that runs the task. Empty for the simulated shop."),
        "mapping": _place("Mapping", "YAML file that maps the columns of `table` onto the canonical tables."),
        "from": moment("From", "First moment to read. Empty: where the lake ends, else the first of the source."),
        "to": moment("To", "Moment to stop before. Empty: the next week of the simulated shop, else the end of the source."),
        "as_of": as_of_param(),
        "batch_days": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=366,
            title="Days a batch",
            description_md="Days that are read and judged together. Empty: a week.",
        ),
        "seed": _count("Seed", 7, 0, 2**31 - 1, "Seed of the simulated shop: the same seed gives the same bytes."),
        "users": _count("Users", 20_000, 1, 50_000_000, "Users of the simulated shop."),
        "items": _count("Items", 5_000, 1, 10_000_000, "Items of the simulated shop."),
        "events_per_day": _count("Events a day", 16_000, 1, 100_000_000, "Events a day of the simulated shop."),
        "faults": _switches("Faults", "Faults to inject into the simulated shop, each `name@YYYY-MM-DD`."),
        "shifts": _switches("Shifts", "Shifts of the simulated world, each `name@YYYY-MM-DD`."),
    }


def _place(title: str, description: str) -> Param:
    return Param(None, type=["null", "string"], pattern=PLACE, maxLength=1024, title=title, description_md=description)


def _count(title: str, default: int, least: int, most: int, description: str) -> Param:
    return Param(default, type="integer", minimum=least, maximum=most, title=title, description_md=description)


def _switches(title: str, description: str) -> Param:
    items = {"type": "string", "pattern": SWITCH}
    return Param([], type=["null", "array"], items=items, maxItems=32, title=title, description_md=description)


def asked() -> Any:
    """Return the filled-in form of this run (`pipelines.sources.form.Form`)."""
    from pipelines.sources.form import Form

    return Form.parse(get_current_context()["params"])


@task
def plan() -> list[list[str]]:
    """Take what the event bus brought, and cut what was asked into windows, oldest first."""
    from pipelines.config import Home
    from pipelines.streaming import collecting

    collecting.collect(Home.from_environment())
    windows = asked().windows(Home.from_environment())
    proceed(bool(windows), ["the source has nothing that the lake does not hold yet"])
    return [[window.start.isoformat(), window.end.isoformat()] for window in windows]


@task
def settle(windows: list[list[str]]) -> str:
    """Settle the as_of that every later task of the run is handed; what an earlier run read for it is read anew."""
    from pipelines import cycle
    from pipelines.config import Home
    from pipelines.window import Window

    as_of = asked().settled([Window.parse(*window) for window in windows])
    cycle.forget(Home.from_environment(), as_of, "validation", "ingest")
    return as_of.isoformat()


@task
def latest(windows: list[list[str]]) -> str:
    """Settle the as_of of a backfill: a past range changes later days too, up to where the lake ends."""
    from pipelines.window import utc

    return max(current_as_of(), utc(windows[-1][1])).isoformat()


@task(map_index_template="{{ task.op_kwargs['window'] | map('truncate', 10, true, '') | join(' .. ') }}")
def read(window: list[str]) -> str:
    """Stage one window of the source, and what the event bus brought in it. Hands on the batch id."""
    from pipelines.config import Home
    from pipelines.sources import reading
    from pipelines.window import Window

    return reading.stage_batch(Home.from_environment(), asked().request(), Window.parse(*window))


@task(pool=DUCKDB, map_index_template="{{ task.op_kwargs['batch'] }}")
def validate(batch: str, as_of: str) -> str:
    """Judge one batch: rows to quarantine, or the whole batch blocked."""
    from pipelines.config import Home
    from pipelines.validation import checkpoint
    from pipelines.window import utc

    checkpoint.validate_batch(Home.from_environment(), utc(as_of), batch)
    return batch


@task(pool=DUCKDB, outlets=[lake])
def land(batches: list[str], as_of: str) -> Iterator[Metadata]:
    """Land every batch; nothing lands before all have been judged."""
    _land(batches, as_of)
    yield Metadata(lake, {"as_of": as_of, "batches": len(batches)})


@task(pool=DUCKDB, trigger_rule="none_failed")
def impressions(as_of: str | None) -> None:
    """Land what the service has shown since the last time: judged like any table, beside the events; also where the source has nothing new."""
    from pipelines.config import Home
    from pipelines.serving import collecting
    from pipelines.window import utc

    collecting.collect(Home.from_environment(), utc(as_of) if as_of else current_as_of())


@task(pool=DUCKDB)
def land_again(batches: list[str], as_of: str) -> None:
    """Land every batch without telling anybody: the backfill announces the features it rebuilds instead."""
    _land(batches, as_of)


def _land(batches: Iterable[str], as_of: str) -> None:
    from pipelines import lake as lakehouse
    from pipelines.config import Home
    from pipelines.window import utc

    for batch in batches:
        lakehouse.land(Home.from_environment(), utc(as_of), batch)


@task(pool=DUCKDB)
def build(as_of: str) -> None:
    """Compute the marts of every day that has become known or has changed (dbt, one process)."""
    from pipelines.config import Home
    from pipelines.features import build as marts
    from pipelines.window import utc

    marts.build(Home.from_environment(), utc(as_of))


@task
def validate_features(as_of: str) -> None:
    """Check the marts of the day before anybody may use them."""
    from pipelines.config import Home
    from pipelines.validation import checkpoint
    from pipelines.window import utc

    checkpoint.validate_features(Home.from_environment(), utc(as_of))


@task
def feast_apply() -> None:
    """Bring the Feast registry up to the declarations in feature_repo/."""
    from pipelines.config import Home
    from pipelines.features import store

    store.apply(Home.from_environment())


@task
def materialize(as_of: str) -> None:
    """Load the day into the online store."""
    from pipelines.config import Home
    from pipelines.features import store
    from pipelines.window import utc

    store.materialize(Home.from_environment(), utc(as_of))


@task(outlets=[features])
def check_parity(as_of: str) -> Iterator[Metadata]:
    """Hold the online store against the point-in-time join before anybody is told of new features."""
    from pipelines.config import Home
    from pipelines.features import parity
    from pipelines.window import utc

    parity.check(Home.from_environment(), utc(as_of))
    yield Metadata(features, {"as_of": as_of})
