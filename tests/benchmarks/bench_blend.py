"""How many users a second are blended from eight sources' lists, beside the same fusion as one writes it in pandas.

The lists of a user are drawn by popularity out of 20,000 items, so that sources agree on some of them.
Seconds are those of one thread's CPU, the median of three runs. The peer keeps no score and no
rank of any source, and knows no quota.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from one_run import publish_page

from pipelines.retrieval import merging
from pipelines.retrieval.merging import Recipe
from pipelines.retrieval.protocol import Candidates

N_ITEMS, LENGTH, K, RUNS = 20_000, 200, 150, 3
WEIGHTS = {f"source {number}": 0.25 * number for number in range(1, 9)}
RECIPE = Recipe(WEIGHTS, {"source 1": 10, "source 2": 5}, {"source 3": 20})


def lists(n_users: int, drawn: int = 1000) -> dict[str, Candidates]:
    """Return eight lists a user; the first `drawn` users' come round again."""
    rng = np.random.default_rng(7)
    popularity = (-0.8 * np.log(np.arange(1, N_ITEMS + 1))).astype(np.float32)
    score = np.tile(np.arange(LENGTH, 0, -1, dtype=np.float32), (n_users, 1))
    found = {}
    for name in WEIGHTS:
        keys = popularity + rng.gumbel(size=(min(drawn, n_users), N_ITEMS)).astype(np.float32)
        item = np.argpartition(-keys, LENGTH, axis=1)[:, :LENGTH].astype(np.int32)
        found[name] = Candidates(np.tile(item, (-(-n_users // len(item)), 1))[:n_users], score)
    return found


def in_blocks(proposed: dict[str, Candidates], recipe: Recipe) -> None:
    """Blend as the stage does, a block of users at a time."""
    for _, some in merging.blocks(proposed):
        merging.merge(some, K, recipe)


def by_pandas(proposed: dict[str, Candidates]) -> pd.DataFrame:
    """Return user, item, score: concatenate, group, sum, sort, head."""
    parts = []
    for name, found in proposed.items():
        n_users, width = found.item.shape
        rank = np.tile(np.arange(1, width + 1), n_users)
        vote = WEIGHTS[name] / (merging.RRF_CONSTANT + rank)
        parts.append(pd.DataFrame({"user": np.repeat(np.arange(n_users), width), "item": found.item.ravel(), "score": vote}))
    summed = pd.concat(parts).groupby(["user", "item"], sort=False)["score"].sum().reset_index()
    return summed.sort_values(["user", "score", "item"], ascending=[True, False, True]).groupby("user").head(K)


def cpu_seconds(action: Callable[[], Any]) -> float:
    """Return the median over the runs."""
    taken = []
    for _ in range(RUNS):
        begun = time.process_time()
        action()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--peer-users", type=int, default=2_000)
    arguments = parser.parse_args()
    few, many = lists(arguments.peer_users), lists(arguments.users)
    merged = merging.merge(few, K, Recipe(WEIGHTS))
    theirs = by_pandas(few)
    agreed = float((merged.item.ravel() == theirs["item"].to_numpy()).mean())
    peer = arguments.peer_users / cpu_seconds(lambda: by_pandas(few))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = []
    for case, recipe in (("weights", Recipe(WEIGHTS)), ("weights and quotas", RECIPE)):
        ours = arguments.users / cpu_seconds(lambda recipe=recipe: in_blocks(many, recipe))
        rows.append(
            {
                "case": f"{arguments.users:,} users, {case}",
                "ours": round(ours),
                "peer": round(peer),
                "unit": "users/s of CPU",
                "ratio": round(ours / peer, 2),
                "target": "ratio >= 1",
                "met": ours >= peer,
            }
        )
    more_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    publish_page(
        "blend",
        rows,
        f"8 sources x {LENGTH} items of {N_ITEMS:,} into {K} places; peak memory rose by {more_mb:.0f} MB over that of the peer's "
        f"{arguments.peer_users:,} users; {agreed:.4%} of the peer's places hold the same item (rounding decides the other ties).",
    )


if __name__ == "__main__":
    main()
