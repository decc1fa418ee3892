"""The service's clock: the machine's, or one that starts where it is told."""

from __future__ import annotations

import pickle
import time
from datetime import UTC, timedelta

import pytest

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import clock
from pipelines.window import utc


def test_a_clock_starts_where_it_is_told_and_goes_on_with_real_seconds(home: Home) -> None:
    made = clock.starting(home, "2025-03-01T12:00")
    assert made is not None
    first = made()
    time.sleep(0.01)
    assert utc("2025-03-01T12:00") <= first < made() < first + timedelta(seconds=60)
    assert pickle.loads(pickle.dumps(made)).moment == made.moment


def test_the_machines_clock_is_none_of_ours(home: Home) -> None:
    assert clock.starting(home, "wall") is None
    assert clock.wall().tzinfo is UTC


@pytest.mark.parametrize("said", ["data", "yesterday", "", "2025-13-01"])
def test_what_is_no_moment_is_refused(home: Home, said: str) -> None:
    with pytest.raises(StateError):
        clock.starting(home, said)


def test_data_is_the_end_of_the_lake(served: Home) -> None:
    made = clock.starting(served, "data")
    assert made is not None
    assert made.moment == utc("2025-02-17")
