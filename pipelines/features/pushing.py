"""Features written and read one entity at a time, as events come in: Feast's push, for views that are fed by a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import pandas as pd

from pipelines import columns as c
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features.repository import open_store

SUFFIX: Final = "_pushed"


class Held(NamedTuple):
    """What the online store holds of an entity.

    Attributes:
        moment_us: from when it holds, microseconds since 1970 UTC (SQLite: the second it lies in); 0 where nothing is held.
        row: every feature; None of an unknown entity.
    """

    moment_us: int
    row: dict[str, Any]


class PushedView:
    """A feature view with a push source, bound to the online store of a state folder.

    The connection and the registry are opened once; an instance belongs to one thread.

    Args:
        view: its name; its push source is called `<view>_pushed`.

    Raises:
        StateError: the registry holds no such view.
    """

    def __init__(self, home: Home, view: str) -> None:
        from feast.errors import FeastObjectNotFoundException

        self._store = open_store(home)
        try:
            self._view = self._store.get_feature_view(view)
        except FeastObjectNotFoundException as error:
            raise StateError(
                f"feature view {view}",
                found=f"not in the registry of {home.feast}",
                allowed="an applied view",
                hint="run `reloop features`",
            ) from error
        self._key: str = self._view.join_keys[0]
        self._names = [field.name for field in self._view.features]

    def read(self, entities: Sequence[str]) -> list[dict[str, Any]]:
        """Return the online features of some entities, in order; every feature of an unknown one is None."""
        return [held.row for held in self.held(entities)]

    def held(self, entities: Sequence[str]) -> list[Held]:
        """Return what `read` does, each row with the moment from which it holds."""
        if not entities:
            return []
        answer = self._ask(self._names, entities)
        found, moments = answer.to_dict(), self._moments(answer)
        return [Held(moments[n], {name: found[name][n] for name in self._names}) for n in range(len(entities))]

    def moments(self, entities: Sequence[str]) -> list[int]:
        """Return since when the rows of some entities hold, as `Held` says it."""
        return self._moments(self._ask(self._names[:1], entities)) if entities else []

    def _ask(self, names: Sequence[str], entities: Sequence[str]) -> Any:
        asked = [f"{self._view.name}:{name}" for name in names]
        return self._store.get_online_features(features=asked, entity_rows={self._key: list(entities)})

    def _moments(self, answer: Any) -> list[int]:
        """Return the event times of an answer; the columns of the join keys have none."""
        named = zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True)
        (first,) = (column for name, column in named if name == self._names[0])
        return [moment.ToMicroseconds() for moment in first.event_timestamps]

    def push(self, rows: Mapping[str, tuple[datetime, datetime, Mapping[str, Any]]]) -> None:
        """Write features: entity -> (the moment from which they hold, when they became available, values).

        The store keeps what is newest by those two moments, so pushes may be repeated and overtake each other.
        """
        if not rows:
            return
        frame = pd.DataFrame(
            {
                self._key: list(rows),
                **{name: pd.Series([values[name] for _, _, values in rows.values()], dtype=object) for name in self._names},
                c.AS_OF: pd.to_datetime([holds for holds, _, _ in rows.values()], utc=True),
                c.AVAILABLE_AT: pd.to_datetime([available for _, available, _ in rows.values()], utc=True),
            }
        )
        self._store.push(self._view.name + SUFFIX, frame)
