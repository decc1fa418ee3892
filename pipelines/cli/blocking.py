"""`reloop block`, `unblock`, `blocked`: items that must not be shown, whatever recommends them."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipelines.cli.answers import answer, out
from pipelines.cli.options import HomeOption, JsonOption, home_at

ItemsArgument = Annotated[list[str], typer.Argument(help="Item ids.", metavar="ITEM...")]


def block(
    items: ItemsArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Take items out of every list within seconds: every rung, cache, release, experiment arm and precomputed list."""
    from pipelines.serving import blocked as takedowns

    state = home_at(home)
    newly = takedowns.block(state, items, reason)
    answer(as_json, "block", {"items": items, "newly blocked": newly, "reason": reason, "blocked now": len(takedowns.standing(state))})


def unblock(
    items: ItemsArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Let items be shown again."""
    from pipelines.serving import blocked as takedowns

    state = home_at(home)
    back = takedowns.unblock(state, items, reason)
    answer(as_json, "unblock", {"items": items, "unblocked": back, "blocked now": len(takedowns.standing(state))})


def blocked(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Show what is blocked, since when and why."""
    from pipelines.serving import blocked as takedowns

    rows = takedowns.standing(home_at(home))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    grid = Table("item", "since", "reason", title=f"{len(rows)} blocked items")
    for row in rows:
        grid.add_row(escape(row["item_id"]), row["decided_at"], escape(row["reason"]))
    out.print(grid)
