"""Cold items and cold users on real data and on the simulated shop: what is known of them, against popularity and chance.

Windows are the last ones of each set; knobs were chosen on earlier ones. Differences are paired, on the same users.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from one_run import write_page
from rich.console import Console
from rich.table import Table

from pipelines import config, lake
from pipelines.config import Home
from pipelines.datasets import profiles
from pipelines.datasets.interactions import Histories, Interactions, histories, load, strings
from pipelines.datasets.labels import Labels, labels
from pipelines.evaluation import metrics, paired, slices
from pipelines.retrieval import lineup, topk
from pipelines.retrieval.cold_items import ColdItems
from pipelines.retrieval.cold_users import ColdUsers, Preferences
from pipelines.retrieval.content import tfidf
from pipelines.retrieval.leaderboard import data_sets
from pipelines.window import Window

SETS = {"online-retail": 3, "retailrocket": 2, "movielens-100k": 2, "simulated": 3}  # windows of each
K = 50


@dataclass(frozen=True)
class Task:
    """What was known at a cutoff, what came in the window after it, and everything of both."""

    known: Interactions
    truth: Labels
    later: Interactions
    first_profiles: pa.Table
    exclude_seen: bool


def tasks(home: Home, as_of: Any, days: int, n: int) -> Iterator[Task]:
    """Yield the last `n` windows, oldest first, each with the profile that its users came with."""
    settings = config.load(home).training
    for number in range(n, 0, -1):
        window = Window(as_of - number * timedelta(days=days), as_of - (number - 1) * timedelta(days=days))
        with lake.connect(home, before=window.end) as db:
            ids = strings(db.sql("SELECT item_id FROM events UNION SELECT item_id FROM items ORDER BY 1").to_arrow_table()["item_id"])
        known = load(home, window.start, settings, item_ids=ids)
        truth = labels(home, window, settings, before=window.end, item_ids=ids)
        with lake.connect(home, before=window.end) as db:
            versions = profiles.versions(db, "users", truth.user_ids)
        place = np.full(truth.n_users, -1, dtype=np.int64)
        rows = versions["row"].to_numpy()
        place[rows[::-1]] = np.arange(len(rows))[::-1]  # the first version of each: what it signed up with
        first = profiles.taken(versions.drop_columns(["row", "valid_from", "received_at"]), place)
        yield Task(known, truth, load(home, window.end, settings, item_ids=ids), first, settings.exclude_seen)


def hidden(known: Interactions, share: float, seed: int) -> tuple[Interactions, Any]:
    """Return what is known without every event of a drawn share of the items, and which those are."""
    cold = np.random.default_rng(seed).random(len(known.item_ids)) < share
    kept = ~cold[known.item]
    names = ("user", "item", "at", "weight", "event_type", "value")
    return replace(known, **{name: getattr(known, name)[kept] for name in names}), cold


def on_items(task: Task, known: Interactions, cold: Any) -> dict[str, Any]:
    """Return NDCG@10 of lists of cold items alone, for users with a history and a label among them."""
    users, truth = histories(known, task.truth.user_ids), task.truth
    liked = np.bincount(known.item[known.weight > 0], minlength=len(known.item_ids))
    vectors = tfidf(known.items, len(known.item_ids), 5000)
    cold = cold & (np.diff(vectors.indptr) > 0) & (liked < ColdItems().max_events)
    rng = np.random.default_rng(1)
    strength = (users.weight * 0.5 ** (topk.age_days(users) / 14)).astype(np.float32)
    wanted = users.weighted(strength) @ vectors
    scores = {
        "random": rng.random((users.n_users, len(cold)), dtype=np.float32),
        "popular": np.broadcast_to(liked + rng.random(len(cold)), (users.n_users, len(cold))).astype(np.float32),
        "content": (wanted @ vectors.T).toarray().astype(np.float32),
    }
    model = ColdItems(num_threads=1).fit(known)
    asked, _ = model.query_vectors(users)
    items, proposed = model.item_vectors()
    scores["cold_items"] = np.where(proposed, asked @ items.T, np.float32(-np.inf))
    found = {}
    for name, block in scores.items():
        block[:, ~cold] = -np.inf
        if task.exclude_seen:
            topk.hide_seen(block, users)
        found[name] = topk.best(block, K).item
    gain = slices.labels_on(cold, truth.item, truth.gain)
    told = users.lengths() > 0
    return {
        name: np.where(told, metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, gain), 10), np.nan) for name, item in found.items()
    }


def on_users(task: Task) -> dict[str, dict[str, Any]]:
    """Return NDCG@10 of lists for users without any event before the cutoff: with nothing, a session or preferences."""
    new = np.flatnonzero(histories(task.known, task.truth.user_ids).lengths() == 0).astype(np.int64)
    truth, n_items = task.truth.take(new), len(task.truth.item_ids)
    who = task.first_profiles.take(pa.array(new))
    walked = histories(task.later, truth.user_ids)
    categories = task.known.items["category"].to_pylist() if task.known.items is not None else [None] * n_items
    names = ("popular", "popular_7d", "popular_by_segment", "popular_by_profile", "item_knn", "session_knn")
    fitted = {name: lineup.make(name).fit(task.known) for name in names}
    fitted["by_age_band"] = lineup.make("popular_by_segment", {"segment": "age_band"}).fit(task.known)
    ladder = ColdUsers().fit(task.known)
    empty = np.empty(0)
    nobody = Histories(
        np.zeros(len(new) + 1, np.int64), empty.astype(np.int32), empty.astype(np.int64), empty.astype(np.float32), n_items,
        task.known.as_of, users=who,
    )  # fmt: skip
    plain = ("popular", "popular_7d", "popular_by_segment", "by_age_band", "popular_by_profile")
    found: dict[str, dict[str, Any]] = {"nothing but a profile": {}}
    for name in plain:
        item = fitted[name].retrieve(nobody, K, exclude_seen=True).item
        found["nothing but a profile"][name] = metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, truth.gain), 10)
    for n_shown in (1, 3):
        shown, met = revealed(walked, n_shown)
        shown = replace(shown, users=who)
        pairs = truth.row_of_label() * n_items + truth.item
        gain = np.where(np.isin(pairs, met), 0, truth.gain)
        row_of = [met[met // n_items == row] % n_items for row in range(len(new))]
        mute = replace(shown, weight=np.zeros_like(shown.weight))  # met, but it says nothing
        chosen = [sorted({categories[item] for item in items if categories[item]}) for items in row_of]
        asked = {
            "categories": [Preferences(categories=tuple(names)) for names in chosen],
            "items": [Preferences(items=tuple(items.tolist())) for items in row_of],
            "both": [Preferences(tuple(names), (), tuple(items.tolist())) for names, items in zip(chosen, row_of, strict=True)],
        }
        lists = {name: fitted[name].retrieve(shown, K, exclude_seen=True).item for name in ("popular", "item_knn", "session_knn")}
        lists["ladder"] = ladder.answer(shown, K, exclude_seen=True).item
        found[f"a session of {n_shown}"] = judged(lists, truth, gain)
        lists = {"popular": lists["popular"], "popular_by_profile": fitted["popular_by_profile"].retrieve(mute, K, exclude_seen=True).item}
        lists |= {name: ladder.answer(mute, K, exclude_seen=True, preferences=one).item for name, one in asked.items()}
        found[f"preferences from {n_shown}"] = judged(lists, truth, gain)
    return found


def judged(lists: dict[str, Any], truth: Labels, gain: Any) -> dict[str, Any]:
    """Return NDCG@10 of each list on what was not revealed."""
    return {name: metrics.ndcg(metrics.judge(item, truth.indptr, truth.item, gain), 10) for name, item in lists.items()}


def revealed(walked: Histories, n: int) -> tuple[Histories, Any]:
    """Return everybody's events up to, and without, the first on an (n + 1)-th different item; and the pairs met, row * n_items + item."""
    kept, indptr, met = [], [0], []
    for row in range(walked.n_users):
        seen: list[int] = []
        for event in range(int(walked.indptr[row]), int(walked.indptr[row + 1])):
            if int(walked.item[event]) not in seen:
                if len(seen) == n:
                    break
                seen.append(int(walked.item[event]))
            kept.append(event)
        indptr.append(len(kept))
        met += [row * walked.n_items + item for item in seen]
    at = np.array(kept, dtype=np.int64)
    rows = Histories(np.array(indptr), walked.item[at], walked.at[at], walked.weight[at], walked.n_items, walked.as_of)
    return rows, np.array(met, dtype=np.int64)


def rows(case: str, parts: list[dict[str, Any]], peer: str) -> list[dict[str, Any]]:
    """Return a line for each list: its mean, the peer's, and the paired difference with its interval, over all windows."""
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lines = []
    for name, values in pooled.items():
        found, mean, base = paired.interval(values - pooled[peer]), metrics.mean(values), metrics.mean(pooled[peer])
        if mean is None or base is None:
            continue
        bounds = {"difference": found.mean, "lower": found.lower, "upper": found.upper, "users": found.n}
        ratio = round(mean / base, 3) if base else None
        line = {"case": f"{case}: {name}", "ours": round(mean, 4), "peer": round(base, 4), "unit": f"NDCG@10, peer {peer}", "ratio": ratio}
        lines.append({**line, "target": "above the peer", "met": bool(found.lower > 0), **bounds})
    return lines


def main() -> None:
    """Measure every data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=config.REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    asked, console, page = parser.parse_args(), Console(), []
    home = Home.from_environment()
    for name in asked.sets:
        chosen = data_sets.named(name)
        place, as_of = data_sets.prepare(
            home.root / "bench" / "data", name, asked.data / chosen.file if chosen.file else None, console.print
        )
        found = list(tasks(place, as_of, chosen.horizon_days, SETS[name]))
        few = [on_items(task, task.known, np.ones(len(task.known.item_ids), dtype=bool)) for task in found]
        page += rows(f"{name}, items of few events", few, "popular")
        page += rows(f"{name}, items hidden", [on_items(task, *hidden(task.known, 0.2, 0)) for task in found], "popular")
        users = [on_users(task) for task in found]
        for case in users[0]:
            peer = "popular_by_profile" if case.startswith("preferences") else "popular"
            page += rows(f"{name}, {case}", [part[case] for part in users], peer)
        grid = Table(title=name)
        for heading in ("case", "NDCG@10", "peer", "difference", "users"):
            grid.add_column(heading, no_wrap=True)
        for line in page:
            if line["case"].startswith(name + ","):
                span = f"{line['difference']:+.4f} [{line['lower']:+.4f}, {line['upper']:+.4f}]"
                grid.add_row(line["case"].removeprefix(name + ", "), f"{line['ours']:.4f}", f"{line['peer']:.4f}", span, str(line["users"]))
        console.print(grid)
    write_page("cold-start", page, "Lists over all items, or over cold items alone; windows pooled; intervals of 95%.")


if __name__ == "__main__":
    main()
