"""The verbs about what serves: the ledger of releases, reviews that wait for a person, and the way back."""

from __future__ import annotations

import getpass
import json
import os
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.cli.answers import answer, out
from pipelines.cli.options import HomeOption, JsonOption, home_at
from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.window import utc

releases = typer.Typer(help="Show the ledger of decisions, newest last.", invoke_without_command=True)
review = typer.Typer(help="Show what waits for a person's word, and answer it.", invoke_without_command=True)

FOREMOST = 4  # reasons of a decision that a list of decisions shows

AuthorOption = Annotated[str | None, typer.Option("--author", help="Who says so; default: the account that runs the command.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, in words; goes into the ledger.")]
VersionArgument = Annotated[str, typer.Argument(help="Model version, as the ledger and MLflow show it.")]


def who(author: str | None) -> str:
    """Return who says so: as named, else the account that runs the command."""
    return author or getpass.getuser()


def _moment(option: str, said: str | None) -> datetime | None:
    """Return the moment that an option says, None where it was not given; the error names the option."""
    try:
        return utc(said) if said else None
    except ReloopError as wrong:
        raise StateError(option, found=repr(said), allowed="an ISO 8601 date or time such as 2025-03-01 or 2025-03-01T00:00:00Z") from wrong


def _table(title: str, entries: list[dict[str, Any]]) -> None:
    from pipelines.registry import ledger

    if not entries:
        out.print(f"{title}: nothing")
        return
    grid = Table(title=title)
    for heading in ("as of", "decision", "before", "after", "reasons"):
        grid.add_column(heading, no_wrap=heading != "reasons")
    for entry in entries:
        *columns, reasons = ledger.line(entry)
        grid.add_row(*map(escape, columns), escape(_foremost(reasons.splitlines(), entry)))
    out.print(grid)


def _foremost(reasons: list[str], entry: dict[str, Any]) -> str:
    """Return the reasons that come first, for they decide, and where the others are."""
    if len(reasons) <= FOREMOST + 1:
        return "\n".join(reasons)
    about = entry.get("challenger") or entry.get("version")
    return "\n".join([*reasons[:FOREMOST], f"and {len(reasons) - FOREMOST} more: reloop releases show {about}"])


@releases.callback()
def ledger_of_releases(
    context: typer.Context,
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Only decisions of this kind; may be repeated.")] = None,
    version: Annotated[str | None, typer.Option("--version", help="Only what is about this model version.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Only what was recorded at this moment or later.")] = None,
    as_of: Annotated[str | None, typer.Option("--as-of", help="Only the cycle of this moment.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The newest so many.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Check chain and anchors instead. Exit code 2: something was changed.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Show the ledger of decisions, newest last."""
    if context.invoked_subcommand is not None:
        return
    from pipelines.registry import ledger

    state = home_at(home)
    if strangers := sorted(set(kind or ()) - set(ledger.KINDS)):
        raise StateError("--kind", found=", ".join(strangers), allowed=", ".join(ledger.KINDS))
    if verify:
        answer(as_json, "ledger", _verified(state))
        return
    entries = ledger.query(
        state, kinds=kind or (), version=version, since=_moment("--since", since), as_of=_moment("--as-of", as_of), limit=limit
    )
    if as_json:
        typer.echo(json.dumps(entries, indent=2, default=str))
        return
    _table("Releases", entries)


def _verified(home: Home) -> dict[str, Any]:
    """Check the ledger against every anchor that can be reached."""
    from pipelines.registry import ledger

    entries, known = ledger.verify(home), ledger.anchor(home)
    found = {"entries": entries, "anchor": "none" if known is None else f"entry {known.seq}, as in {ledger.anchor_file(home)}"}
    try:
        outside = briefly(home, "anchored")
    except Exception as gone:  # noqa: BLE001 - MLflow raises its own errors and those of its driver
        return {**found, "MLflow": f"not asked: {type(gone).__name__}"}
    ledger.verify(home, [] if outside is None else [outside])
    return {**found, "MLflow": "no anchor yet" if outside is None else f"entry {outside.seq}, as in the registered model's tags"}


def briefly(home: Home, what: str) -> Any:
    """Ask MLflow for something without waiting for a server that is down."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    from pipelines.registry import projection

    if not projection.listens(home):
        raise ConnectionError("nobody listens")
    return getattr(projection, what)(home)


@releases.command()
def show(version: VersionArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show all that was decided about one version, in full."""
    from pipelines.registry import ledger

    state = home_at(home)
    entries = ledger.query(state, version=version)
    if not entries:
        known = sorted({int(found) for entry in ledger.history(state) for found in ledger.versions(entry)})
        raise StateError(
            f"version {version}", found="not in the ledger", allowed=f"one of the versions {known}" if known else "a decision first"
        )
    if as_json:
        typer.echo(json.dumps(entries, indent=2, default=str))
        return
    for entry in entries:
        said = {name: value for name, value in entry.items() if name not in {"hash", "baseline"} and value is not None}
        answer(as_json, f"{entry['seq']}: {entry['kind']}", said)


@releases.command()
def sync(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Honour what was set by hand in MLflow, and tell MLflow what it lost or has not heard yet."""
    from pipelines.registry import reconcile

    state = home_at(home)
    done = reconcile.reconcile(state)
    from pipelines.registry import releases as pointers

    answer(as_json, "sync", {"done": done or ["nothing was set by hand"], "champion": pointers.pointer(state).version})


@releases.command()
def recover(reason: ReasonOption, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Let a ledger stand that is older than its anchor: a backup was restored, and nothing newer is left."""
    from pipelines.registry import ledger

    answer(as_json, "ledger", ledger.recover(home_at(home), reason=reason, author=who(author)))


def rollback(
    to: Annotated[
        str | None, typer.Option("--to", help="Version to return to; default: the newest before that nobody rolled back from.")
    ] = None,
    reason: ReasonOption = "asked for",
    author: AuthorOption = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Make an earlier release champion again: one pointer flip. Needs no MLflow, Airflow or Redis."""
    from pipelines.registry import rollback as back

    state = home_at(home)
    record = back.roll_back(state, to, reason=reason, author=who(author))
    answer(as_json, "rollback", record)
    try:
        briefly(state, "sync")
    except Exception as gone:  # noqa: BLE001 - the release has moved; MLflow only shows it
        typer.echo(f"MLflow was not told ({type(gone).__name__}); the next cycle or `reloop releases sync` does", err=True)


@review.callback()
def open_reviews(context: typer.Context, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show what waits for a person's word: the challenger, and what the gate measured."""
    if context.invoked_subcommand is not None:
        return
    from pipelines import config
    from pipelines.registry import review as reviews

    state = home_at(home)
    reviews.expire(state, config.load(state).release)
    entries = reviews.waiting(state)
    if as_json:
        typer.echo(json.dumps(entries, indent=2, default=str))
        return
    _table("Waiting for review", entries)
    for entry in entries:
        out.print(f"  reloop review approve {entry['challenger']} --reason ...", highlight=False, markup=False)


def _answer(home: Home, version: str, author: str | None, reason: str, *, approved: bool, as_json: bool) -> None:
    from pipelines.registry import promotion

    decision = promotion.answer(home, version, approved=approved, author=who(author), words=reason)
    record = {name: value for name, value in decision.items() if name != "figures"}
    answer(as_json, "review", record, yes=not approved or decision["outcome"] in {"promoted", "canary", "shadow"})


@review.command()
def approve(
    version: VersionArgument, reason: ReasonOption, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None
) -> None:
    """Let a challenger serve that waits. Exit code 1: the champion has changed since, so it was judged again."""
    _answer(home_at(home), version, author, reason, approved=True, as_json=as_json)


@review.command()
def reject(
    version: VersionArgument, reason: ReasonOption, author: AuthorOption = None, as_json: JsonOption = False, home: HomeOption = None
) -> None:
    """Keep the champion instead of a challenger that waits."""
    _answer(home_at(home), version, author, reason, approved=False, as_json=as_json)
