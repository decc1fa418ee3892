"""An engine over a served shop, patient, and what the offline path says to the same question."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from served_shop import environment
from trained_shop import SECOND

from pipelines import config
from pipelines.config import Home
from pipelines.ranking import two_stage
from pipelines.ranking.protocol import Lists
from pipelines.registry import bundle
from pipelines.registry.choosing import Serving
from pipelines.serving import engine
from pipelines.serving.engine import Engine
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Answer, Ask
from pipelines.serving_policies import DeadlinePolicy, ServingSettings

PATIENT = DeadlinePolicy(request_ms=1e6, store_ms=1e4, retrieve_by_ms=1e6, rank_by_ms=1e6)


def opened(home: Home, deadline: DeadlinePolicy = PATIENT) -> Engine:
    """Return a release bound to what a state folder knows, never late unless so asked."""
    with environment(home):
        serving = with_ranker(home)
        settings = config.load(home)
        slow = settings.model_copy(update={"serving": ServingSettings(deadline=deadline)})
        found = engine.bound(Knowledge(home, slow.serving), serving)
    return Engine(found.knowledge, serving, slow, found.placed)


def with_ranker(home: Home) -> Serving:
    """Return the bundle of the two whose ranker earned its place."""
    found = [bundle.load(home, path.name) for path in sorted(home.bundles.iterdir()) if len(path.name) == 64]
    (model,) = [model for model in found if model.serves == two_stage.RANKED]
    return Serving(1, "ranked", model, {})


def ask(surface: str = "home", at: datetime = SECOND, **more: object) -> Ask:
    """Return a request at the moment of the snapshot."""
    return Ask(surface, f"r-{surface}", at, **{"k": 10, **more})  # type: ignore[arg-type]


def some_users(home: Home, n: int) -> list[str]:
    """Return users of all kinds: of the snapshot, and one nobody knows."""
    from pipelines.features import request_snapshot

    users = request_snapshot.open_snapshot(home).histories.users
    return [users[int(at)].as_py() for at in np.linspace(0, len(users) - 1, n)] + ["nobody knows me"]


def offline(home: Home, users: list[str], at: datetime, engine_: Engine) -> Lists:
    """Return what the lake, the marts and the point-in-time join make of the same users at the same moment."""
    with environment(home):
        return two_stage.rank_users(home, engine_.model, np.array(users), at, 10)


def line(lists: Lists, row: int) -> list[tuple[str, float, tuple[str, ...], tuple[str, ...]]]:
    """Return a list of the offline path as (item, score, sources, rules)."""
    return [
        (str(item), float(lists.score[row, at]), lists.sources_of(row, at), lists.rules_of(row, at))
        for at, item in enumerate(lists.item_ids[row])
        if item
    ]


def told(answer: Answer) -> list[tuple[str, float, tuple[str, ...], tuple[str, ...]]]:
    """Return an answer in the same words."""
    return [(shown.item_id, shown.score, shown.sources, shown.rules) for shown in answer.items]
