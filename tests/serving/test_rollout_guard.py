"""The guard: what harms is found within a minute, what does not is left alone; each bound by itself, on paper where paper will do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from canary_lab import Fault, World, rolled_out
from scipy import stats

from pipelines.serving import guard
from pipelines.serving.rollout import moved
from pipelines.serving.tally import EDGES_MS, LATENCIES, SCORES, Figures, latency_bin
from pipelines.serving_policies import RolloutPolicy

POLICY = RolloutPolicy()
LEVEL = 1e-6


def healthy(requests: int, **over: int) -> Figures:
    """Return figures of a release that answers in 8 ms, in standardised scores that are spread evenly."""
    latency = np.zeros(LATENCIES, np.int64)
    latency[latency_bin(8.0)] = requests
    scores = np.full(SCORES, requests * 10 // (SCORES - 1), np.int64)
    scores[-1] = 0
    return replace(Figures(requests, 0, 0, 0, max(requests - 1, 0), 0, latency, scores), **over)


def test_hits_that_fall_on_one_side_are_an_urn_s_draw() -> None:
    """Three hits among 4 + 8, all on the 4: 4 of the 220 triples, 1 in 55."""
    chance = 4 / 220
    assert guard.drawn(3, 4, 0, 8, margin=0.01, level=chance * 1.01)
    assert not guard.drawn(3, 4, 0, 8, margin=0.01, level=chance * 0.99)
    assert not guard.drawn(3, 4, 0, 8, margin=0.8, level=0.5), "0.75 is no more than 0.8 above 0"


def test_a_margin_that_is_surely_exceeded_holds_for_any_share_of_control() -> None:
    """Nothing of 100 leaves control a share of 1 - (level / 2)^(1/100) at most."""
    plausible = 1 - (0.01 / 2) ** (1 / 100)
    tail = stats.binom.sf(9, 50, plausible + 0.01)
    assert guard.exceeds(10, 50, 0, 100, margin=0.01, level=0.01) == bool(tail < 0.005)
    assert not guard.exceeds(50, 50, 100, 100, margin=0.0, level=0.01), "control fails always, too"


@pytest.mark.parametrize(("n", "m"), [(0, 100), (100, 0), (0, 0)])
def test_nothing_is_told_of_nothing(n: int, m: int) -> None:
    assert not guard.drawn(n, n, 0, m, margin=0.0, level=1.0)
    assert not guard.exceeds(n, n, 0, m, margin=0.0, level=1.0)
    assert guard.judged(healthy(n), healthy(m), POLICY, LEVEL, late=True).broken == ()


@pytest.mark.parametrize("late", [True, False])
def test_each_fault_breaks_its_own_bound_and_no_other(late: bool) -> None:
    slow = np.zeros(LATENCIES, np.int64)
    slow[latency_bin(58.0)] = 600
    flat = np.zeros(SCORES, np.int64)
    flat[-1] = 6000
    faults = {
        "failed": healthy(600, failed=60),
        "empty": healthy(600, empty=60),
        "lower": healthy(600, lower=120),
        "same": healthy(600, same=590),
        "p50": replace(healthy(600), latency=slow),
        "scores": replace(healthy(600), scores=flat),
    }
    for name, figures in faults.items():
        broken = guard.judged(figures, healthy(6000), POLICY, LEVEL, late=late).broken
        assert {line.partition(" ")[0].rstrip(":").replace("p90", "p50").replace("p99", "p50") for line in broken} == {name}
    assert guard.judged(healthy(600), healthy(6000), POLICY, LEVEL, late=late).broken == ()


def test_a_slow_tail_is_found_where_control_has_answers_enough_to_say_what_its_own_is() -> None:
    tail = healthy(2000)
    latency = tail.latency.copy()
    latency[latency_bin(8.0)] -= 100
    latency[latency_bin(200.0)] += 100  # five of a hundred
    found = guard.slower_than(replace(tail, latency=latency), healthy(20_000), 0.99, relative=0.25, absolute_ms=10, level=LEVEL)
    assert found == pytest.approx(EDGES_MS[latency_bin(8.0)] * 1.25 + 10)
    few = guard.slower_than(replace(tail, latency=latency), healthy(500), 0.99, relative=0.25, absolute_ms=10, level=LEVEL)
    assert few is None, "500 answers do not tell a p99 at this level"


def test_what_may_be_wrong_is_shared_out_over_looks_steps_and_tests() -> None:
    seconds, steps = POLICY.most_step_seconds, len(POLICY.shares)
    looks = int(seconds / POLICY.look_seconds)
    spent = sum(guard.alpha(POLICY, look * POLICY.look_seconds, seconds, steps) for look in range(1, looks + 1))
    assert spent * steps * guard.TESTS == pytest.approx(POLICY.false_alarm_rate)


def test_a_canary_waits_for_requests_and_time_and_goes_on_step_by_step() -> None:
    enough, few = (healthy(600), healthy(9000)), (healthy(499), healthy(9000))
    assert moved(0.01, 299, enough, enough, POLICY).to == "wait"
    assert moved(0.01, 301, few, few, POLICY).to == "wait"
    assert [moved(share, 301, enough, enough, POLICY).share for share in (0.01, 0.1, 0.5)] == [0.1, 0.5, 1.0]
    assert moved(0.5, 301, enough, enough, POLICY).to == "promote"
    ended = moved(0.01, POLICY.most_step_seconds, few, few, POLICY)
    assert (ended.to, ended.reasons) == ("end", (f"499 requests in {POLICY.most_step_seconds:.0f} s: not the 500 that it takes to go on",))
    nothing = (healthy(0), healthy(0))
    assert moved(0.01, 10**9, nothing, nothing, POLICY).to == "end", "no figures never count as health"


@pytest.mark.parametrize(
    "fault",
    [Fault("5% errors", failed=0.05), Fault("+50 ms", slower_ms=50), Fault("NaN scores", lower=1.0), Fault("the same for all", same=0.98)],
    ids=lambda fault: fault.name,
)
def test_a_fault_is_rolled_back_within_a_minute_at_a_hundred_requests_a_second(fault: Fault) -> None:
    ended = rolled_out(POLICY, 100, 11, fault, 0.1)
    assert not ended.promoted
    assert ended.detected <= 60


def test_an_equal_challenger_is_promoted() -> None:
    ended = rolled_out(POLICY.model_copy(update={"step_seconds": 60.0, "step_requests": 20}), 20, 3)
    assert ended.promoted
    assert ended.reasons[0].endswith("no bound broken")


def test_users_in_the_lab_differ_so_that_its_requests_are_no_independent_evidence() -> None:
    world = World(100, 1)
    assert world.fails.max() > 100 * world.fails.mean()
    assert world.pace.max() > 20 * world.pace.mean()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_three_hundred_equal_challengers_one_in_a_hundred_at_most_is_rolled_back() -> None:
    """Upper bound of the share by Clopper and Pearson, 95%: nothing in 300 is below one in a hundred."""
    fast = POLICY.model_copy(update={"step_seconds": 120.0, "step_requests": 200})
    wrong = sum(not rolled_out(fast, 30, seed).promoted for seed in range(300))
    assert stats.beta.ppf(0.95, wrong + 1, 300 - wrong) <= 0.01
