"""Knobs that the cheap sources may choose from on the validation window: a few values each, declared here and printed.

The first entry of a grid is the source's own default. Sources that are not named are taken as they
are: the neural ones have a budget of seconds instead, the others no knob to speak of or no time to try it.
"""

from __future__ import annotations

from typing import Any, Final

GRIDS: Final[dict[str, list[dict[str, Any]]]] = {
    "popular": [{}, {"half_life_days": 90.0}, {"half_life_days": 30.0}, {"half_life_days": 14.0}],
    "popular_7d": [{}, {"half_life_days": 1.0}, {"half_life_days": None}],
    "popular_by_segment": [{}, {"half_life_days": 14.0}, {"half_life_days": 14.0, "prior": 10_000.0}],
    "trending": [{}, {"window_days": 14.0}],
    "repeat": [{}, {"half_life_days": 7.0}, {"half_life_days": 60.0}],
    "item_knn": [{}, {"shrinkage": 50.0}, {"recency_half_life_days": 5.0}, {"recency_half_life_days": 60.0}],
    "sequence_rules": [{}, {"decay": 0.7}, {"decay": 0.95}, {"decay": 0.95, "popularity_exponent": 0.0}],
    "session_knn": [{}, {"decay": 0.95}],
    "user_knn": [{}, {"recency_half_life_days": 90.0}],
    "ease": [{}, {"regularization": 2000.0}, {"regularization": 10_000.0}, {"regularization": 10_000.0, "recency_half_life_days": 60.0}],
    "graph_filter": [{}, {"to_exponent": 0.25}, {"to_exponent": 0.25, "recency_half_life_days": 60.0}],
    "als": [{}, {"regularization": 100.0}, {"regularization": 300.0}, {"regularization": 100.0, "recency_half_life_days": 90.0}],
    "pure_svd": [{}, {"n_factors": 32}, {"n_factors": 128}],
    "viewed_together": [{}, {"to_exponent": 0.25}],
    "bought_together": [{}, {"to_exponent": 0.25}],
    "content": [{}, {"half_life_days": 3.0}],
}
