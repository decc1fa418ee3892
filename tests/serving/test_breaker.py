"""A breaker opens within a second of trouble, whatever the rate, and closes within ten of the recovery."""

import pytest

from pipelines.serving.breaker import Breaker, Open
from pipelines.serving_policies import BreakerPolicy


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answered(*, well: bool) -> None:
    if not well:
        raise TimeoutError("20 ms")


def lives(rate: float, trouble_from: float, trouble_until: float, seconds: float) -> list[tuple[float, str]]:
    """Return (second, fate) of calls at a rate to a thing that is in trouble for some time."""
    ticks, fates = Ticks(), []
    breaker = Breaker("store", BreakerPolicy(), ticks=ticks)
    for n in range(int(seconds * rate)):
        ticks.now = n / rate
        try:
            with breaker.guarding():
                answered(well=not trouble_from <= ticks.now < trouble_until)
            fates.append((ticks.now, "well"))
        except Open:
            fates.append((ticks.now, "refused"))
        except TimeoutError:
            fates.append((ticks.now, "failed"))
    return fates


@pytest.mark.parametrize("rate", [2, 10, 1000])
def test_it_opens_within_a_second_of_trouble_and_closes_within_ten_of_recovery(rate):
    fates = lives(rate, 5.0, 65.0, 90.0)
    first_refused = next(at for at, fate in fates if fate == "refused")
    assert first_refused - 5.0 <= 1.0 + 1 / rate
    assert max(at for at, fate in fates if fate == "refused") - 65.0 <= 10.0
    assert sum(fate == "failed" for _, fate in fates) <= 3 + 60 / 5 + 3  # who waits in a minute of trouble: three, then the probes


def test_one_failure_among_many_that_went_well_opens_nothing():
    ticks = Ticks()
    breaker = Breaker("store", BreakerPolicy(), ticks=ticks)
    for n in range(1000):
        ticks.now += 0.1
        breaker.failed("x") if n % 3 else breaker.succeeded()
    assert (breaker.state, breaker.opened) == ("closed", 0)


def test_one_call_alone_probes():
    ticks = Ticks()
    breaker = Breaker("store", BreakerPolicy(failures=1), ticks=ticks)
    breaker.failed("gone")
    with pytest.raises(Open, match="store: not asked for another 1000 ms after gone"):
        breaker.enter()
    ticks.now = 1.0
    assert breaker.state == "half_open"
    breaker.enter()
    with pytest.raises(Open):
        breaker.enter()
    breaker.succeeded()
    breaker.enter()
    assert breaker.state == "closed"


def test_a_probe_that_never_comes_back_does_not_keep_the_others_out_for_good():
    ticks = Ticks()
    breaker = Breaker("store", BreakerPolicy(failures=1), ticks=ticks)
    breaker.failed("gone")
    ticks.now = 1.0
    breaker.enter()
    ticks.now = 2.0
    breaker.enter()


def test_what_began_before_the_trouble_and_ends_well_does_not_close_it():
    breaker = Breaker("store", BreakerPolicy(failures=1), ticks=Ticks())
    breaker.failed("gone")
    breaker.succeeded()
    assert breaker.state == "open"
