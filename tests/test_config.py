import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines import config
from pipelines.config import Home, Settings
from pipelines.errors import StateError


def test_settings_survive_a_round_trip_through_json():
    settings = Settings()
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().gate.min_users = 1  # type: ignore[misc]


def test_the_source_that_filled_the_lake_brings_its_preset_and_the_file_wins_over_it(home: Home):
    config.source_file(home).parent.mkdir(parents=True)
    config.source_file(home).write_text(json.dumps({"source": "movielens", "settings": {"ranking": {"num_leaves": 7}}}))
    assert config.load(home).training.exclude_seen is True
    assert config.load(home).ranking.num_leaves == 7
    (home.root / "reloop.toml").write_text("[training]\nexclude_seen = false\n")
    settings = config.load(home)
    assert settings.training.exclude_seen is False
    assert settings.training.horizon_days == 14, "the rest of the preset stays"


def test_a_misspelt_knob_is_named_with_what_is_allowed(home: Home):
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text("[ranking]\nleaves = 3\n")
    with pytest.raises(StateError, match=r"ranking\.leaves: no such name; did you mean .num_leaves.*expected sections"):
        config.load(home)


def test_a_file_that_is_no_toml_is_named(home: Home):
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text("ranking: {}\n")
    with pytest.raises(StateError, match=r"reloop\.toml.*expected TOML"):
        config.load(home)


def test_all_state_lies_under_one_folder(home: Home):
    places = [getattr(home, name) for name, member in vars(Home).items() if isinstance(member, property)]
    assert len(places) > 10
    assert all(Path(place).is_relative_to(home.root) for place in places)


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ({"ranking": {"negatives_per_user": 0}}, "ranking.negatives_per_user"),
        ({"ranking": {"features": []}}, "ranking.features"),
        ({"ranking": {"encoding_smoothing": float("inf")}}, "ranking.encoding_smoothing"),
        ({"fairness": {"max_popularity_lift": float("nan")}}, "fairness.max_popularity_lift"),
        ({"rerank": {"purchased": {"within_days": 1e300}}}, "rerank.purchased.within_days"),
        ({"rerank": {"mmr": True, "likeness": {"by": "vectors", "source": "bpr"}}}, "rerank.likeness.source is 'bpr'"),
    ],
)
def test_what_would_stop_a_training_late_is_refused_at_once(said, place):
    with pytest.raises(ValidationError, match=place):
        Settings.model_validate(said)
