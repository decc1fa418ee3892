"""Any table, read through its mapping. The named sources are mappings too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.sources.entities import write_items, write_users
from pipelines.sources.mapping import Mapping
from pipelines.sources.opened import Reading

Writer = Callable[[Reading], None]


@dataclass(frozen=True)
class Origin:
    """How one source is read: its mapping, and where a mapping does not say enough, its own writers."""

    mapping: Mapping
    items: Writer = write_items
    users: Writer = write_users
