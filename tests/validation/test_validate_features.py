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
}


def publish_marts(home, **changes) -> None:
    for mart, columns in MARTS.items():
        rows = {**columns, "as_of": [AS_OF] * 2, "available_at": [AS_OF] * 2, **changes.get(mart, {})}
        publish.write_parquet(home.features / mart / f"as_of={AS_OF:%Y-%m-%d}.parquet", pa.table(rows))


def test_sound_marts_pass_and_are_recorded(home):
    publish_marts(home)
    checkpoint.validate_features(home, AS_OF)
    (record,) = cycle.records(home, AS_OF, "feature_validation")
    assert record["verdict"] == "passed"
    assert record["expectations"] == 27
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
    with pytest.raises(ValidationBlocked, match=r"item_daily: no rows for 2025-01-13"):
        checkpoint.validate_features(home, AS_OF)
