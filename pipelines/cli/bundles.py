"""The verbs about what is released as a thing on disk: where it comes from, whether it is sound, what is kept of old ones."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipelines.cli.answers import answer
from pipelines.cli.options import HomeOption, JsonOption, home_at

bundle = typer.Typer(help="Check, sign and rehearse bundles.", no_args_is_help=True)

WhatArgument = Annotated[
    str, typer.Argument(help="`champion`, `previous`, a model version, or the digest of a bundle (seven digits or more).")
]


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be taken, and take nothing.")] = False,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Take away old bundles, their copies in MLflow and old training runs; never what serves, served last, or waits for a word."""
    from pipelines.registry import retention

    found = retention.collect(home_at(home), dry_run=dry_run)
    answer(as_json, "gc", found if as_json else retention.say(found))


def lineage(what: WhatArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show where a release comes from: decisions, bundle, training run, data, code. Exit code 1: something it stands on was changed."""
    from pipelines.registry import lineage as tracing

    found = tracing.trace(home_at(home), what)
    states = [one["now"] for one in (*found["run"]["trained_on"].values(), *found["data"]["partitions"].values())]
    answer(as_json, "lineage", found if as_json else tracing.say(found), yes="changed" not in states)


@bundle.command()
def check(what: WhatArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Check every byte, the signature and the libraries of a bundle, and load it in a process of its own."""
    from pipelines.registry import bundle as bundles
    from pipelines.registry import lineage as tracing

    state = home_at(home)
    version, digest = tracing.resolve(state, what)
    found = bundles.rehearse(state, digest)
    bundles.load(state, digest)
    answer(as_json, "bundle", {"version": version, "digest": digest, "sound": True, **found})


@bundle.command()
def sign(what: WhatArgument, as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Vouch for a bundle that came from elsewhere, or from before there were signatures: sign it with this environment's key."""
    from pipelines.registry import bundle_folder, signing
    from pipelines.registry import lineage as tracing

    state = home_at(home)
    version, digest = tracing.resolve(state, what)
    path = bundle_folder.folder(state, digest)
    signing.vouch(state, path, digest)
    bundle_folder.checked(state, digest)
    record: dict[str, Any] = {"version": version, "digest": digest, "environment": signing.environment(), "signed": True}
    answer(as_json, "bundle", record)
