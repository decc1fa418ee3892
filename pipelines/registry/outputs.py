"""What a model makes of the people of a day, as columns to compare: its scores, and the lists it shows.

Of the users with an event in the last seven days, those whose ids hash lowest are asked, so that the same
ones come back from day to day. One row a user:

    scores__<source>     the source's best score; missing where it proposes nothing
    scores__ranker       what the list is ordered by, its best; scores__lead, the best less the tenth
    served__items        the first ten items, a list
    served__categories   their categories, a list

Scores follow the length of histories, which grows in a young shop, and lists follow fashion: so a
reference is taken together with the week before it, of the same model.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import config, lake
from pipelines.config import Home
from pipelines.datasets import interactions
from pipelines.datasets.interactions import Ids, histories, strings
from pipelines.ranking import context as contexts
from pipelines.ranking.rerank import chain
from pipelines.ranking.two_stage import RANKED, TwoStage
from pipelines.registry.population import Columns, built
from pipelines.window import DAY, utc

SCORES: Final = "scores"
SERVED: Final = "served"
K: Final = 10
ACTIVE_DAYS: Final = 7


def people(home: Home, moment: datetime, n_users: int) -> Ids:
    """Return str [<= n_users], sorted: of the users active in the week before a moment, those of the lowest hash."""
    with lake.connect(home, before=moment) as db:
        found = db.sql(
            f"SELECT DISTINCT {c.USER_ID} FROM events WHERE {c.EVENT_AT} >= ?", params=[utc(moment) - timedelta(days=ACTIVE_DAYS)]
        ).to_arrow_table()
    return lowest(strings(found[c.USER_ID]), n_users)


def lowest(user_ids: Ids, n_users: int) -> Ids:
    """Return at most `n_users` of some users, those of the lowest hash, sorted."""
    by_hash = sorted(user_ids.tolist(), key=lambda user: hashlib.blake2b(user.encode(), digest_size=8).digest())
    return np.array(sorted(by_hash[:n_users]), dtype=np.str_)


def columns(home: Home, model: TwoStage, moment: datetime, n_users: int) -> Columns:
    """Return the columns of a moment, from what was known then; none without people, or without any to be asked of.

    Raises:
        StateError: the features that the ranker reads are not all there.
    """
    user_ids = people(home, moment, n_users)
    if not len(user_ids):
        return {}
    known = interactions.load(home, moment, config.load(home).training, item_ids=model.item_ids)
    users = histories(known, user_ids)
    proposed = model.propose(users)
    context = model.context(home, proposed, users, user_ids, moment) if model.serves == RANKED else None
    order = model.order(proposed, context)
    goods = model.goods(known) if chain.active(model.rerank) else None
    lists = model.listed(user_ids, proposed, order, K, users=users, goods=goods)
    best, tenth = (np.where(np.isfinite(score), score, np.nan) for score in (lists.score[:, 0], lists.score[:, -1]))
    found = {f"{SCORES}__{name}": _best(proposed.row, proposed.score[:, at], len(user_ids)) for at, name in enumerate(proposed.sources)}
    found |= {f"{SCORES}__ranker": best.astype(np.float64), f"{SCORES}__lead": (best - tenth).astype(np.float64)}
    numbers = {name: pa.chunked_array([pa.array(values, pa.float64())]) for name, values in found.items() if not np.isnan(values).all()}
    return numbers | _shown(home, model, lists.item_ids, moment)


def _best(row: np.ndarray, score: np.ndarray, n_users: int) -> np.ndarray:
    """Return float64 [n_users], the best score of each; NaN without any."""
    best = np.full(n_users, -np.inf)
    known = np.isfinite(score)
    np.maximum.at(best, row[known], score[known].astype(np.float64))
    return np.where(np.isfinite(best), best, np.nan)


def _shown(home: Home, model: TwoStage, item_ids: np.ndarray, moment: datetime) -> Columns:
    """Return the items of each list, and their categories where the catalogue has some."""
    shown = [[item for item in row if item] for row in item_ids.tolist()]
    if not any(shown):
        return {}
    found = {"items": pa.array(shown, pa.list_(pa.string()))}
    goods = contexts.catalogue(home, model.item_ids, moment)
    if len(goods.categories):
        words = [*goods.categories.tolist(), None]  # an unknown category has the number -1
        category = {item: words[code] for item, code in zip(model.item_ids.tolist(), goods.category.tolist(), strict=True)}
        found["categories"] = pa.array([[category[item] for item in row] for row in shown], pa.list_(pa.string()))
    return {f"{SERVED}__{name}": pa.chunked_array([values]) for name, values in found.items()}


def with_week_before(home: Home, model: TwoStage, moment: datetime, n_users: int) -> tuple[Columns, Columns]:
    """Return the columns of a moment, and those of a week before it: none where nobody is asked, or that day's features were never built."""
    if not n_users:
        return {}, {}
    earlier = moment - ACTIVE_DAYS * DAY
    return columns(home, model, moment, n_users), columns(home, model, earlier, n_users) if built(home, earlier) else {}
