from typing import Any

import pytest
from pydantic import ValidationError

from pipelines import misfit
from pipelines.config import Settings
from pipelines.sources.mapping import Mapping


def _said(model: Any, content: dict[str, Any], under: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(content)
    return misfit.said(caught.value, model, under)


def test_a_mistyped_name_is_told_its_near_miss_of_the_place_where_it_stands():
    assert _said(Settings, {"gate": {"min_usrs": 2}}, "settings.") == "settings.gate.min_usrs: no such name; did you mean 'min_users'?"
    assert _said(Settings, {"gaet": {}}) == "gaet: no such name; did you mean 'gate'?"


def test_a_place_is_found_through_lists_named_entries_and_optional_forms():
    events = {"user_id": "u", "item_id": "i", "event_type": {"constant": "view"}, "event_at": "t"}
    assert "did you mean 'file'?" in _said(Mapping, {"files": {"a": "a.csv"}, "events": {**events, "join": [{"flie": "a", "on": "k"}]}})
    assert "files.a.separater: no such name; did you mean 'separator'?" in _said(
        Mapping, {"files": {"a": {"separater": ";"}}, "events": events}
    )
    assert "events.value.facter: no such name; did you mean 'factor'?" in _said(
        Mapping, {"events": {**events, "value": {"column": "v", "facter": 2}}}
    )


def test_a_name_that_is_near_to_none_is_told_what_there_is():
    assert _said(Settings, {"search": {"colour": 1}}) == "search.colour: no such name; there are n_trials, seconds, seed"


def test_a_value_that_does_not_fit_is_shown():
    assert _said(Settings, {"gate": {"min_users": "many"}}).endswith("(got 'many')")
