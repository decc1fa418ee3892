"""Which sources could go: those without whom the blend finds as much, dropped one after the other."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Histories
from pipelines.datasets.labels import Labels
from pipelines.datasets.split import JUDGE
from pipelines.errors import StateError
from pipelines.evaluation import metrics, paired
from pipelines.evaluation.metrics import Doubles
from pipelines.retrieval import attribution, cold_users, fitting, lineup
from pipelines.retrieval.attribution import CONFIDENCE, Row
from pipelines.retrieval.merging import Recipe, Union, blocks
from pipelines.retrieval.protocol import Candidates
from pipelines.window import utc

SECTION: Final = re.compile(r"^\[retrieval\][ \t]*(#.*)?$", re.MULTILINE)
SOURCES: Final = re.compile(r"^[ \t]*sources[ \t]*=[ \t]*\[[^\]]*\][ \t]*(#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Judged:
    """The judged window of one run.

    Attributes:
        lists: per source what it proposed to the users of the labels.
        recipe, k: how, and to how many, they were merged.
    """

    lists: Mapping[str, Candidates]
    truth: Labels
    recipe: Recipe
    k: int

    def recall(self, sources: Sequence[str]) -> Doubles:
        """Return float64 [n_users], recall of the blend of some sources."""
        found = [np.zeros(0)]
        for rows, some in blocks(self.lists):
            union = Union.of(cold_users.alone({name: some[name] for name in sources}))
            found.append(attribution.recall_of(union, self.truth.take(np.arange(rows.start, rows.stop)), self.k, self.recipe))
        return np.concatenate(found)


@dataclass(frozen=True)
class Advice:
    """What pruning says.

    Attributes:
        runs: moments of the runs it was judged on.
        drop: per dropped source, in the order of dropping: `lost` and `lost_upper`, what the blend lost by
            then of its recall with all sources, mean and upper bound, and what is saved.
        keep: per source that stays `why`, and what it alone added in the newest run: `adds` and its upper bound `adds_at_most`.
        recall, recall_after: of the blend, over the users of all runs.
    """

    runs: tuple[datetime, ...]
    drop: dict[str, Row]
    keep: dict[str, Row]
    recall: float | None
    recall_after: float | None

    def setting(self) -> str:
        """Return the line of the settings' section [retrieval] that names what stays."""
        return f"sources = {json.dumps(list(self.keep))}"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        saved = {cost: sum(row[cost] or 0.0 for row in self.drop.values()) for cost in ("fit_seconds", "retrieve_ms_per_user", "state_mb")}
        return {
            "runs": [f"{run:%Y-%m-%d}" for run in self.runs],
            "drop": self.drop,
            "keep": self.keep,
            "recall": self.recall,
            "recall_after": self.recall_after,
            "saved": saved,
            "setting": self.setting(),
        }


def eliminate(
    runs: Sequence[Judged], sources: Sequence[str], minimum: float, seed: int, *, may_go: Callable[[str, Sequence[str]], bool]
) -> dict[str, Row]:
    """Return what goes, in that order: backward elimination, one source at a time.

    In each step goes the source without which least is lost, as long as everything lost since the
    whole line-up has an upper bound below the minimum: so of two sources that find the same, one
    goes and the other then stands alone, and many small losses do not add up unseen.

    Args:
        minimum: recall; what goes plausibly costs less, all together.
        may_go: whether a source may be left out of those that are left.
    """
    whole = [run.recall(sources) for run in runs]
    left, gone = list(sources), dict[str, Row]()
    while len(left) > 1:
        losses = {}
        for name in left:
            if may_go(name, left):
                others = [other for other in left if other != name]
                lost = np.concatenate([before - run.recall(others) for before, run in zip(whole, runs, strict=True)])
                losses[name] = paired.interval(lost, CONFIDENCE, seed)
        light = {name: loss for name, loss in losses.items() if loss.upper < minimum}
        if not light:
            break
        name = min(light, key=lambda name: (light[name].mean, light[name].upper, -left.index(name)))
        left.remove(name)
        gone[name] = {"lost": light[name].mean, "lost_upper": light[name].upper, "users": light[name].n}
    return gone


def advise(home: Home, as_of: datetime | None = None, n_runs: int = 1) -> Advice:
    """Say which sources of the settings could go, judged on the newest runs up to a moment; changes nothing.

    Kept whatever they find: what the gate compares every release with, what has a quota, and the
    last source that answers a user of whom nothing is known.

    Args:
        as_of: of the newest run that counts; the newest of all when None.
        n_runs: runs to judge on, it and those before it; fewer where an earlier one lacks a source.

    Raises:
        StateError: there is no such run, or it lacks a source of the settings.
    """
    settings = config.load(home)
    sources = settings.retrieval.sources
    tables = attribution.up_to(home, None if as_of is None else utc(as_of), n_runs, sources)
    fitting_runs = list(tables)
    newest, table = fitting_runs[-1], tables[fitting_runs[-1]]
    judged = [_judged(home, run, sources) for run in fitting_runs]
    for_gate = {settings.gate.baseline, *settings.gate.incumbents}
    for_anyone = _answering_strangers(home, newest, sources)

    def held(name: str, left: Sequence[str]) -> str:
        if name in for_gate:
            return "the gate compares releases with it"
        if name in settings.retrieval.quotas:
            return "it has a quota"
        if name in for_anyone and not for_anyone & (set(left) - {name}):
            return "no other source answers a user of whom nothing is known"
        return ""

    gone = eliminate(
        judged, sources, settings.retrieval.min_contribution, settings.training.seed, may_go=lambda name, left: not held(name, left)
    )
    left = [name for name in sources if name not in gone]
    keep = {
        name: {
            "why": held(name, left) or "without it too much may be lost",
            "adds": table[name]["contribution"],
            "adds_at_most": table[name]["contribution_upper"],
        }
        for name in left
    }
    costs = ("fit_seconds", "retrieve_ms_per_user", "state_mb", "peak_mb")
    return Advice(
        tuple(fitting_runs),
        {name: {**found, **{cost: table[name][cost] for cost in costs}} for name, found in gone.items()},
        keep,
        metrics.mean(np.concatenate([run.recall(sources) for run in judged])),
        metrics.mean(np.concatenate([run.recall(left) for run in judged])),
    )


def _judged(home: Home, as_of: datetime, sources: Sequence[str]) -> Judged:
    world, facts = universe.load(home, as_of), publish.manifest(attribution.folder(home, as_of)).facts
    lists = {name: fitting.candidates(home, as_of, name, JUDGE, world.digest) for name in sources}
    return Judged(lists, world.labels(JUDGE), Recipe.from_json(facts["recipe"]), facts["k"])


def _answering_strangers(home: Home, as_of: datetime, sources: Sequence[str]) -> set[str]:
    """Return the sources that propose something to a user without a history."""
    n_items = len(universe.load(home, as_of).item_ids)
    nobody = Histories(np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.float32), n_items, 0)
    models = {name: lineup.load(fitting.folder(home, as_of, name)) for name in sources}
    return {name for name, model in models.items() if model.retrieve(nobody, 1, exclude_seen=False).item[0, 0] >= 0}


def write(home: Home, advice: Advice) -> Path:
    """Name the sources that stay in `reloop.toml` of the state folder, and leave every other line of it as it is; return the file.

    Raises:
        StateError: the file says it in a way that no line can be replaced in.
    """
    file = home.root / "reloop.toml"
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    after = _with_line(before, advice.setting())
    told = tomllib.loads(before)
    retrieval = dict(told.get("retrieval", {}))
    if weighted := sorted(set(retrieval.get("weights", {})) & set(advice.drop)):
        raise StateError(
            f"{file}: retrieval.weights",
            found=f"weights of {weighted}, which go",
            allowed="weights of the sources that stay",
            hint=f"take them out, and write by hand: {advice.setting()}",
        )
    wanted = {**told, "retrieval": {**retrieval, "sources": list(advice.keep)}}
    try:
        same = tomllib.loads(after) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise StateError(str(file), found="a form that is not edited by rule", hint=f"write under [retrieval] by hand: {advice.setting()}")
    publish.write_text(file, after)
    return file


def _with_line(text: str, line: str) -> str:
    """Return the text of a settings file with one line of [retrieval] replaced or added."""
    section = SECTION.search(text)
    if not section:
        return f"{text.rstrip()}\n\n[retrieval]\n{line}\n".lstrip()
    following = re.search(r"^[ \t]*\[", text[section.end() :], re.MULTILINE)
    # A list may span lines, and one that begins a line there is no section: the knob is looked for first.
    there = SOURCES.search(text, section.end())
    if there and (not following or there.start() < section.end() + following.start()):
        return text[: there.start()] + line + (f"  {there[1]}" if there[1] else "") + text[there.end() :]
    return f"{text[: section.end()]}\n{line}{text[section.end() :]}"
