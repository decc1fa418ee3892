"""How a verb answers: a table for people or JSON for machines, and the exit code."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import cycle
from pipelines.config import Home

out = Console(width=None if sys.stdout.isatty() else 120)

NO = 1  # the exit code of a decision that says no


def _show(as_json: bool, value: Any, title: str = "") -> None:
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
        grid.add_row(name, escape(text))
    out.print(grid)


def answer(as_json: bool, title: str, record: dict[str, Any], *, yes: bool = True) -> None:
    """Print a verb's record; leave with exit code 1 where the decision was no."""
    _show(as_json, record, title)
    if not yes:
        raise typer.Exit(NO)


def records_of(home: Home, as_of: datetime, *names: str) -> dict[str, Any]:
    """Return the records of some stages of a cycle, those of keyed stages by key."""
    found: dict[str, Any] = {}
    for name in names:
        for record in cycle.records(home, as_of, name):
            label = name if record["key"] is None else f"{name}.{record['key']}"
            found[label] = {field: value for field, value in record.items() if field not in {"stage", "key"}}
    return found
