"""Feature marts are checked before anybody uses them."""

from datetime import timedelta

import pyarrow as pa
import pytest
from small_shop import START

from pipelines import cycle, publish
from pipelines.errors import ValidationBlocked
from pipelines.validation import checkpoint

AS_OF = START + timedelta(days=7)
MARTS = {
    "user_daily": {"user_id": ["u1", "u2"], "purchases_7d": [1, 0], "purchase_rate_7d": [0.5, None], "spend_7d": [-3.0, 2.0]},
    "item_daily": {"item_id": ["i1", "i2"], "views_7d": [4, 9]},
    "user_category_daily": {"user_id": ["u1", "u1"], "category": ["a", "b"], "views_7d": [4, 9]},
    "user_session": {"user_id": ["u1", "u2"], "session_events": [4, 9]},
    "user_brand_daily": {"user_id": ["u1", "u1"], "brand": ["a", "b"], "events_30d": [4, 9]},
    "item_pairs_daily": {"item_id": ["i1", "i2"], "other_item_id": ["i2", "i1"], "co_views_30d": [3, 3]},
}


def publish_marts(home, day=AS_OF, empty=(), **changes) -> None:
    for mart, columns in MARTS.items():
        rows = pa.table({**columns, "as_of": [day] * 2, "available_at": [day] * 2, **changes.get(mart, {})})
        publish.write_parquet(home.features / mart / f"as_of={day:%Y-%m-%d}.parquet", rows.slice(0, 0) if mart in empty else rows)


def test_sound_marts_pass_and_are_recorded(home):
    publish_marts(home)
    checkpoint.validate_features(home, AS_OF)
    (record,) = cycle.records(home, AS_OF, "feature_validation")
    assert record["verdict"] == "passed"
    assert record["expectations"] == 60
    assert (home.reports / "gx" / "validations" / "features_user_daily").is_dir()


FAULTS = {
    "null key": ({"user_id": ["u1", None]}, r"user_daily: column user_id is null in 1 of 2 rows"),
    "repeated key": ({"user_id": ["u1", "u1"]}, r"user_daily: key \(user_id\) repeats in 1 of 2 rows"),
    "wrong as_of": ({"as_of": [AS_OF, AS_OF - timedelta(days=1)]}, r"user_daily: column as_of is not 2025-01-13 in 1 of 2 rows"),
    "known too early": (
        {"available_at": [AS_OF, AS_OF - timedelta(seconds=1)]},
        r"user_daily: column available_at is before as_of in 1 of 2 rows",
    ),
    "negative count": ({"purchases_7d": [1, -1]}, r"user_daily: column purchases_7d is negative in 1 of 2 rows"),
    "rate above one": ({"purchase_rate_7d": [0.5, 1.5]}, r"user_daily: column purchase_rate_7d is outside \[0, 1\] in 1 of 2 rows"),
    "NaN": ({"spend_7d": [1.0, float("nan")]}, r"user_daily: column spend_7d is not finite in 1 of 2 rows"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_mart_blocks_and_names_mart_column_and_count(home, fault):
    columns, message = FAULTS[fault]
    publish_marts(home, user_daily=columns)
    with pytest.raises(ValidationBlocked, match=message):
        checkpoint.validate_features(home, AS_OF)


def test_a_mart_that_was_not_built_blocks(home):
    with pytest.raises(ValidationBlocked, match=r"item_daily: 2025-01-13 was not built"):
        checkpoint.validate_features(home, AS_OF)


@pytest.mark.parametrize("mart", ["user_daily", "item_daily"])
def test_a_shop_without_users_or_items_blocks(home, mart):
    publish_marts(home, empty=(mart,))
    with pytest.raises(ValidationBlocked, match=rf"{mart}: no rows for 2025-01-13"):
        checkpoint.validate_features(home, AS_OF)


def test_a_source_without_categories_passes_and_says_so(home):
    publish_marts(home, empty=("user_category_daily",))
    checkpoint.validate_features(home, AS_OF)
    (record,) = cycle.records(home, AS_OF, "feature_validation")
    assert record["verdict"] == "passed"
    assert "user_category_daily: no rows for 2025-01-13" in record["failed"]["info"]


def test_what_is_bought_without_a_view_may_convert_above_one_and_never_below_zero(home):
    publish_marts(home, user_daily={"conversion_30d": [1.7, 0.0]})
    checkpoint.validate_features(home, AS_OF)
    publish_marts(home, user_daily={"conversion_30d": [-0.1, 0.0]})
    with pytest.raises(ValidationBlocked, match="conversion_30d is negative in 1 of 2 rows"):
        checkpoint.validate_features(home, AS_OF)


def test_a_moment_within_the_day_is_answered_by_the_rows_of_its_midnight(home):
    publish_marts(home)
    checkpoint.validate_features(home, AS_OF + timedelta(hours=9))


def test_every_day_the_cycle_built_is_checked_and_others_are_not(home):
    publish_marts(home)
    earlier = AS_OF - timedelta(days=2)
    publish_marts(home, earlier, user_daily={"purchases_7d": [1, -1]})
    checkpoint.validate_features(home, AS_OF)
    with cycle.stage(home, AS_OF, "features") as record:
        record["days"] = [str(earlier.date()), str(AS_OF.date())]
    with pytest.raises(ValidationBlocked, match=r"user_daily: column purchases_7d is negative in 1 of 2 rows"):
        checkpoint.validate_features(home, AS_OF)
    (home.features / "item_daily" / f"as_of={earlier:%Y-%m-%d}.parquet").unlink()
    with pytest.raises(ValidationBlocked, match=rf"item_daily: {earlier:%Y-%m-%d} was not built"):
        checkpoint.validate_features(home, AS_OF)
