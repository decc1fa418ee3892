"""Folds never let a model see what it is judged on."""

from datetime import timedelta

import pytest

from pipelines.config import TrainingSettings
from pipelines.datasets.split import folds
from pipelines.errors import NotEnoughData
from pipelines.window import utc

AS_OF = utc("2025-03-29")


def test_folds_tile_the_weeks_before_as_of_oldest_first():
    found = folds(AS_OF, TrainingSettings(horizon_days=7, ranker_windows=2))
    assert [(f.name, f"{f.cutoff:%m-%d}", str(f.window)) for f in found] == [
        ("rank_1", "03-08", "2025-03-08..2025-03-15"),
        ("rank_2", "03-15", "2025-03-15..2025-03-22"),
        ("judge", "03-22", "2025-03-22..2025-03-29"),
    ]


def test_the_label_gap_lies_between_the_cutoff_and_the_window():
    for fold in folds(AS_OF, TrainingSettings(label_gap_days=2)):
        assert fold.window.start - fold.cutoff == timedelta(days=2)


@pytest.mark.parametrize(
    ("days", "names"),
    [(60, ["rank_1", "rank_2", "judge"]), (35, ["rank_1", "rank_2", "judge"]), (34, ["rank_1", "judge"]), (28, ["rank_1", "judge"])],
)
def test_short_history_drops_the_oldest_ranker_windows(days, names):
    found = folds(AS_OF, TrainingSettings(min_history_days=14), first=AS_OF - timedelta(days=days))
    assert [f.name for f in found] == names
    assert found[0].cutoff - (AS_OF - timedelta(days=days)) >= timedelta(days=14)


def test_too_short_a_history_says_how_much_is_needed():
    with pytest.raises(NotEnoughData, match=r"27\.0 days; expected at least 28 days") as caught:
        folds(AS_OF, TrainingSettings(min_history_days=14), first=AS_OF - timedelta(days=27))
    assert "min_history_days" in caught.value.hint


def test_no_ranker_window_is_never_enough():
    with pytest.raises(NotEnoughData):
        folds(AS_OF, TrainingSettings(ranker_windows=0))
