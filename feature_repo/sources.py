"""Where features lie: the marts that dbt publishes, one Parquet file a day."""

import os
from pathlib import Path

from feast import FileSource
from feast.data_format import ParquetFormat

OWN = Path(__file__).resolve().parents[1] / "var"
HOME = Path(os.environ.get("RELOOP_HOME", OWN)).resolve()
if OWN.resolve() != HOME and "FEAST_FS_YAML_FILE_PATH" not in os.environ:
    # feature_store.yaml beside this file is about var/: its registry would be told of another folder's features.
    raise SystemExit(f"RELOOP_HOME is {HOME}; let Feast follow: export FEAST_FS_YAML_FILE_PATH={HOME}/feast/feature_store.yaml")


def mart(name: str, description: str) -> FileSource:
    """Return the source of one mart: every day's file, dated by the day up to which it knows the world."""
    return FileSource(
        name=name,
        path=str(HOME / "features" / name / "*.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="as_of",
        created_timestamp_column="available_at",
        description=description,
        owner="features",
    )


user_daily_source = mart("user_daily", "dbt mart user_daily: one row per user and day.")
item_daily_source = mart("item_daily", "dbt mart item_daily: one row per item and day.")
user_category_daily_source = mart("user_category_daily", "dbt mart user_category_daily: one row per user, category and day.")
user_brand_daily_source = mart("user_brand_daily", "dbt mart user_brand_daily: one row per user, brand and day.")
item_pairs_daily_source = mart("item_pairs_daily", "dbt mart item_pairs_daily: one row per item, other item and day.")
