"""A training for a new catalogue alone: sources, index and cold-start vectors are made again, the champion's ranker stays.

The trigger of the cycle says so (`scope`); what is bundled is judged by the gate as any other challenger.
"""

from __future__ import annotations

from datetime import datetime

from pipelines import cycle
from pipelines.config import Home
from pipelines.ranking import rankers, search, training
from pipelines.ranking.protocol import Ranker
from pipelines.registry import bundle, releases
from pipelines.registry.bundle import MODEL_FOLDER


def asked(home: Home, as_of: datetime) -> bool:
    """Tell whether the training of a cycle is due for its catalogue alone."""
    return any(record.get("due") and record.get("scope") == "catalogue" for record in cycle.records(home, as_of, "trigger"))


def try_knobs(home: Home, as_of: datetime, n_trials: int | None) -> None:
    """Search knobs if the settings or `n_trials` ask for it; none are tried for a ranker that is kept."""
    search.search(home, as_of, search.asked(home, 0 if asked(home, as_of) else n_trials))


def rank(home: Home, as_of: datetime) -> None:
    """Train the ranker of a cycle, or keep the champion's.

    Raises:
        StateError: the training rows were not built, or the champion's bundle was changed.
    """
    kept = _champion(home) if asked(home, as_of) else None
    if kept is not None:
        training.train(home, as_of, kept, keep=True)
    else:
        training.train(home, as_of, bundle.to_join(home, as_of))


def _champion(home: Home) -> Ranker | None:
    """Return the champion's ranker; None where it serves the blend, or nothing serves."""
    champion = releases.champion(home)
    if champion is None:
        return None
    path = bundle.checked(home, champion.digest) / MODEL_FOLDER / "ranker"
    return rankers.load(path) if path.is_dir() else None
