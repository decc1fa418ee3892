"""A wrong mapping says every key that is wrong, before a row is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import MappingError
from pipelines.sources import mapping

GOOD: dict[str, Any] = {"user_id": "u", "item_id": "i", "event_type": {"constant": "view"}, "event_at": "t"}


def test_a_bare_name_a_list_and_the_long_form_mean_the_same():
    short = mapping.parse({"events": {**GOOD, "item_id": ["a", "b"], "value": ["n", "p"]}}, "m")
    long = mapping.parse(
        {
            "events": {
                "user_id": {"column": "u"},
                "item_id": {"columns": ["a", "b"]},
                "event_type": {"constant": "view"},
                "event_at": {"column": "t"},
                "value": {"product": ["n", "p"]},
            }
        },
        "m",
    )
    assert short == long


def test_yaml_numbers_and_booleans_are_read_as_the_text_of_a_file():
    parsed = mapping.parse({"events": {**GOOD, "event_type": {"column": "k", "values": {1: "view", False: "purchase"}}}}, "m")
    assert parsed.events.event_type.values == {"1": "view", "false": "purchase"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "u"}, r"events.user: no such name; did you mean 'user_id'\?"),
        ({"event_type": {"constant": "stare"}}, r"\['stare'\] unknown; allowed are \['view', 'click'"),
        ({"event_type": {"column": "k", "constant": "view"}}, "say one of column, columns, first_of, flags or constant"),
        ({"event_at": {"column": "t", "zone": "Mars/Olympus"}}, "'Mars/Olympus' is no time zone"),
        ({"event_at": {"column": "t", "zone": "../../etc/passwd"}}, "is no time zone"),
        ({"event_at": {"sequence": "n", "step": "soon"}}, "write a step as a number and a unit"),
        ({"event_at": {"sequence": "n", "gap_days": "g"}}, "gap_days needs `per`"),
        ({"received_at": {"sequence": "n"}}, "a sequence can stand for event_at alone"),
        ({"item_id": {"column": "i", "pattern": "("}}, "is no regular expression"),
        ({"skip": [{"column": "x", "reason": "odd"}]}, "say one of missing, equals"),
        ({"skip": [{"column": "x", "missing": True, "reason": "<script>"}]}, "skip.0.reason"),
        ({"value": {"column": "x", "currency": {"column": "c", "rates": {"EUR": 0}}}}, "rates.EUR"),
        ({"value": {"column": "x", "factor": float("nan")}}, "factor"),
        ({"file": "log"}, r"\['log'\] not listed; `files` has \[\]"),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], said: str):
    with pytest.raises(MappingError, match=said):
        mapping.parse({"events": {**GOOD, **change}}, "m")


def test_every_mistake_is_said_at_once():
    with pytest.raises(MappingError) as caught:
        mapping.parse({"events": {"user_id": "u", "tiem": "t"}}, "my-map.yml")
    assert str(caught.value).startswith("my-map.yml: ")
    for key in ("events.item_id", "events.event_type", "events.event_at", "events.tiem"):
        assert key in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"path": "a.csv", "header": False}, "needs `columns"),
        ({"path": "a.csv", "decimal": ",", "thousands": ","}, "the same character"),
        ({"path": "a.csv", "thousands": "."}, "where `thousands` is said, say `decimal`, too"),
        ({"path": "a.csv", "separator": "-----"}, "one to four characters"),
        ({"path": "a.csv", "columns": ["a", "a"]}, "a name stands twice"),
    ],
)
def test_a_file_must_be_told_whole(spec: dict[str, Any], said: str):
    with pytest.raises(MappingError, match=said):
        mapping.parse({"files": {"log": spec}, "events": GOOD}, "m")


def test_settings_are_checked_and_limits_are_not_theirs_to_set():
    assert mapping.parse({"events": GOOD, "settings": {"training": {"horizon_days": 14}}}, "m").settings == {
        "training": {"horizon_days": 14}
    }
    with pytest.raises(
        MappingError, match=r"^m: settings.training.horizon_dyas: no such name; did you mean 'horizon_days'\? .*pipelines/config.py"
    ):
        mapping.parse({"events": GOOD, "settings": {"training": {"horizon_dyas": 14}}}, "m")
    with pytest.raises(MappingError, match=r"settings.sources"):
        mapping.parse({"events": GOOD, "settings": {"sources": {"max_ratio": 1e9}}}, "m")


def test_on_yes_and_dates_are_words(tmp_path: Path):
    (tmp_path / "map.yml").write_text(
        "files: {a: a.csv, b: b.csv}\nevents:\n  file: a\n  join: [{file: b, on: no}]\n  user_id: u\n  item_id: i\n"
        "  event_type: {column: k, values: {yes: purchase, no: view, 2024-01-01: click}}\n  event_at: {column: t, earliest: 2020-01-01}\n"
    )
    events = mapping.load(tmp_path / "map.yml").events
    assert events.join[0].on == {"no": "no"}
    assert events.event_type.values == {"yes": "purchase", "no": "view", "2024-01-01": "click"}
