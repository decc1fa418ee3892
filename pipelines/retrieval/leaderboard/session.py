"""From the name of a data set to the figures of its board."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines.config import Home
from pipelines.datasets.split import JUDGE
from pipelines.retrieval.leaderboard import board, data_sets, page, selection
from pipelines.retrieval.leaderboard.board import Plan

Tell = Callable[[str, int], None]


@contextmanager
def _scratch(root: Path, name: str) -> Iterator[Path]:
    """Yield a folder of this process, since another may be at the same board; what dead ones left is swept."""
    for left in root.glob(f"{name}.*"):
        if not Path(f"/proc/{left.name.rpartition('.')[2]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    mine = root / f"{name}.{os.getpid()}"
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)


def run(home: Home, name: str, plan: Plan, *, path: Path | None, as_of: str | None, tell: Tell) -> dict[str, Any]:
    """Return a board as `page.figures` gives it; with `plan.validate` also line-ups grown for their seconds.

    Args:
        home: where the state folders of the data sets lie, under bench/; for `lake` the state folder itself.
        path: of the data set's file or folder.
        as_of: of `lake`.
        tell: is told what is being done, and how many sources are through.

    Raises:
        ReloopError: no such data set, no file, a path or moment that has no meaning there, or too short a history.
    """
    data_sets.check(name, path, as_of)
    through = -1

    def turn(source: str) -> None:
        nonlocal through
        through += 1
        tell(source, through)

    if name == data_sets.LAKE:
        state, moment = data_sets.own(home, as_of)
    else:
        state, moment = data_sets.prepare(home.root / "bench", name, path, lambda what: tell(what, 0))
    with _scratch(home.root / "tmp", f"bench-{name}") as scratch:
        made = board.make(state, moment, plan, scratch, turn)
    facts: dict[str, Any] = {"as_of": moment.isoformat(), "rows": data_sets.ingested(state), "neural_seconds": plan.seconds}
    line_ups = {**selection.LINE_UPS, "every source": tuple(made.lists[JUDGE])}
    # A source that was not asked is no source that could not answer: a line-up with it would be judged by what is left of it.
    asked = {label: names for label, names in line_ups.items() if label == selection.SETTINGS or {*names} <= {*plan.sources}}
    blends = {label: found for label, names in asked.items() if (found := selection.compared(made, names)) is not None}
    usual = blends.get(selection.SETTINGS)
    facts["blends"] = {label: page.blend(found, usual) for label, found in blends.items()}
    if plan.validate:
        facts["line_ups"] = {
            by: page.line_ups(selection.forward(made, by, lambda what: tell(f"blending {what}", through))) for by in selection.QUALITIES
        }
    return page.figures(name, made, facts)
