"""A seeded shop world: the catalogue, the people, what they do, what goes wrong, and the truth about all of it.

    shop = Shop(World(seed=7, faults=("nulls@2025-02-03",)))
    shop.events(window)      # clean, canonical
    shop.raw_events(window)  # as the shop sends it, faults and all
    shop.truth(day)          # what was put in

A world is a pure function of its settings and the day. What is drawn once (tastes, catalogue) comes
from a stream per arrival day; what a day brings comes from a stream per day. The single quantity
with memory is the popularity feedback, a recurrence over items alone, so that day 60 costs no more
than a few milliseconds beyond itself.
"""

from typing import TYPE_CHECKING, Any

from pipelines.sources.simulator.incidents import Fault, Incident, Shift, parse

if TYPE_CHECKING:
    from pipelines.sources.simulator.shop import Shop
    from pipelines.sources.simulator.truth import Truth

__all__ = ["Fault", "Incident", "Shift", "Shop", "Truth", "parse"]


def __getattr__(name: str) -> Any:
    """Import the shop on first use: a Dag file that lists the faults in its form must stay quick to parse."""
    if name in {"Shop", "Truth"}:
        from pipelines.sources.simulator import shop

        return getattr(shop, name)
    raise AttributeError(name)
