"""`reloop experiment`: what is declared, who is in which arm, what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.table import Table

from pipelines.cli.answers import NO, answer, out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.errors import StateError
from pipelines.window import utc

app = typer.Typer(help="Experiments: what is declared, who is in which arm, what they say.", no_args_is_help=True)


@app.command("list")
def listed(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the experiments that experiments.toml declares."""
    from pipelines.serving import assignment

    declared = assignment.load(home_at(home)).declared
    if as_json:
        typer.echo(json.dumps({name: one.model_dump(mode="json") for name, one in declared.items()}, indent=2))
        return
    table = Table("experiment", "layer", "slice", "arms", "from", "to", "primary", "guardrails")
    for name, one in declared.items():
        whole = sum(arm.weight for arm in one.arms.values())
        arms = ", ".join(f"{arm} {kind.weight / whole:.0%}" for arm, kind in one.arms.items())
        guarded = ", ".join(f"{metric} -{margin:.1%}" for metric, margin in one.guardrails.items())
        span = f"{one.slice[0]:.0%} to {one.slice[1]:.0%}"
        begin, end = (f"{moment:%Y-%m-%d}" if moment else "-" for moment in (one.start, one.end))
        table.add_row(name, one.layer, span, arms, begin, end, one.primary, guarded)
    out.print(table)


@app.command()
def assign(
    unit_id: Annotated[str, typer.Argument(help="Id of a user, or of a request.")],
    at: Annotated[str, typer.Option("--at", help="Moment of the request, ISO 8601.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show which arms a unit is in."""
    from pipelines.serving import assignment

    found = assignment.load(home_at(home)).assign({"user": unit_id, "request": unit_id}, utc(at))
    answer(as_json, unit_id, {"variant": assignment.label(found), **{one.experiment: one.arm for one in found}})


@app.command()
def analyse(
    name: Annotated[str, typer.Argument(help="The experiment, as declared.")],
    start: Annotated[str | None, typer.Option("--from", help="First day to read; default: as declared.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Day after the last; default: as declared.")] = None,
    exposed: Annotated[
        str, typer.Option("--exposed", help="What is an exposure: `answered`, every answer; `seen`, places that came into view.")
    ] = "answered",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what an experiment shows: sample ratio first, then effects with intervals; exit code 1 where no arm is better."""
    from pipelines.serving import assignment, readout

    state = home_at(home)
    experiment = readout.named(assignment.load(state), name)
    window = readout.window_of(experiment, utc(start) if start else None, utc(end) if end else None)
    if exposed not in get_args(readout.Exposed):
        raise StateError("--exposed", found=exposed, allowed="answered, seen")
    reading = readout.read(state, name, experiment, window, exposed=cast("readout.Exposed", exposed))
    record = {"experiment": name, "exposed": exposed, **reading.record()}
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        _show(name, record)
    read = reading.readout
    if "blocked" in read.verdicts.values() or not (read.better or any(found.winner for found in reading.preferences.values())):
        raise typer.Exit(NO)


@app.command("off-policy")
def off_policy(
    start: Annotated[str, typer.Option("--from", help="First day to read.")],
    end: Annotated[str, typer.Option("--to", help="Day after the last.")],
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="Parquet or CSV: request_id, rank, item_id, probability; default: the same lists without exploration."
        ),
    ] = None,
    surface: Annotated[str, typer.Option("--surface", help="Where it was shown.")] = "home",
    reward: Annotated[str, typer.Option("--reward", help="clicks, purchases or revenue, of a place.")] = "clicks",
    clip: Annotated[float | None, typer.Option("--clip", min=1, help="The largest weight that is believed.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say what another policy would have earned, by logged propensities; exit code 1 where the log says nothing of it."""
    from pipelines.serving import valuing
    from pipelines.window import Window

    found = valuing.read(home_at(home), Window(utc(start), utc(end)), policy=policy, surface=surface, reward=reward, clip=clip)
    record, valuation = found.record(), found.valuation
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        table = Table("estimate", f"{reward} a place", "95% interval")
        for name in ("logged", "ips", "snips", "dr"):
            one = getattr(valuation, name)
            table.add_row(
                name,
                *(
                    ["refused", "-"]
                    if one is None or (valuation.refused and name != "logged")
                    else [f"{one.value:.5g}", f"{one.lower:.4g} .. {one.upper:.4g}"]
                ),
            )
        out.print(table)
        weights = f"effective sample size {valuation.effective:,.0f} of {valuation.n:,} rows, mean weight {valuation.mean_weight:.3f}, "
        out.print(f"  {weights}largest {valuation.largest:.2%} of all, {valuation.clipped:.2%} cut", highlight=False, soft_wrap=True)
        for reason, count in found.left_out.items():
            out.print(f"  left out: {count:,} rows: {reason}", highlight=False)
        for reason in valuation.refused:
            out.print(f"  refused: {reason}", highlight=False, soft_wrap=True)
    if valuation.refused:
        raise typer.Exit(NO)


def _show(name: str, record: dict[str, object]) -> None:
    """Print a reading as tables."""
    found = json.loads(json.dumps(record))
    counts = ", ".join(f"{count:,}" for count in found["srm"]["counts"])
    out.print(f"{name}: {counts} units by arm, sample ratio p {found['srm']['p']}; {found['crossed']} crossed", highlight=False)
    table = Table("arm", "metric", "control", "arm's", "difference", "one look", "any look", "p, any look", "relative")

    def number(value: float | None, form: str = ".4g") -> str:
        return "-" if value is None else f"{value:{form}}"

    def span(row: dict[str, float | None], low: str, high: str) -> str:
        return f"{number(row[low], '+.3g')} .. {number(row[high], '+.3g')}"

    for row in found["effects"]:
        table.add_row(
            row["arm"], row["metric"], number(row["control"]), number(row["treatment"]), number(row["difference"], "+.3g"),
            span(row, "lower", "upper"), span(row, "always_lower", "always_upper"), number(row["always_p"], ".3g"), number(row["relative"], "+.1%"),
        )  # fmt: skip
    out.print(table)
    for arm, one in found["interleaving"].items():
        out.print(f"  {arm}: {one['wins']} users for a, b, neither; {one['reasons'][0]}", highlight=False)
    for arm, verdict in found["verdicts"].items():
        out.print(f"  {arm:<20} {verdict}", highlight=False)
    for reason in found["reasons"]:
        out.print(f"    {reason}", highlight=False, soft_wrap=True, markup=False)
