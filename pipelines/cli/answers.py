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
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, field in value.items():
        grid.add_row(name, escape("\n".join(_lines(field))))
    out.print(grid)


def _lines(field: Any) -> list[str]:
    """Return a value in words: a line for each entry, deeper ones indented; what holds only plain values is one line."""
    if isinstance(field, list | tuple):
        return [line for entry in field for line in _lines(entry)] or ["none"]
    if not isinstance(field, dict):
        return [f"{field:.6g}" if isinstance(field, float) else str(field)]
    known = {name: entry for name, entry in field.items() if entry is not None and entry not in ({}, [])}
    if not any(isinstance(entry, dict | list | tuple) for entry in known.values()):
        return [", ".join(f"{name} {_lines(entry)[0]}" for name, entry in known.items()) or "none"]
    found = []
    for name, entry in known.items():
        first, *rest = _lines(entry)
        found += [f"{name}:", *(f"  {line}" for line in (first, *rest))] if rest else [f"{name}: {first}"]
    return found


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
