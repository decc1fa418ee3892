"""The steward: rollouts go on by themselves while the guard finds nothing, and back where it does; one process of a machine does it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from swap_lab import NOW, Telling, canary, digests, promoted

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import ledger, releases, rollback, rollouts
from pipelines.registry.choosing import Serving
from pipelines.serving import holder, tally
from pipelines.serving.holder import Holder, workers
from pipelines.serving.request import BLEND, FULL, POPULAR, Answer, Ask, Release, Shown, Why
from pipelines.serving.rollout import Steward
from pipelines.serving.tally import Tally
from pipelines.serving_policies import RolloutPolicy

POLICY = RolloutPolicy(
    poll_seconds=0.02, shares=(0.25, 0.5), step_seconds=0.5, step_requests=100, false_alarm_rate=0.5, look_seconds=0.1, window_seconds=5, most_step_seconds=600,
    watch_seconds=600,
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let periods and units pass within a test."""
    monkeypatch.setattr(tally, "PERIOD_SECONDS", 0.1)
    monkeypatch.setattr(tally, "UNIT_SECONDS", 0.2)


@dataclass(frozen=True)
class Faulty(Telling):
    """A real release that fails at some users' requests."""

    fails: float = 0.0

    def answer(self, ask: Ask) -> Answer:
        if int((ask.user_id or "u0")[1:]) % 100 < 100 * self.fails:
            raise StateError("list", found="5 of 5 scores are no numbers", allowed="finite scores")
        return super().answer(ask)


@dataclass(frozen=True)
class Slow(Faulty):
    """50 ms slower."""

    slower_ms: float = 50.0


class Nothing(Faulty):
    """No score is a number, so the blend orders the list."""

    def answer(self, ask: Ask) -> Answer:
        return replace(super().answer(ask), rung=BLEND)


class Dead(Faulty):
    """No model answers, so the release fills up with what is popular (`surfaces.filled`, and every surface of items)."""

    def answer(self, ask: Ask) -> Answer:
        return replace(super().answer(ask), rung=POPULAR, degraded=("item_knn: ValueError: broken",))


class SameForAll(Faulty):
    """The same list for everybody."""

    def answer(self, ask: Ask) -> Answer:
        return replace(super().answer(ask), items=tuple(Shown(f"i{at}", at, 6.0 - at, Why("for_you", "")) for at in range(1, 6)))


class Flat(Faulty):
    """Scores that are all alike."""

    def answer(self, ask: Ask) -> Answer:
        answer = super().answer(ask)
        return replace(answer, items=tuple(replace(shown, score=1.0) for shown in answer.items))


class Shop:
    """One process: holder, tally, steward, and a ladder of two rungs."""

    def __init__(self, home: Home, fails: dict[int, float] | None = None, second: type[Faulty] = Faulty) -> None:
        def bind(serving: Serving) -> Faulty:
            return (second if serving.version == 2 else Faulty)(serving, (fails or {}).get(serving.version, 0.0))

        self.home, self.holder = home, Holder(home, bind, POLICY)
        self.holder.follow()
        self.tally = Tally(home)
        self.steward = Steward(home, POLICY)
        self.user = 0

    def serve(self, requests: int = 100) -> None:
        """Answer some users' requests, follow, look."""
        for _ in range(requests):
            self.user += 1
            ask = Ask("home", f"r{self.user}", NOW, 5, f"u{self.user}")
            engine, variant = self.holder.pick(ask)
            assert engine is not None
            try:
                answer = replace(engine.answer(ask), degraded=())
            except StateError as error:
                shown = (Shown("best", 1, 1.0, Why("popular", "")),)
                answer = Answer(ask, shown, POPULAR, Release(None, None), degraded=(f"full: {error}",))
            self.tally(
                replace(
                    answer,
                    variant=variant,
                    assigned=variant,
                    asked=engine.release,
                    stage_ms={FULL: 5.0 + getattr(engine, "slower_ms", 0.0)},
                )
            )
        self.holder.follow()
        self.steward.look()

    def until(self, holds: object) -> None:
        begun = time.perf_counter()
        while not holds():  # type: ignore[operator]
            assert time.perf_counter() - begun < 300
            self.serve()
            time.sleep(0.02)


def test_a_sound_challenger_goes_up_step_by_step_and_all_get_it(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    one = Shop(shop)
    canary(shop, 2, POLICY.shares[0])
    one.until(lambda: releases.pointer(shop).version == 2)
    history = ledger.history(shop)
    assert [(entry["kind"], entry.get("share")) for entry in history[1:]] == [("canary", 0.25), ("canary", 0.5), ("promoted", 1.0)]
    assert all("no bound broken" in entry["reasons"][0] for entry in history[2:])
    assert {entry["author"] for entry in history[2:]} == {rollback.MACHINE}
    ledger.verify(shop)


def test_a_challenger_that_fails_goes_back_with_what_was_measured(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    one = Shop(shop, {2: 0.4})
    canary(shop, 2, 0.5)
    one.until(lambda: rollouts.current(shop) is None)
    ended = ledger.history(shop)[-1]
    assert (ended["kind"], ended["champion_after"], releases.pointer(shop).version) == (ledger.ENDED, 1, 1)
    assert ended["reasons"][0].startswith("failed: ")
    assert ended["figures"]["challenger"]["failed"] > 0.1
    one.serve(1)
    assert one.holder.held.challenger is None


@pytest.mark.parametrize(
    ("second", "bound"), [(Slow, "p50 of time"), (Nothing, "lower"), (Dead, "lower"), (SameForAll, "same"), (Flat, "scores")]
)
def test_a_canary_that_is_slow_blind_or_the_same_for_all_goes_back(shop: Home, second: type[Faulty], bound: str) -> None:
    promoted(shop, 1, digests(shop)[1])
    one = Shop(shop, second=second)
    canary(shop, 2, 0.5)
    one.until(lambda: rollouts.current(shop) is None)
    ended = ledger.history(shop)[-1]
    assert ended["kind"] == ledger.ENDED
    assert [reason for reason in ended["reasons"] if reason.startswith(bound)]


@pytest.mark.parametrize("ends", [False, True], ids=["stays", "ends"])
def test_a_champion_that_was_promoted_at_once_is_watched_and_rolled_back_once_though_the_process_that_saw_it_ends(
    shop: Home, ends: bool
) -> None:
    promoted(shop, 1, digests(shop)[1])
    one = Shop(shop, {2: 0.6})
    one.until(lambda: tally.between(shop, 1, 0, 1e12).requests > 300)
    promoted(shop, 2, digests(shop)[2])
    one.steward.look()
    if ends:
        one.steward.stop()
        one.steward = Steward(shop, POLICY)
    one.until(lambda: releases.pointer(shop).version == 1)
    last = ledger.history(shop)[-1]
    assert (last["kind"], last["author"]) == (ledger.ROLLED_BACK, rollback.MACHINE)
    assert last["reasons"][0].startswith("failed: ")
    one.serve()
    assert one.steward._watched is None, "what was rolled back to is not rolled back from by a machine"


def test_blue_green_is_loaded_everywhere_and_then_one_switch(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    one = Shop(shop)
    canary(shop, 2, 0.0)
    one.steward.look()
    assert releases.pointer(shop).version == 1, "no process has said that it is loaded"
    one.holder.follow()
    assert {found["challenger"]["version"] for found in workers(shop).values()} == {2}
    one.steward.look()
    assert releases.pointer(shop).version == 2
    one.holder.follow()
    assert one.holder.swaps[-1].was_loaded


def test_blue_green_that_is_not_loaded_everywhere_ends_in_time_and_whoever_looks_from_elsewhere_removes_nothing(home: Home) -> None:
    promoted(home, 1, "1" * 64)
    elsewhere = holder.folder(home) / "999999999.json"  # a process of another container: no such id here
    publish.write_json(elsewhere, {"champion": None, "challenger": None, "refused": {}})
    assert (workers(home), elsewhere.is_file()) == ({}, True)
    publish.write_json(holder.folder(home) / f"{os.getpid()}.json", {"champion": None, "challenger": None, "refused": {}})
    rollouts.begin(
        home, releases.pointer(home), key="r", kind=ledger.CANARY, share=0.0, version=2, digest="2" * 64, as_of=None, body={"reasons": [], "author": "ada"}
    )  # fmt: skip
    steward = Steward(home, POLICY.model_copy(update={"most_step_seconds": 0.5}))
    steward.look()
    assert rollouts.current(home) is not None
    time.sleep(0.6)
    steward.look()
    steward.stop()
    ended = ledger.history(home)[-1]
    assert ended["kind"] == ledger.ENDED
    assert ended["reasons"][0].startswith("0 of 1 processes have it loaded after ")


def test_a_challenger_that_no_process_can_load_ends_its_rollout(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    (shop.bundles / digests(shop)[2] / "model" / "items.parquet").write_bytes(b"")
    one = Shop(shop)
    canary(shop, 2, 0.25)
    one.holder.follow()
    one.steward.look()
    assert rollouts.current(shop) is None
    assert "bytes that differ" in ledger.history(shop)[-1]["reasons"][0]


def test_one_process_of_a_machine_looks_after_rollouts_and_another_takes_over(shop: Home) -> None:
    promoted(shop, 1, digests(shop)[1])
    (shop.bundles / digests(shop)[2] / "manifest.json").write_bytes(b"")
    first, second = Steward(shop, POLICY), Steward(shop, POLICY)
    first.look()
    second.look()
    assert (first._lock is None, second._lock is None) == (False, True)
    first.stop()
    second.look()
    assert second._lock is not None
    second.stop()


def test_who_takes_over_watches_as_long_as_was_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(home, 1, "1" * 64)
    first = Steward(home, POLICY)
    first.look()
    promoted(home, 2, "2" * 64)
    first.look()
    assert first._watched == (2, 1)
    first.stop()
    real, watched = ledger.clock, []
    for later in (0.0, 540.0, 660.0):
        monkeypatch.setattr(ledger, "clock", lambda home, later=later: real(home) + timedelta(seconds=later))
        second, begun = Steward(home, POLICY), time.perf_counter()
        second.look()
        second.stop()
        assert second._promoted == pytest.approx(begun - later, abs=60)
        watched.append(second._watched)
    assert watched == [(2, 1), (2, 1), None], "ten minutes, whoever looks"


def test_counts_of_processes_that_are_gone_are_swept_whoever_has_their_id_now(home: Home) -> None:
    mine = Tally(home)
    counts = mine.path.read_bytes()
    old = [
        f"{os.getpid()}-1",
        f"{os.getpid()}-{time.perf_counter_ns() + 10**15}",
        "999999999-5",
    ]  # before it began, of another boot, nobody
    for name in old:
        (tally.folder(home) / name).write_bytes(counts)
    tally.sweep(home)
    assert [path.name for path in tally.folder(home).iterdir()] == [mine.path.name]
    mine.close()


def test_a_champion_is_counted_however_many_releases_answer_and_however_old_it_is(home: Home) -> None:
    counted, begun = Tally(home), time.perf_counter()

    def count(version: int, user: int) -> None:
        counted(Answer(Ask("home", "r", NOW, 5, f"u{user}"), (Shown("i", 1, 1.0, Why("for_you", "")),), FULL, Release(version, "d")))

    for user in range(100):
        for version in (3, 4, 5, 6, 7):
            count(version, user)
    for version in range(8, 30):  # each for a moment; the champion answers all the while
        count(version, 100 + version)
        count(3, 100 + version)
    requests = {version: tally.between(home, version, begun - 1, begun + 600).requests for version in (3, 4, 29)}
    counted.close()
    assert requests[3] >= 122  # a unit may end meanwhile, and then counts anew
    assert (requests[4], requests[29]) == (0, 1), "who answered longest ago gave way"


def test_counts_of_all_processes_are_added_up_and_a_user_counts_once_a_minute(shop: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "UNIT_SECONDS", 60.0)
    begun = time.perf_counter()
    tallies = [Tally(shop), Tally(shop)]
    items = tuple(Shown(f"i{at}", at, float(at), Why("for_you", "")) for at in range(1, 6))
    for counted in tallies:
        for user in (*range(10), *range(10)):
            counted(Answer(Ask("home", "r", NOW, 5, f"u{user}"), items, FULL, Release(1, "d"), stage_ms={FULL: 8.0}))
        counted(Answer(Ask("home", "r", NOW, 5, "u11"), items, "cached", Release(1, "d")))
        counted(Answer(Ask("home", "r", NOW, 5, "u14"), items, "session", Release(1, "d")))
        counted(Answer(Ask("home", "r", NOW, 5, "u13"), items, FULL, Release(1, "d"), remembered=True))
        counted(Answer(Ask("similar", "r", NOW, 5, "u1"), items, POPULAR, Release(4, "d"), ("als: broken",), asked=Release(4, "d")))
        counted(Answer(Ask("home", "r", NOW, 5, "u12"), (), "empty", Release(None, None), ("full: late",), asked=Release(2, "d")))
    found, failed = (tally.between(shop, version, begun - 1, begun + 60) for version in (1, 2))
    minutes = 2 if found.requests > 20 else 1  # a minute may end meanwhile
    assert 20 <= found.requests <= 40 * minutes
    assert (found.pairs, found.same) == (found.requests - 2, found.requests - 2), "the same list for everybody"
    assert found.quantile_ms(0.5) == pytest.approx(8.0, rel=0.1)
    assert (failed.requests, failed.failed, failed.empty, failed.lower) == (2, 2, 2, 2)
    filled = tally.between(shop, 4, begun - 1, begun + 60)
    assert (filled.requests, filled.failed, filled.empty, filled.lower) == (2, 0, 0, 2), "popular in the release's own name"
    for counted in tallies:
        counted.close()
