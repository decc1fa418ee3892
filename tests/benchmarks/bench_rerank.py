"""How long re-ranking a list takes: MMR and DPP of 500 candidates into 20 places beside the same in plain Python, and every rule of a batch.

A single list is timed call by call, cold rules and all: gathering its vectors, choosing, putting it in order; a batch is what the
evaluation and batch scoring do. One thread. The plain versions recompute nothing that a careful programmer would keep (likenesses
are looked up in a matrix that is not timed; the determinant's Cholesky rows are carried along), they only do it number by number.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from one_run import machine, write_page
from threadpoolctl import threadpool_limits

from pipelines.datasets.interactions import Histories
from pipelines.ranking.rerank import chain, dpp, likeness, mmr
from pipelines.ranking.rerank.goods import Goods
from pipelines.ranking.rerank.ranked import Ranked
from pipelines.rerank_policies import DppPolicy, LikenessPolicy, MmrPolicy, RerankSettings

N_ITEMS, M, K = 20_000, 500, 20
TARGETS_US = {"mmr": 100.0, "dpp": 200.0}


def shop(n_factors: int) -> Goods:
    """Return a shop of 200 categories and 1,000 brands, with vectors."""
    rng = np.random.default_rng(7)
    return Goods(
        category=rng.integers(0, 200, N_ITEMS).astype(np.int32),
        brand=rng.integers(0, 1000, N_ITEMS).astype(np.int32),
        seller=rng.integers(0, 300, N_ITEMS).astype(np.int32),
        price=rng.gamma(2, 10, N_ITEMS).astype(np.float32),
        available=rng.random(N_ITEMS) < 0.95,
        age_days=rng.gamma(2, 60, N_ITEMS).astype(np.float32),
        margin=rng.random(N_ITEMS).astype(np.float32),
        promoted=rng.random(N_ITEMS) < 0.05,
        attention=rng.zipf(1.5, N_ITEMS).clip(0, 10**6).astype(np.int64),
    ).with_vectors(rng.normal(size=(N_ITEMS, n_factors)).astype(np.float32))


def batch(n_users: int) -> tuple[Ranked, Histories]:
    """Return lists of 500 for some users, and 30 events each."""
    rng = np.random.default_rng(11)
    item = np.stack([rng.choice(N_ITEMS, M, replace=False) for _ in range(n_users)])
    score = -np.sort(-rng.gumbel(size=item.shape), axis=1)
    events = rng.integers(0, N_ITEMS, 30 * n_users).astype(np.int32)
    kind = rng.integers(0, 4, len(events)).astype(np.int8)
    indptr = np.arange(n_users + 1) * 30
    users = Histories(indptr, events, np.zeros(len(events), np.int64), np.ones(len(events), np.float32), N_ITEMS, 1, event_type=kind)
    return Ranked.of(item, score), users


def plain_mmr(relevance: list[float], alike: list[list[float]], k: int, trade_off: float) -> list[int]:
    """Return what MMR chooses, number by number; the largest likeness is carried along."""
    left, chosen = list(range(len(relevance))), []
    largest = [-math.inf] * len(relevance)
    best = max(left, key=lambda i: relevance[i])
    while True:
        chosen.append(best)
        left.remove(best)
        if len(chosen) == k:
            return chosen
        row, top, at = alike[best], -math.inf, -1
        for i in left:
            largest[i] = max(largest[i], row[i])
            value = trade_off * relevance[i] - (1 - trade_off) * largest[i]
            if value > top:
                top, at = value, i
        best = at


def plain_dpp(relevance: list[float], alike: list[list[float]], k: int, trade_off: float) -> list[int]:
    """Return what fast greedy MAP chooses, number by number."""
    weight = [math.exp(trade_off / (1 - trade_off) * (r - max(relevance))) for r in relevance]
    left, rows, remaining, chosen = [1.0] * len(relevance), [[] for _ in relevance], list(range(len(relevance))), []
    while len(chosen) < k:
        best = max(remaining, key=lambda i: left[i] * weight[i])
        if left[best] <= dpp.SPANNED:
            break
        chosen.append(best)
        remaining.remove(best)
        root, mine = math.sqrt(left[best]), rows[best]
        for i in remaining:
            e = (alike[best][i] - sum(a * b for a, b in zip(mine, rows[i], strict=True))) / root
            rows[i].append(e)
            left[i] -= e * e
    return chosen


def microseconds(action: Callable[[], Any], runs: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median time of a call."""
    action()
    taken = []
    for _ in range(runs):
        begun = clock()
        action()
        taken.append(clock() - begun)
    return statistics.median(taken) * 1e6


def line(case: str, ours: float, peer: float | None, target: float | None) -> dict[str, Any]:
    """Return one line of figures."""
    return {
        "case": case,
        "ours": round(ours, 1),
        "peer": None if peer is None else round(peer, 1),
        "unit": "us/list",
        "ratio": None if peer is None else round(peer / ours, 1),
        "target": "" if target is None else f"<= {target:g} us",
        "met": target is None or ours <= target,
    }


def rows(n_users: int, n_factors: int) -> list[dict[str, Any]]:
    """Return the figures of both rules on a list and in a batch, and of every other rule in a batch."""
    goods, (lists, users) = shop(n_factors), batch(n_users)
    relevance = lists.relevance()
    found = []
    kinds = {f"vectors of {n_factors}": LikenessPolicy(by="vectors"), "attributes": LikenessPolicy()}
    for name, rule, plain, policy in (("mmr", mmr, plain_mmr, MmrPolicy()), ("dpp", dpp, plain_dpp, DppPolicy())):
        for kind, compared in kinds.items():
            alike = likeness.of(goods, lists.item[0], compared)
            matrix = np.empty((M, M), np.float32)
            for j in range(M):
                alike(j, 1.0, np.zeros(M, np.float32), matrix[j])
            numbers, table = relevance[0].tolist(), matrix.tolist()
            theirs = plain(numbers, table, K, policy.trade_off)
            ours = rule.select(relevance[0], alike, K, policy.trade_off).tolist()
            assert ours == theirs, (name, kind, ours, theirs)
            peer = microseconds(lambda plain=plain, n=numbers, t=table, p=policy: plain(n, t, K, p.trade_off), 15, time.process_time)
            one = microseconds(lambda rule=rule, a=alike, p=policy: rule.select(relevance[0], a, K, p.trade_off), 1000)
            found.append(line(f"{name}, {kind}, choosing", one, peer, TARGETS_US[name]))
            whole = (
                microseconds(
                    lambda rule=rule, c=compared, p=policy: rule.apply(lists.first(M), goods, users, p, K, c), 3, time.process_time
                )
                / n_users
            )
            found.append(line(f"{name}, {kind}, batch of {n_users}", whole, peer, None))
            single = Ranked(lists.item[:1], lists.score[:1], lists.origin[:1])
            request = microseconds(lambda rule=rule, s=single, c=compared, p=policy: rule.apply(s, goods, users, p, K, c), 1000)
            found.append(line(f"{name}, {kind}, whole rule", request, peer, None))
    for name in chain.RULES:
        if name not in {"mmr", "dpp"}:
            policy = RerankSettings.model_validate({"availability": False, name: True})
            found.append(
                line(
                    f"{name}, batch of {n_users}",
                    microseconds(lambda p=policy: chain.reranked(lists, goods, users, p), 3, time.process_time) / n_users,
                    None,
                    None,
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--factors", type=int, default=64)
    arguments = parser.parse_args()
    with threadpool_limits(1):
        figures = rows(arguments.users, arguments.factors)
    notes = (
        f"{M} candidates into {K} places, medians, one thread, the same items chosen; choosing: what a list costs once its candidates are "
        "gathered; whole rule: from the ranked list of one request to the re-ranked one; batch: the same a list among many; batches and plain Python in processor time."
    )
    print(f"rerank, on {machine()}\n{notes}")
    for row in figures:
        beside = "" if row["peer"] is None else f"plain Python {row['peer']:>10,.1f}  ratio {row['ratio']:>6.1f}"
        print(f"  {row['case']:<36} {row['ours']:>9,.1f} us/list  {beside:<38} {row['target']} {'' if row['met'] else 'MISSED'}")
    write_page("rerank", figures, notes)


if __name__ == "__main__":
    main()
