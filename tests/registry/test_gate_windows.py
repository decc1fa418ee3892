"""Several judged weeks: no single one decides, users who come back are one cluster, and what was judged is kept and checked."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from pipelines.config import Home
from pipelines.decision_policies import GatePolicy
from pipelines.errors import StateError
from pipelines.registry import evidence_windows, gate
from pipelines.registry.evidence_windows import About
from pipelines.registry.gate import KEEP, NOT_ENOUGH, PROMOTE, Evidence, judge
from pipelines.registry.gate_windows import Window, pool
from pipelines.window import utc

POLICY = GatePolicy(slices=(), guardrails=(), incumbents=())
N = 3000
USERS = np.char.mod("u%05d", np.arange(N))


def week(number: int, gain: float, spread: float = 0.1) -> Window:
    """Return a week in which the challenger gives everyone about so much more."""
    rng = np.random.default_rng(number)
    champion = np.where(rng.random(N) < 0.5, 0.0, rng.beta(1.2, 2.2, N))
    wobble = np.where(champion > 0, rng.normal(0, spread, N), 0.0)
    wobble -= wobble.sum() / max((champion > 0).sum(), 1) * (champion > 0)
    return Window(f"week {number}", USERS, champion, np.clip(champion * (1 + gain) + wobble, 0, 1))


def shown(fresh: Window, *earlier: Window, **more: Any) -> Evidence:
    return Evidence(fresh.challenger, fresh.champion, fresh.users, fresh.as_of, earlier, champion_age_days=7.0, **more)


def test_one_week_however_good_does_not_decide_and_spends_nothing():
    found = judge(shown(week(1, 0.2)), POLICY)
    assert found.verdict == NOT_ENOUGH
    assert found.reasons[0].startswith("1 judged window of this champion's reign")
    assert found.figures["alpha_spent"] == 0.0
    assert judge(shown(week(1, 0.2)), POLICY.model_copy(update={"min_windows": 1})).promote


def test_two_good_weeks_do():
    found = judge(shown(week(2, 0.08), week(1, 0.08)), POLICY)
    assert found.verdict == PROMOTE, found.reasons
    assert [each["as_of"] for each in found.figures["windows"]] == ["week 1", "week 2"]
    assert found.figures["n_clusters"] == N
    assert found.figures["n_rows"] == 2 * N
    assert found.figures["alpha_spent"] == found.figures["alpha"] > 0


def test_one_lucky_week_among_weeks_of_nothing_does_not_decide():
    found = judge(shown(week(4, 0.5), week(3, -0.02), week(2, -0.02), week(1, -0.02)), POLICY)
    assert found.figures["lower"] > 0  # the pool alone would have promoted
    assert found.verdict == NOT_ENOUGH
    assert "one week carries everything" in found.reasons[0]


def test_a_challenger_that_is_worse_itself_is_kept_back_however_good_its_forebears():
    found = judge(shown(week(4, -0.1), week(3, 0.3), week(2, 0.3)), POLICY)
    assert found.figures["lower"] > 0
    assert found.verdict == KEEP
    assert "this challenger on the fresh window" in found.reasons[0]


def test_only_the_newest_windows_count():
    old = [week(number, -0.5) for number in range(10, 15)]
    found = judge(shown(week(4, 0.08), *old, week(3, 0.08), week(2, 0.08), week(1, 0.08)), POLICY)
    assert [each["as_of"] for each in found.figures["windows"]] == ["week 3", "week 2", "week 1", "week 4"]
    assert found.promote


def test_the_same_users_week_after_week_are_no_new_evidence():
    """Four copies of one week: as many users as one week has, and its interval."""
    one = week(1, 0.03)
    copies = [replace(one, as_of=str(number)) for number in range(4)]
    assert pool(copies).change.bound(0.05) == pytest.approx(pool([one]).change.bound(0.05))


def test_an_old_champion_yields_to_what_is_not_worse_at_its_first_window():
    found = judge(replace(shown(week(1, 0.02, 0.02)), champion_age_days=29.0), POLICY)
    assert (found.verdict, found.track) == (PROMOTE, "freshness")
    assert not judge(replace(shown(week(1, -0.05, 0.02)), champion_age_days=29.0), POLICY).promote


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"users": None}, "who the users are"),
        ({"users": np.where(USERS == "u00001", "u00000", USERS)}, "who the users are"),
        ({"earlier": (replace(week(1, 0.1), users=USERS[:-1]),)}, "other users than it scored"),
        ({"earlier": (replace(week(1, 0.1), users=np.where(USERS == "u00001", "u00000", USERS)),)}, "two rows of one user"),
        ({"earlier": (replace(week(1, 0.1), challenger=np.full(N, np.nan)),)}, "no number in"),
        ({"champion": None}, "no champion that was judged"),
        ({"failed": {"earlier windows": "StateError: gone"}}, "earlier windows could not be measured: StateError: gone"),
    ],
)
def test_windows_that_cannot_be_joined_never_promote(changes: dict[str, Any], reason: str):
    found = judge(replace(shown(week(2, 0.2), week(1, 0.2), incumbents={"popular": np.zeros(N)}), **changes), POLICY)
    assert not found.promote
    assert any(reason in said for said in found.reasons), found.reasons


START = utc("2025-03-03")


def about(number: int, **changes: str) -> About:
    start = START + timedelta(days=7 * number)
    plain = About(
        (start + timedelta(days=7)).isoformat(), start.isoformat(), (start + timedelta(days=7)).isoformat(), "c" * 64, f"{number:064d}", "r"
    )
    return replace(plain, **changes)


def kept(home: Home, number: int, **changes: str) -> dict[str, Any]:
    """Judge a week; return the ledger's entry."""
    said = about(number, **changes)
    window = replace(week(number, 0.1), as_of=said.as_of)
    return {
        "as_of": said.as_of,
        "champion_before": 1,
        "figures": {"evidence": evidence_windows.write(home, said, window), "alpha_spent": 0.01},
    }


def test_what_was_judged_comes_back_as_it_was(home: Home):
    entries = [kept(home, number) for number in range(3)]
    found = evidence_windows.earlier(home, entries, about(3), 3)
    assert [window.as_of for window in found] == [entry["as_of"] for entry in entries]
    assert (found[0].users == USERS).all()
    assert (found[0].challenger == week(0, 0.1).challenger).all()
    assert [window.as_of for window in evidence_windows.earlier(home, entries, about(3), 1)] == [entries[2]["as_of"]]
    assert kept(home, 1) == entries[1]  # judged again: the same bytes


def test_other_recipes_champions_and_overlapping_weeks_are_left_out(home: Home):
    other = [kept(home, 0, recipe="s"), kept(home, 1, champion="d" * 64)]
    day = about(3)
    overlapping = kept(
        home, 3, start=(utc(day.start) - timedelta(days=1)).isoformat(), as_of=(utc(day.as_of) - timedelta(days=1)).isoformat()
    )
    assert evidence_windows.earlier(home, [*other, overlapping], day, 3) == []


def test_a_window_that_was_judged_and_is_gone_or_changed_stops_the_gate(home: Home):
    entry = kept(home, 0)
    table = home.root / entry["figures"]["evidence"]["folder"] / evidence_windows.TABLE
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + b"x")
    with pytest.raises(StateError, match="differ from its manifest"):
        evidence_windows.earlier(home, [entry], about(1), 3)
    evidence_windows.write(home, about(0), replace(week(0, 0.9), as_of="another"))  # a sound folder of other numbers
    with pytest.raises(StateError, match="other numbers than were judged"):
        evidence_windows.earlier(home, [entry], about(1), 3)


def test_looks_are_counted_by_what_they_spent():
    entries = [
        {"champion_before": 1, "figures": {"alpha_spent": 0.03}},
        {"champion_before": 1, "figures": {"alpha_spent": 0.0}},
        {"champion_before": 1, "figures": {}},
        {"champion_before": 2, "figures": {"alpha_spent": 0.03}},
        {"champion_before": 1},
    ]
    assert gate.looks(entries, 1) == 1
