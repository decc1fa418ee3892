"""A rate and a queue, on paper."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
from processes import ended, process

from pipelines.serving.limits import Buckets, Lateness, Overloaded, Turnstile
from pipelines.serving_policies import LimitPolicy


def test_a_bucket_holds_a_second_of_tokens_and_gains_them_back() -> None:
    """Two a second: two at once, then one every half second; never more than two however long one waits."""
    buckets = Buckets()
    assert [buckets.take("a", 2.0, 10.0) for _ in range(3)] == [0.0, 0.0, 0.5]
    assert buckets.take("a", 2.0, 10.25) == 0.25
    assert [buckets.take("a", 2.0, 10.5), buckets.take("a", 2.0, 10.5)] == [0.0, 0.5]
    assert [buckets.take("a", 2.0, 99.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_a_rate_below_one_still_lets_one_through() -> None:
    buckets = Buckets()
    assert [buckets.take("a", 0.1, 0.0), buckets.take("a", 0.1, 0.0), buckets.take("a", 0.1, 10.0)] == [0.0, 10.0, 0.0]


def test_clients_do_not_share_and_a_full_table_still_answers() -> None:
    buckets = Buckets(slots=8)
    assert [buckets.take(str(client), 1.0, 1.0) for client in range(200)].count(0.0) > 100
    fresh = Buckets()
    assert all(fresh.take(str(client), 1.0, 1.0) == 0.0 for client in range(500))


def _drain(file: Path, salt: bytes) -> None:
    buckets = Buckets(file, salt)
    os._exit(sum(buckets.take("a", 50.0, 5.0) == 0.0 for _ in range(100)))


def test_processes_share_one_bucket(tmp_path: Path) -> None:
    drained = [ended([process(_drain, tmp_path / "rates", b"salt")])[0] for _ in range(2)]
    assert sum(drained) == 50


def test_who_would_wait_too_long_is_told_at_once() -> None:
    async def scene() -> None:
        turnstile = Turnstile(LimitPolicy(max_waiting=2))
        gate = threading.Event()
        first = [asyncio.create_task(turnstile.through(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await turnstile.through(gate.wait)
        gate.set()
        assert await asyncio.gather(*first) == [True, True]
        assert await turnstile.through(lambda: 7) == 7
        turnstile.close()

    asyncio.run(scene())


def test_the_queue_is_as_long_as_answers_are_quick() -> None:
    """At 20 ms an answer and 40 ms of patience the third in line is let in, the fourth not."""

    async def scene() -> None:
        turnstile = Turnstile(LimitPolicy(max_waiting=100, max_wait_ms=40.0))
        turnstile.mean_seconds = 0.020
        gate = threading.Event()
        line = [asyncio.create_task(turnstile.through(gate.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await turnstile.through(gate.wait)
        gate.set()
        await asyncio.gather(*line)
        turnstile.close()

    asyncio.run(scene())


def test_what_the_work_raises_comes_back_and_frees_its_place() -> None:
    async def scene() -> None:
        turnstile = Turnstile(LimitPolicy())
        with pytest.raises(ZeroDivisionError):
            await turnstile.through(lambda: 1 / 0)
        assert turnstile.waiting == 0
        turnstile.close()

    asyncio.run(scene())


def test_answers_are_given_one_at_a_time() -> None:
    most = now = 0

    def work() -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        time.sleep(0.001)
        now -= 1

    async def scene() -> None:
        turnstile = Turnstile(LimitPolicy(max_wait_ms=1e6))
        await asyncio.gather(*(turnstile.through(work) for _ in range(20)))
        turnstile.close()

    asyncio.run(scene())
    assert most == 1


def test_a_loop_that_is_late_twice_in_a_row_is_late_and_one_stall_is_not() -> None:
    async def stalled(times: int) -> float:
        lateness = Lateness()
        lateness.seconds()
        await asyncio.sleep(2.5 * Lateness.EVERY_SECONDS)
        for _ in range(times):
            time.sleep(0.3)
            await asyncio.sleep(0.0)
            await asyncio.sleep(0.0)
        return lateness.seconds()

    assert asyncio.run(stalled(0)) < 0.1
    assert asyncio.run(stalled(1)) < 0.1
    assert asyncio.run(stalled(3)) > 0.1


def test_a_loop_that_was_late_is_forgiven_and_another_loop_is_not_blamed() -> None:
    lateness = Lateness()

    async def late() -> tuple[float, float]:
        lateness.seconds()
        for _ in range(4):
            time.sleep(0.2)
            await asyncio.sleep(0.0)
            await asyncio.sleep(0.0)
        held_up = lateness.seconds()
        for _ in range(100):
            await asyncio.sleep(Lateness.EVERY_SECONDS)
            if lateness.seconds() < 0.05:
                break
        return held_up, lateness.seconds()

    held_up, after = asyncio.run(late())
    assert held_up > 0.1
    assert after < 0.1

    async def other() -> float:
        return lateness.seconds()

    assert asyncio.run(other()) == 0.0
