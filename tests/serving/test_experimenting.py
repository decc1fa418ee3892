"""Who gets which engine, under which label; and what happens while something of an experiment is missing."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripted
import served_shop
from trained_shop import SECOND

from pipelines.config import Home, Settings
from pipelines.errors import StateError
from pipelines.lake import impressions
from pipelines.model_settings import ExplorationPolicy
from pipelines.serving import assembly, assignment, blocked, collecting
from pipelines.serving import engine as engines
from pipelines.serving.blocked import Blocked
from pipelines.serving.engine import Engine
from pipelines.serving.experimenting import Drafting, Experimenting, _changed
from pipelines.serving.ladder import Ladder
from pipelines.serving.request import BLEND, FULL, Answer, Ask, Release
from pipelines.serving.tally import Tally, between
from pipelines.window import DAY, Window

DECLARED = """
[models]
[models.arms.control]
[models.arms.new]
version = 7
[models.arms.both]
interleave = ["control", "new"]
"""
ARMS = """
[x]
[x.arms.control]
[x.arms.varied]
rerank = { mmr = true }
"""
BASE = scripted.Engine()


def numbered(version: int) -> scripted.Engine:
    """Return an engine of a version that lists j0, i0, j1, i1, ..."""

    def does(asked: Ask) -> Answer:
        names = [f"{letter}{n}" for n in range(9) for letter in "ji"]
        return Answer(asked, scripted.shown(*names[: asked.k]), FULL, Release(version, "e" * 64))

    return scripted.Engine(does, Release(version, "e" * 64))


def experimenting(home: Home, text: str = DECLARED, load=numbered, side: str = "", retry_seconds: float = 0.0) -> Experimenting:
    home.root.mkdir(parents=True, exist_ok=True)
    (home.root / assignment.FILE).write_text(text, encoding="utf-8")
    made = Experimenting(home, lambda ask: (BASE, side), load, retry_seconds=retry_seconds)
    made.follow()
    return made


def picked(made: Experimenting) -> dict[str, tuple[object, str]]:
    """Return what one user of each arm gets."""
    found = {}
    for number in range(60):
        engine, label = made.pick(scripted.ask(user_id=f"u{number}"))
        found.setdefault(label.rpartition(":")[2], (engine, label))
    return found


def test_each_arm_answers_from_its_release_and_is_logged_as_itself(home: Home):
    found = picked(experimenting(home))
    assert set(found) == {"control", "new", "both"}
    assert found["control"] == (BASE, "models:control")
    assert found["new"][0].release.version == 7
    assert isinstance(found["both"][0], Drafting)


def test_a_takedown_holds_in_every_arm_also_for_engines_that_do_not_listen(home: Home):
    """Those of this test leave nothing out by themselves: versions and drafted lists go through the same rungs as the champion's."""
    made = experimenting(home)
    ladder = Ladder(scripted.PATIENT, made.pick, lambda: scripted.STOCK, Blocked(home, follow_seconds=0))
    asks = {
        label.rpartition(":")[2]: ask for number in range(60) if (label := made.pick(ask := scripted.ask(user_id=f"u{number}", k=6))[1])
    }
    assert set(asks) == {"control", "new", "both"}
    before = {arm: scripted.items(ladder.answer(ask)) for arm, ask in asks.items()}
    assert {"i0", "j0"} <= set(before["new"]) & set(before["both"])
    blocked.block(home, ["i0", "j0"], "recalled")
    for arm, ask in asks.items():
        answer = ladder.answer(ask)
        assert answer.rung == FULL
        assert not {"i0", "j0"} & set(scripted.items(answer)), arm
        assert answer.variant.endswith(arm)


def test_an_experiment_stands_beside_the_rollout(home: Home):
    found = picked(experimenting(home, side="rollout-3:canary"))
    assert found["control"][1] == "rollout-3:canary|models:control"
    assert assignment.arm_in(found["new"][1], "models") == "new"


def test_nobody_in_particular_and_no_release_take_no_part(home: Home):
    made = experimenting(home)
    assert made.pick(scripted.ask(user_id=None)) == (BASE, "")
    assert Experimenting(home, lambda ask: (None, ""), numbered).pick(scripted.ask()) == (None, "")


def test_until_an_arms_release_is_loaded_nobody_is_in_the_experiment(home: Home):
    def missing(version: int) -> scripted.Engine:
        if not there:
            raise StateError(f"version {version}", found="no bundle")
        return numbered(version)

    there: list[int] = []
    made = experimenting(home, load=missing)
    assert set(picked(made)) == {""}
    assert "experiment models waits" in made.trouble
    there.append(1)
    made.follow()
    assert set(picked(made)) == {"control", "new", "both"}
    assert made.trouble == ""


def test_a_release_that_cannot_be_loaded_is_left_alone_for_a_while_and_its_experiment_says_why(home: Home):
    tried: list[int] = []

    def missing(version: int) -> scripted.Engine:
        tried.append(version)
        raise StateError(f"version {version}", found="no bundle")

    made = experimenting(home, load=missing, retry_seconds=30)
    for _ in range(5):
        made.follow()
        assert "experiment models waits" in made.trouble
        assert "no bundle" in made.trouble
    assert tried == [7]
    (home.root / assignment.FILE).write_text(DECLARED.replace("version = 7", "version = 8"), encoding="utf-8")
    made.follow()
    assert tried == [7, 8], "another version is another matter"


def test_a_file_that_cannot_be_read_leaves_what_was_and_a_corrected_one_counts(home: Home):
    made = experimenting(home)
    before = {label: one[1] for label, one in picked(made).items()}
    (home.root / assignment.FILE).write_text("[models", encoding="utf-8")
    made.follow()
    assert {label: one[1] for label, one in picked(made).items()} == before
    assert "experiments.toml" in made.trouble
    (home.root / assignment.FILE).unlink()
    made.follow()
    assert set(picked(made)) == {""}


@pytest.mark.parametrize(("arm", "fails", "blamed"), [("control", 8, 8), ("new", 7, 7), ("new", 8, None)])
def test_the_release_that_was_asked_is_blamed_whatever_experiment_its_user_is_in(home: Home, arm: str, fails: int, blamed: int | None):
    """A canary (8) fails its users in control; an arm's own release (7) its own, and then not the canary."""

    def broken(version: int) -> scripted.Engine:
        return scripted.Engine(scripted.raising if version == fails else None, Release(version, "e" * 64))

    made = experimenting(home, load=broken)
    made._base = lambda ask: (broken(8), "rollout-8:canary")
    users = [user for user in map("u{}".format, range(60)) if made.pick(scripted.ask(user_id=user))[1].endswith(f":{arm}")]
    counted, begun = Tally(home), time.perf_counter()
    ladder = Ladder(scripted.PATIENT, made.pick, lambda: scripted.STOCK, Blocked(home, follow_seconds=0))
    for user in users[:3]:
        answer = ladder.answer(scripted.ask(user_id=user))
        assert answer.assigned == f"rollout-8:canary|models:{arm}"
        counted(answer)
    failed = {version: between(home, version, begun - 10, begun + 60).failed for version in (7, 8)}
    assert failed == {7: 0, 8: 0} | ({blamed: 3} if blamed else {})
    counted.close()


def test_a_draft_holds_both_and_names_whose_pick_each_item_was(home: Home):
    engine = picked(experimenting(home))["both"][0]
    answer = engine.answer(scripted.ask(k=6))
    assert [one.rank for one in answer.items] == [1, 2, 3, 4, 5, 6]
    assert len({one.item_id for one in answer.items}) == 6
    teams = [one.sources[-1] for one in answer.items]
    assert set(teams) == {"team:control", "team:new"}
    assert abs(teams.count("team:new") - 3) <= 1
    assert all(one.item_id[0] == "i" for one, team in zip(answer.items, teams, strict=True) if team == "team:control")
    assert answer == engine.answer(scripted.ask(k=6))
    others = {tuple(one.item_id for one in engine.answer(scripted.ask(k=6, request_id=f"q{n}")).items) for n in range(20)}
    assert len(others) > 1


def test_a_draft_stands_on_the_lower_of_two_rungs(home: Home):
    lower = scripted.Engine(lambda asked: replace(numbered(7).answer(asked), rung=BLEND, degraded=("ranker: late",)))
    answer = Drafting(BASE, lower, ("control", "new"), "x").answer(scripted.ask())
    assert (answer.rung, answer.degraded) == (BLEND, ("ranker: late",))


def test_a_release_is_loaded_once(home: Home):
    loads: list[int] = []

    def load(version: int) -> scripted.Engine:
        loads.append(version)
        return numbered(version)

    made = experimenting(home, load=load)
    (home.root / assignment.FILE).write_text(
        DECLARED + '\n[other]\nlayer = "page"\n[other.arms.control]\n[other.arms.b]\nversion = 7\n', encoding="utf-8"
    )
    made.follow()
    assert loads == [7]
    engines = {id(made.pick(scripted.ask(user_id=f"u{n}"))[0]) for n in range(40)}
    assert len(engines) >= 2


def test_an_arm_may_explore_otherwise_and_nothing_else_of_its_engine_changes():
    engine = Engine(SimpleNamespace(engines={}), None, Settings(), {})
    arm = assignment.Arm(exploration=ExplorationPolicy(method="thompson", share=0.3))
    found = _changed(engine, arm)
    assert found.settings.exploration == arm.exploration
    assert found.settings.model_copy(update={"exploration": engine.settings.exploration}) == engine.settings
    with pytest.raises(ValueError, match="changes nothing itself"):
        assignment.Arm(exploration=arm.exploration, interleave=("a", "b"))


def test_looking_again_changes_nothing(home: Home):
    made = experimenting(home)
    before = made._ready
    made.follow()
    assert made._ready is before


def test_the_service_logs_every_answer_under_its_arm_and_the_log_lands(served: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole of a process: experiments, ladder, journal; then the collector."""
    home = served_shop.copied(served, tmp_path / "var")
    (home.root / assignment.FILE).write_text(ARMS, encoding="utf-8")
    with served_shop.environment(home):
        with assembly.house(home, lambda: SECOND) as made:
            monkeypatch.setattr(engines, "bind", lambda *_: pytest.fail("a request bound its engine"))
            users = [*made.users("", 12), None]
            answers = [made.service.answer(Ask("home", f"r{number}", SECOND, user_id=user)) for number, user in enumerate(users)]
            top = {"user_id": users[0], "item_id": answers[0].items[0].item_id, "event_type": "seen"}
            waiting = made.intake._bus.waiting()
            verdicts = made.take([{**top, "request_id": "r0"}, top, {**top, "event_type": "view"}])
            assert [verdict.reasons for verdict in verdicts] == [(), ("request_id is missing: a place is seen in an answer",), ()]
            assert made.intake._bus.waiting() <= waiting + 1, "what is seen is no event"
        (report,) = collecting.collect(home, SECOND + DAY)
    assert {answer.variant for answer in answers} == {"x:control", "x:varied", ""}
    assert report["rows"]["accepted"] == 1 + sum(len(answer.items) for answer in answers) > 100
    with impressions.connect(home, Window(SECOND, SECOND + DAY)) as engine:
        rows = engine.execute("SELECT DISTINCT request_id, variant, rung FROM impressions").fetchall()
        assert engine.execute("SELECT request_id, item_id, seen_at FROM seen_places").fetchall() == [("r0", top["item_id"], SECOND)]
    assert sorted(rows) == sorted((answer.ask.request_id, answer.variant or None, answer.rung) for answer in answers)
