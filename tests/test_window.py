import itertools
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ReloopError
from pipelines.window import DAY, Window, ceil_day, floor_day, micros, stamp, stamped, utc

moments = st.datetimes(
    datetime(1971, 1, 1), datetime(2199, 1, 1), timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
)


def test_a_window_holds_its_start_and_not_its_end():
    window = Window.parse("2025-01-06", "2025-01-08")
    assert datetime(2025, 1, 6, tzinfo=UTC) in window
    assert datetime(2025, 1, 7, 23, 59, 59, 999999, tzinfo=UTC) in window
    assert datetime(2025, 1, 8, tzinfo=UTC) not in window


def test_a_naive_time_is_utc_and_an_offset_is_converted():
    assert utc("2025-03-01") == datetime(2025, 3, 1, tzinfo=UTC)
    assert utc("2025-03-01T01:00:00+02:00") == datetime(2025, 2, 28, 23, tzinfo=UTC)


def test_text_that_is_no_date_is_named_with_what_is_allowed():
    with pytest.raises(ReloopError, match=r"as_of: 'yesterday'; expected an ISO 8601 date"):
        utc("yesterday")


def test_a_window_that_ends_before_it_starts_is_refused():
    with pytest.raises(ReloopError, match="a start before its end"):
        Window.parse("2025-01-08", "2025-01-06")


def test_a_day_of_daylight_saving_change_is_one_day():
    assert Window.parse("2025-03-30", "2025-03-31").days() == [date(2025, 3, 30)]


@given(start=moments, days=st.integers(1, 40), step=st.integers(1, 9))
def test_the_parts_of_a_split_tile_the_window(start: datetime, days: int, step: int):
    window = Window(start, start + timedelta(days=days))
    parts = list(window.split(step))
    assert parts[0].start == window.start
    assert parts[-1].end == window.end
    assert all(left.end == right.start for left, right in itertools.pairwise(parts))


@given(moment=moments)
def test_floor_and_ceiling_enclose_a_moment_within_a_day(moment: datetime):
    assert floor_day(moment) <= moment <= ceil_day(moment)
    assert ceil_day(moment) - floor_day(moment) in {timedelta(0), DAY}


@given(moment=moments)
def test_microseconds_are_exact(moment: datetime):
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros(moment)) == moment


def test_a_moment_in_a_name_is_read_back_and_nothing_else_is_taken_for_one():
    moment = utc("2025-03-03T06:30:00Z")
    assert stamp(moment) == "2025-03-03T063000"
    assert stamped(stamp(moment)) == moment
    for name in (".doomed.2025-03-03T063000", "2025-03-03", "2025-3-3T63000", "2025-02-30T000000", ".DS_Store", "2025-03-03T063000.tmp"):
        assert stamped(name) is None, name
