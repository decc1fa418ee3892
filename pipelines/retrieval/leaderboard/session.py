"""From the name of a data set to the figures of its board."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.config import Home
from pipelines.datasets.split import JUDGE
from pipelines.retrieval.leaderboard import board, data_sets, page, selection
from pipelines.retrieval.leaderboard.board import Plan

Tell = Callable[[str, int], None]


def run(home: Home, name: str, plan: Plan, *, path: Path | None, as_of: str | None, tell: Tell) -> dict[str, Any]:
    """Return a board as `page.figures` gives it; with `plan.validate` also line-ups grown for their seconds.

    Args:
        home: where the state folders of the data sets lie, under bench/; for `lake` the state folder itself.
        path: of the data set's file or folder.
        as_of: of `lake`.
        tell: is told what is being done, and how many sources are through.

    Raises:
        ReloopError: no such data set, no file, or too short a history.
    """
    through = -1

    def turn(source: str) -> None:
        nonlocal through
        through += 1
        tell(source, through)

    if name == data_sets.LAKE:
        state, moment = data_sets.own(home, as_of)
    else:
        state, moment = data_sets.prepare(home.root / "bench", name, path, lambda what: tell(what, 0))
    made = board.make(state, moment, plan, home.root / "tmp" / f"bench-{name}", turn)
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
