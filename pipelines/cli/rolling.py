"""The verbs of a rollout: what runs and how it fares, begin one, go on, let all have it, or end it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from pipelines.cli.answers import answer, out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.cli.releasing import AuthorOption, ReasonOption, VersionArgument, briefly, who
from pipelines.config import Home
from pipelines.decision_policies import Way
from pipelines.errors import StateError

rollout = typer.Typer(help="Show the rollout that runs, and how it fares.", invoke_without_command=True)

WayOption = Annotated[Way, typer.Option("--way", help="shadow-then-canary, canary, blue-green.")]
ShareOption = Annotated[
    float | None, typer.Option("--share", min=0, max=1, help="Of the users; default: the next of serving.rollout.shares.")
]


@rollout.callback()
def status(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show the rollout that runs, what each process of the service holds, and what was counted of both releases."""
    if context.invoked_subcommand is not None:
        return
    import time

    from pipelines.registry import rollouts
    from pipelines.serving import clicks, guard, holder, tally

    state = home_at(home)
    now, held = rollouts.current(state), holder.workers(state)
    found: dict[str, Any] = {"rollout": "none", "processes": held}
    if now is not None:
        moment = time.perf_counter()
        sides = {"challenger": now.version, "champion": now.baseline.version or 0}
        counted = {side: guard.said_of(tally.between(state, version, moment - 1800, moment)) for side, version in sides.items()}
        said = {
            "kind": now.kind,
            "share": now.share,
            "version": now.version,
            "champion": now.baseline.version,
            "since": now.began_at.isoformat(),
        }
        acted = zip(sides, clicks.of(state, now), strict=True)
        found |= {"clicks": {side: dict(zip(("answers", "clicked"), map(int, sums.sum(axis=0)), strict=True)) for side, sums in acted}}
        found |= {"rollout": said | {"author": now.author, "reasons": list(now.reasons)}, "last half hour": counted}
        report = state.reports / "serving" / "shadow" / f"{now.version}.json"
        if report.is_file():
            found["shadow"] = json.loads(report.read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    answer(as_json, "rollout", {name: value for name, value in found.items() if name != "processes"})
    grid = Table(title="Processes")
    for heading in ("process", "champion", "previous", "challenger", "share", "trouble"):
        grid.add_column(heading)
    for pid, one in held.items():
        names = [str((one[name] or {}).get("version", "-")) for name in ("champion", "previous", "challenger")]
        grid.add_row(str(pid), *names, f"{one['share']:.0%}", "; ".join([one["trouble"], *one["refused"].values()]).strip("; "))
    out.print(grid)


@rollout.command()
def begin(
    version: VersionArgument,
    reason: ReasonOption,
    way: WayOption = "canary",
    share: ShareOption = None,
    author: AuthorOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Begin to roll a version out against the champion. It is rehearsed first."""
    from pipelines import config
    from pipelines.registry import bundle, lineage, promotion, releases, rollouts

    state = home_at(home)
    known = {str(number): digest for number, digest in lineage.versions(state).items()}
    if version not in known:
        raise StateError(f"version {version}", found="no bundle of it", allowed=f"one of the versions {sorted(map(int, known))}")
    first = rollouts.first(way, config.load(state).serving.rollout.shares)
    if first is None:
        raise StateError("--way", found=way, allowed="shadow-then-canary, canary, blue-green", hint="`reloop promote` releases directly")
    promotion.sound(state, known[version])
    now = releases.pointer(state)
    kind, begun = first
    body = {"reasons": [reason], "author": who(author)}
    key = f"by hand/{version}/{now.fence}/{_entries(state)}"
    found = rollouts.begin(
        state, now, key=key, kind=kind, share=begun if share is None else share, version=int(version), digest=known[version],
        as_of=bundle.facts(state, known[version])["as_of"], body=body,
    )  # fmt: skip
    answer(as_json, "rollout", {"kind": found.kind, "share": found.share, "version": found.version, "champion": now.version})


def _entries(home: Home) -> int:
    from pipelines.registry import ledger

    newest = ledger.newest(home)
    return 0 if newest is None else newest.seq


def _running(home: Home) -> Any:
    from pipelines.registry import rollouts

    now = rollouts.current(home)
    if now is None:
        raise StateError(
            "rollout", found="none that runs", allowed="one that was begun", hint="`reloop rollout begin VERSION --reason ...`"
        )
    return now


@rollout.command()
def step(
    reason: ReasonOption, share: ShareOption = None, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None
) -> None:
    """Go on to the next share of users, or to one that is named. Exit code 1: somebody has gone on meanwhile."""
    from pipelines import config
    from pipelines.registry import ledger, rollouts

    state = home_at(home)
    now = _running(state)
    shares = config.load(state).serving.rollout.shares
    wanted = share if share is not None else next((one for one in shares if one > now.share), shares[-1])
    done = rollouts.step(state, now, kind=ledger.CANARY, share=wanted, reasons=[reason], author=who(author), figures={})
    answer(as_json, "rollout", {"version": now.version, "share": wanted, "done": done}, yes=done)


@rollout.command()
def promote(reason: ReasonOption, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Let the challenger answer all users: the pointer flips. Exit code 1: the rollout was over already."""
    from pipelines.registry import rollouts

    state = home_at(home)
    now = _running(state)
    done = rollouts.promote(state, now, reasons=[reason], author=who(author), figures={})
    answer(as_json, "rollout", {"version": now.version, "champion": now.version if done else now.baseline.version, "done": done}, yes=done)
    try:
        briefly(state, "sync")
    except Exception as gone:  # noqa: BLE001 - the release has moved; MLflow only shows it
        typer.echo(f"MLflow was not told ({type(gone).__name__}); the next cycle or `reloop releases sync` does", err=True)


@rollout.command()
def end(reason: ReasonOption, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Let the champion answer all users again. Exit code 1: the rollout was over already."""
    from pipelines.registry import rollouts

    state = home_at(home)
    now = _running(state)
    done = rollouts.end(state, now, reasons=[reason], author=who(author), figures={})
    answer(as_json, "rollout", {"version": now.version, "champion": now.baseline.version, "done": done}, yes=done)
