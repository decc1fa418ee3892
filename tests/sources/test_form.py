"""The filled-in form of the ingest Dag: typed, bounded, and what its empty fields mean."""

from datetime import UTC, datetime

import pytest

from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.sources.form import Form
from pipelines.sources.request import Request, Source
from pipelines.window import Window


def test_an_empty_form_on_an_empty_lake_asks_for_the_shops_first_eight_weeks(home: Home):
    windows = Form().windows(home)
    assert len(windows) == 8
    assert (windows[0].start, windows[-1].end) == (datetime(2025, 1, 6, tzinfo=UTC), datetime(2025, 3, 3, tzinfo=UTC))


def test_as_of_is_what_was_asked_else_the_end_of_the_last_window():
    window = Window.parse("2025-01-06", "2025-01-13")
    assert Form().settled([window]) == window.end
    assert Form(as_of="2025-01-20").settled([window]) == datetime(2025, 1, 20, tzinfo=UTC)


def test_a_range_is_cut_into_batches_of_the_days_asked(home: Home):
    form = Form.parse({"from": "2025-02-03", "to": "2025-02-06", "batch_days": 2})
    assert [str(window) for window in form.windows(home)] == ["2025-02-03..2025-02-05", "2025-02-05..2025-02-06"]


def test_the_request_takes_the_fields_of_the_world_and_leaves_the_rest_at_their_defaults():
    request = Form.parse({"users": 300, "faults": ["nulls@2025-01-07"], "shifts": None}).request()
    assert request.source is Source.SIMULATED
    assert (request.world.users, request.world.items, request.world.faults, request.world.shifts) == (300, 5_000, ("nulls@2025-01-07",), ())


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"source": "shell"}, "source"),
        ({"users": "{{ 7 * 7 }}"}, "users"),
        ({"batch_days": 0}, "batch_days"),
        ({"command": "id"}, "command"),
        ({"faults": "nulls"}, "faults"),
    ],
)
def test_a_wrong_value_is_named(params, named):
    with pytest.raises(SourceError, match=named):
        Form.parse(params)


def test_a_place_is_the_same_batch_from_wherever_it_is_named(tmp_path, monkeypatch):
    """The Dags run in another folder than the command line that asks for them."""
    window = Window.parse("2025-01-06", "2025-01-13")
    monkeypatch.chdir(tmp_path)
    relative, absolute = (Request(source=Source.TABLE, path=path) for path in ("shop/./events.csv", tmp_path / "shop" / "events.csv"))
    assert relative.path == absolute.path
    assert relative.identity(window) == absolute.identity(window)


def test_a_scheme_reaches_the_guard_as_it_was_written():
    assert str(Request(path="s3://bucket/key").path) == "s3:/bucket/key"
