from datetime import UTC, datetime

import pytest

from pipelines import run
from pipelines.config import Settings
from pipelines.errors import ReloopError
from pipelines.sources.request import Request, World
from pipelines.window import Window

SPAN = Window.parse("2025-01-06", "2025-03-10")


def _plan(**knobs):
    return run.plan(Request(), SPAN, Settings(), **{"step_days": 7, "warmup_days": 56, "batch_days": 7, **knobs})


def test_the_simulated_run_is_a_warm_up_and_then_a_week_each():
    assert [str(window) for window in _plan().windows] == ["2025-01-06..2025-03-03", "2025-03-03..2025-03-10"]


def test_the_warm_up_is_what_training_needs_unless_it_is_said():
    first = _plan(warmup_days=None).windows[0]
    assert len(first.days()) == 14 + 3 * 7


def test_a_span_of_decades_becomes_a_long_warm_up_and_a_bounded_number_of_cycles():
    decades = Window.parse("1996-03-29", "2018-09-25")
    windows = run.plan(Request(), decades, Settings(), step_days=7, warmup_days=None, batch_days=7).windows
    assert len(windows) == run.MAX_CYCLES + 1
    assert (windows[0].start, windows[-1].end) == (decades.start, decades.end)


def test_the_cycles_tile_the_span_and_the_last_may_be_short():
    windows = _plan(step_days=5, warmup_days=50).windows
    assert windows[0].start == SPAN.start
    assert windows[-1].end == SPAN.end
    assert all(left.end == right.start for left, right in zip(windows, windows[1:], strict=False))  # noqa: RUF007 - reads as the claim


def test_a_span_shorter_than_the_warm_up_is_refused_with_a_way_out():
    with pytest.raises(ReloopError, match=r"at least the 70 days.*--warmup-days"):
        _plan(warmup_days=70)


def test_the_ingest_form_carries_every_knob_of_the_world_and_the_moment():
    request = Request(world=World(users=10, faults=("nulls@2025-02-01",)))
    (first, *_) = run.plan(request, SPAN, Settings(), step_days=7, warmup_days=56, batch_days=7).configurations()
    assert first["users"] == 10
    assert first["faults"] == ["nulls@2025-02-01"]
    assert datetime.fromisoformat(first["as_of"]) == datetime(2025, 3, 3, tzinfo=UTC)


def test_a_line_still_being_written_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    lines, position = run._lines(path, 0)
    assert lines == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert run._lines(path, position)[0] == [{"a": 2}]
