"""The feature repository asked through stock Feast's own DuckDB store: the peer of ours, with its creation filter on."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from feast import FeatureStore, RepoConfig

from pipelines.config import Home
from pipelines.features import repository


class StockStore:
    """Stands where `repository.open_store` stands for a point-in-time join; stock Feast takes frames and keeps no order."""

    def __init__(self, home: Home) -> None:
        config = RepoConfig(**{**repository.configuration(home), "offline_store": {"type": "duckdb"}})
        config.repo_path = repository.FOLDER
        self._store = FeatureStore(config=config)

    def get_historical_features(self, entity_rows: pa.Table, features: list[str], **settings: Any) -> StockStore:
        """Answer; missing keys are asked as "", which nobody is called."""
        asked = [
            entity_rows[name].fill_null("") if pa.types.is_string(entity_rows[name].type) else entity_rows[name]
            for name in entity_rows.column_names
        ]
        numbered = pa.table(asked, entity_rows.column_names).append_column("n", pa.array(range(len(entity_rows)), pa.int64()))
        self._answer = self._store.get_historical_features(numbered.to_pandas(), features, **settings).to_arrow().sort_by("n")
        return self

    def to_arrow(self) -> pa.Table:
        """Return the answer in the order of the rows."""
        return self._answer
