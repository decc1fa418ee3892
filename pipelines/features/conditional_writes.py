"""What the online stores share: rows that Feast hands over one by one are written by the rule of bulk loads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from pipelines.features import encoding
from pipelines.features.encoding import Encoded


class ConditionalWrites:
    """Stands before a Feast online store; the class of both says what `loading` does and when it serves."""

    loads_in_bulk: Callable[[Any], bool]
    loading: Callable[[Any, Any], AbstractContextManager[Callable[[Encoded], None]]]

    def online_write_batch(
        self,
        config: Any,
        table: Any,
        data: list[tuple[Any, dict[str, Any], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows as Feast hands them over (pushes, small batches)."""
        if not self.loads_in_bulk(config):
            super().online_write_batch(config, table, data, progress)  # type: ignore[misc]  # the Feast store behind
            return
        if data:
            with self.loading(config, table) as write:
                write(encoding.from_messages(data))
        if progress:
            progress(len(data))
