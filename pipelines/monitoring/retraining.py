"""A training as its trigger asks for it, from the sources to the registered bundle; the Dag has a task for each of these steps.

For a new catalogue alone (`scope` of the trigger) sources, index and cold-start vectors are made again and the champion's ranker stays.
What is bundled is judged by the gate as any other challenger.
"""

from __future__ import annotations

from datetime import datetime

from pipelines import config, cycle
from pipelines.config import Home
from pipelines.ranking import judging, rankers, search, training, training_set
from pipelines.ranking.protocol import Ranker
from pipelines.registry import bundle, releases
from pipelines.registry.bundle import MODEL_FOLDER
from pipelines.retrieval import blend, fitting, lineup


def train(home: Home, as_of: datetime) -> int:
    """Train sources and ranker, evaluate them, and register the bundle; return its model version. Safe to repeat: what is done stays.

    Raises:
        NotEnoughData: the lake is too young.
        StateError: the features were not built, or a setting asks for what is not there.
    """
    for source in lineup.chosen(config.load(home).retrieval):
        fitting.fit(home, as_of, source)
    blend.blend(home, as_of)
    training_set.build(home, as_of)
    try_knobs(home, as_of, None)
    rank(home, as_of)
    judging.evaluate(home, as_of)
    return bundle.build(home, as_of)


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
