"""Engines that re-rank or explore by an arm's rules are kept as long as arm and release are there, and bound before a request asks."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripted

from pipelines.config import Home, Settings
from pipelines.errors import StateError
from pipelines.registry.choosing import Serving
from pipelines.rerank_policies import RerankSettings
from pipelines.serving import assignment
from pipelines.serving.engine import Engine
from pipelines.serving.experimenting import Experimenting

DECLARED = "[x]\n[x.arms.control]\nrerank = { mmr = true }\n[x.arms.varied]\nrerank = { mmr = true }\n"
WAITS = '[y]\nlayer = "other"\n[y.arms.control]\n[y.arms.b]\nversion = 9\n'


@dataclass(frozen=True)
class Model:
    rerank: RerankSettings = RerankSettings()  # noqa: RUF009 - frozen


def engine(version: int) -> Engine:
    knowledge = SimpleNamespace(engines={}, known=SimpleNamespace(requests=None, items=None))
    return Engine(knowledge, Serving(version, f"{version}" * 64, Model(), {}), Settings(), {})


def gone(version: int) -> Engine:
    raise ValueError(f"{version} is gone")


def asked(made: Experimenting, users: int = 20) -> dict[int, object]:
    """Return the engines that some users get, by who they are."""
    return {id(found): found for n in range(users) for found in [made.pick(scripted.ask(user_id=f"u{n}"))[0]]}


def test_an_experiment_that_is_over_keeps_no_release_alive_nor_does_one_that_is_replaced(tmp_path: Path) -> None:
    home, serves, of_before = Home(tmp_path), [engine(1)], []
    file = home.root / assignment.FILE
    file.write_text(DECLARED, encoding="utf-8")
    made = Experimenting(home, lambda ask: (serves[0], ""), gone)
    made.follow()
    for version in range(1, 6):
        serves[0] = engine(version)
        of_before.append(weakref.ref(serves[0].serving))
        asked(made)
        serves[0].knowledge.engines.clear()  # which holds them weakly
        made.follow()
        gc.collect()
        made.follow()
        assert [kept() is not None for kept in of_before] == [False] * (version - 1) + [True]
        assert len(made._reordering) == 2, "one an arm, of what serves"
    file.write_text("[y]\n[y.arms.control]\n[y.arms.other]\n", encoding="utf-8")
    made.follow()
    assert made._reordering == {}


def test_neither_a_canary_nor_an_experiment_that_waits_makes_an_arms_engine_anew(tmp_path: Path) -> None:
    home, champion, canary = Home(tmp_path), engine(3), engine(7)
    file = home.root / assignment.FILE
    file.write_text(DECLARED, encoding="utf-8")
    made = Experimenting(home, lambda ask: (canary if ask.user_id.endswith("7") else champion, ""), gone)
    made.follow()
    first = asked(made, 60)
    assert len(first) == 4, "two arms of two releases"
    for _ in range(3):
        assert asked(made, 60) == first
    file.write_text(DECLARED + WAITS, encoding="utf-8")
    for _ in range(3):
        made.follow()
        assert asked(made, 60) == first
    assert "waits" in made.trouble


@pytest.mark.parametrize("declared_first", [True, False])
def test_what_an_arm_asks_is_bound_before_a_request_asks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared_first: bool) -> None:
    ready: list[int] = []
    monkeypatch.setattr(Engine, "ready", lambda self: ready.append(id(self)))
    home, champion = Home(tmp_path), engine(3)
    made = Experimenting(home, lambda ask: (champion, ""), gone)
    if not declared_first:
        made.meet(champion)
    (home.root / assignment.FILE).write_text(DECLARED, encoding="utf-8")
    made.follow()
    if declared_first:
        made.meet(champion)
    assert set(ready) == set(asked(made)) != {id(champion)}


ARMS = """
[x]
[x.arms.control]
[x.arms.varied]
rerank = { mmr = true }
[x.arms.other]
version = 9
[x.arms.both]
interleave = ["control", "varied"]
"""


def test_an_answer_is_explained_by_the_arm_that_gave_it_or_it_is_said_why_not(tmp_path: Path) -> None:
    home, champion, previous, ninth = Home(tmp_path), engine(3), engine(2), engine(9)
    (home.root / assignment.FILE).write_text(ARMS, encoding="utf-8")
    made = Experimenting(home, lambda ask: (champion, ""), lambda version: ninth)
    made.follow()
    held = (champion, previous, None)
    assert made.engine_of("", "2" * 64, held) is previous
    assert made.engine_of("rollout-3:canary|x:control", "3" * 64, held) is champion
    varied = made.engine_of("rollout-3:canary|x:varied", "3" * 64, held)
    assert (
        varied
        is made.pick(scripted.ask(user_id=next(u for u in map(str, range(99)) if made.pick(scripted.ask(user_id=u))[1] == "x:varied")))[0]
    )
    assert varied.model.rerank.mmr is not None is not champion.model.rerank
    assert made.engine_of("x:other", "9" * 64, held) is ninth
    for variant, digest, why in (
        ("x:gone", "3", "arm gone of experiment x is gone"),
        ("y:control", "3", "arm control of experiment y is gone"),
        ("x:varied", "4", "not loaded any more"),
        ("x:both", "3", "a draft of two lists"),
    ):
        with pytest.raises(StateError, match=why):
            made.engine_of(variant, digest * 64, held)
