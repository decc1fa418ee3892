"""A request's CPU, stage by stage, against the least it can cost: LightGBM's own predict of the same matrix, in the same run.

    items        5k, 100k and 1M items; 500 candidates at most, 40 features of those made, 300 trees of 63 leaves; 7 sources
    re-ranking   100 and 300 given items: features and ranker alone
    cached       the same answer from the process's memory (`serving.caches`)
    open loop    latency from the moment a request was due, at a rate that is stated and leaves the core idle for a third
    two workers  requests a second of one and of two processes that share the mapped files; from it, the cores for 100,000 a second

The path is measured without HTTP around it; what that adds is `bench_http`'s.
CPU is the process's, over hundreds of requests; a stage's share is taken from its wall time at its best of several, since machines
are shared. `--home FOLDER` keeps the shops between runs (the 1M one takes 20 minutes to make), `--sizes 5000,100000` chooses.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import one_run
import serving_world as world

from pipelines.config import REPOSITORY, Home
from pipelines.ranking.features import assemble
from pipelines.ranking.two_stage import chosen
from pipelines.serving import moment
from pipelines.serving.caches import Caches
from pipelines.serving.deadline import Watch
from pipelines.serving.engine import Engine
from pipelines.serving.news import News
from pipelines.serving.request import Answer, Ask

USERS = {5_000: 20_000, 100_000: 50_000, 1_000_000: 50_000}
REQUESTS, WARM, ROUNDS = 400, 50, 5
TARGET_MS = 5.0
BUSY, MOST_BUSY = 0.55, 0.70  # of the core: what the rate of the open loop aims at, and what it must stay under
LATENCY_MS = 30.0
PER_SECOND = 100_000


def ask(user: str) -> Ask:
    """Return a request for a user's home page."""
    return Ask("home", f"r-{user}", world.NOW, 10, user)


def cpu_ms(calls: list[Callable[[], Any]], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the median and the 99th percentile of the CPU milliseconds of some calls, each at its best of several rounds."""
    best = np.full(len(calls), np.inf)
    for _ in range(rounds):
        for at, call in enumerate(calls):
            began = time.process_time()
            call()
            best[at] = min(best[at], 1000 * (time.process_time() - began))
    return float(np.median(best)), float(np.quantile(best, 0.99))


def answered(engine: Engine, user: str) -> Answer:
    """Return a user's answer, which must be a whole one."""
    found = engine.answer(ask(user))
    if found.rung != "full" or found.degraded:
        raise SystemExit(f"{user}: rung {found.rung}, {found.degraded}")
    return found


def stages(engine: Engine, users: list[str]) -> dict[str, float]:
    """Return milliseconds of each stage: the median over requests of the best of several rounds."""
    taken: dict[str, list[list[float]]] = {}
    for _ in range(ROUNDS):
        of_round: dict[str, list[float]] = {}
        for user in users:
            for name, value in answered(engine, user).stage_ms.items():
                of_round.setdefault(name, []).append(value)
        for name, values in of_round.items():
            taken.setdefault(name, []).append(values)
    return {name: float(np.median(np.min(np.array(rounds), axis=0))) for name, rounds in taken.items()}


def measured(engine: Engine, users: list[str], requests: int) -> dict[str, Any]:
    """Return what requests of a shop cost, beside the floor of the same run."""
    for user in users[:WARM]:
        answered(engine, user)
    some = users[WARM : WARM + requests]
    found = [engine.found(ask(user), Watch(engine.settings.serving.deadline)) for user in some]
    booster = engine.model.ranker.fitted().booster  # type: ignore[union-attr]
    floor = [(lambda matrix=one.matrix: booster.predict(matrix, raw_score=True, num_threads=1)) for one in found[:100]]
    began = time.process_time()
    for user in some:
        answered(engine, user)
    mean = 1000 * (time.process_time() - began) / len(some)
    median, p99 = cpu_ms([lambda user=user: answered(engine, user) for user in some])
    least, least_p99 = cpu_ms(floor)
    return {
        "candidates": float(np.median([len(one.candidates) for one in found])),
        "events": float(np.median([len(one.users.item) for one in found])),
        "trees": engine.model.ranker.size,  # type: ignore[union-attr]
        "cpu_ms": median,
        "cpu_ms_p99": p99,
        "cpu_ms_mean_contended": mean,
        "lightgbm_ms": least,
        "lightgbm_ms_p99": least_p99,
        "stages": stages(engine, some[:60]),
    }


def reranked(engine: Engine, users: list[str], n: int) -> dict[str, float]:
    """Return what it costs to put n given items in order for a user: stored features, features, ranker."""
    watch = Watch(engine.settings.serving.deadline)
    calls, floors = [], []
    ranker = engine.model.ranker
    for user in users[:100]:
        found = engine.found(ask(user), watch)
        some = found.candidates[slice(0, n)]

        def rank(one: Any = found, some: Any = some, user: str = user) -> Any:
            held = engine.held(ask(user), engine.knowledge.known, watch)
            vectors = {name: source.asked(engine.model.retrievers[name], one.users)[1] for name, source in engine.placed.items()}
            known = moment.context(
                some,
                one.users,
                one.binding,
                held,
                engine.knowledge.store(),
                groups=engine.model.groups,
                memory=engine.model.memory,
                vectors=vectors,
            )
            return ranker.score(chosen(*assemble(known, some), ranker), np.array([len(some)], np.int32))

        calls.append(rank)
        given = found.matrix[: len(some)]
        floors.append(lambda matrix=given: ranker.fitted().booster.predict(matrix, raw_score=True, num_threads=1))
    (median, p99), (floor, _) = cpu_ms(calls), cpu_ms(floors)
    return {"cpu_ms": median, "cpu_ms_p99": p99, "lightgbm_ms": floor}


def cached(engine: Engine, users: list[str]) -> float:
    """Return CPU milliseconds of an answer that is remembered."""
    caches = Caches(engine.settings.serving.cache, News(engine.knowledge.home))
    made: list[str] = []

    def answer(user: str) -> Answer | None:
        def compute() -> Answer:
            made.append(user)
            return engine.answer(ask(user))

        return caches.through(ask(user), engine.release, "", compute, sound=lambda _: True, wait_ms=0)

    calls = [lambda user=user: answer(user) for user in users[:200]]
    for call in calls:
        call()
    if len(made) != 200 or any(call() is None for call in calls) or len(made) != 200:
        raise SystemExit("an answer was not remembered")
    return cpu_ms(calls, 20)[0]


def open_loop(engine: Engine, users: list[str], rate: float, seconds: float) -> dict[str, float]:
    """Return latencies of requests that come when they come (Poisson), whether or not the one before has been answered.

    A request counts from the moment it was due, so one that waits for another waits in the figures, too.
    """
    due = np.cumsum(np.random.default_rng(5).exponential(1 / rate, int(rate * seconds)))
    taken = np.empty(len(due))
    began, cpu = time.perf_counter(), time.process_time()
    for at, then in enumerate(due.tolist()):
        if (early := began + then - time.perf_counter()) > 0:
            time.sleep(early)
        answered(engine, users[at % len(users)])
        taken[at] = time.perf_counter() - began - then
    cpu, wall = time.process_time() - cpu, time.perf_counter() - began
    p50, p99 = (1000 * float(np.quantile(taken, q)) for q in (0.5, 0.99))
    return {
        "rate": rate,
        "requests": float(len(due)),
        "p50_ms": p50,
        "p99_ms": p99,
        "busy": cpu / wall,
        "load": os.getloadavg()[0],
    }


def worker(home: Home, size: world.Size, seconds: float) -> None:
    """Answer for some seconds and print how often, and the CPU it took."""
    engine, users = world.made(home, size)
    for user in users[:WARM]:
        answered(engine, user)
    print("ready", flush=True)
    sys.stdin.readline()
    began, cpu, n = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        answered(engine, users[n % len(users)])
        n += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"n": n, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak_mb": memory}), flush=True)


def scaling(home: Home, size: world.Size, seconds: float = 15.0) -> dict[int, dict[str, float]]:
    """Return requests a second, and CPU a request, of one and of two processes at once."""
    found = {}
    for processes in (1, 2):
        command = [sys.executable, __file__, "--worker", str(home.root), "--sizes", str(size.items), "--seconds", str(seconds)]
        running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        for one in running:
            while one.stdout.readline().strip() != "ready":  # type: ignore[union-attr]
                pass
        for one in running:
            one.stdin.write("go\n")  # type: ignore[union-attr]
            one.stdin.flush()  # type: ignore[union-attr]
        said = [json.loads(one.communicate()[0].splitlines()[-1]) for one in running]
        found[processes] = {
            "requests_per_second": sum(one["n"] / one["seconds"] for one in said),
            "cpu_ms": 1000 * sum(one["cpu"] for one in said) / sum(one["n"] for one in said),
            "load": os.getloadavg()[0],
        }
    return found


def main() -> None:
    """Measure, print, and write var/reports/bench/serving.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=REPOSITORY / "var" / "bench" / "serving")
    parser.add_argument("--sizes", default="5000,100000")
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--no-workers", action="store_true")
    args = parser.parse_args()
    sizes = [int(one) for one in args.sizes.split(",")]
    if args.worker:
        worker(Home(args.worker), world.Size(sizes[0], USERS[sizes[0]]), args.seconds)
        return
    rows, notes, by_items = [], {}, {}
    before = os.environ.get("RELOOP_HOME")
    for items in sizes:
        home, size = Home(args.home / str(items)), world.Size(items, USERS[items])
        os.environ["RELOOP_HOME"] = str(home.root)
        engine, users = world.made(home, size)
        print(f"{items:,} items", flush=True)
        by_items[items] = found = measured(engine, users, args.requests)
        notes[f"{items} items"] = found
        case = f"request, {items:,} items, {found['candidates']:.0f} candidates"
        met = found["cpu_ms"] <= TARGET_MS
        rows.append(one_run.row(case, found["cpu_ms"], found["lightgbm_ms"], "ms CPU", "5 ms; peer is LightGBM's predict alone", met=met))
        for n, most in ((100, 10.0), (300, 24.0)):
            again = reranked(engine, users, n)
            notes[f"{items} items, {n} given"] = again
            label = f"re-rank {n} given items, {items:,} items, p99"
            rows.append(
                one_run.row(label, again["cpu_ms_p99"], again["lightgbm_ms"], "ms CPU", f"{most:g} ms", met=again["cpu_ms_p99"] <= most)
            )
        kept = cached(engine, users)
        rows.append(
            one_run.row(f"cached answer, {items:,} items", kept, found["cpu_ms"], "ms CPU", "10x cheaper", met=10 * kept <= found["cpu_ms"])
        )
        notes[f"{items} items, open loop"] = loop = open_loop(engine, users, BUSY * 1000 / found["cpu_ms_mean_contended"], args.seconds)
        held = loop["busy"] < MOST_BUSY
        label = f"open loop, {items:,} items, {loop['rate']:.0f} a second, core {100 * loop['busy']:.0f}% busy"
        rows.append(one_run.row(f"{label}, p50", loop["p50_ms"], found["cpu_ms"], "ms", "peer is the CPU of a request", met=True))
        good = held and loop["p99_ms"] <= LATENCY_MS
        rows.append(one_run.row(f"{label}, p99", loop["p99_ms"], LATENCY_MS, "ms", f"{LATENCY_MS:g} ms, core under 70%", met=good))
        if not args.no_workers:
            notes[f"{items} items, workers"] = scaled = scaling(home, size, args.seconds)
            one, two = (scaled[n]["requests_per_second"] for n in (1, 2))
            rows.append(one_run.row(f"two processes over one, {items:,} items", two, one, "1/s", "2x is all there is", met=two > one))
            for said, cost in (("quiet", found["cpu_ms"]), ("two workers", scaled[2]["cpu_ms"])):
                cores = PER_SECOND * cost / 1000
                label = f"cores for {PER_SECOND:,} a second, {items:,} items, {said}"
                rows.append(
                    one_run.row(label, cores, PER_SECOND * found["lightgbm_ms"] / 1000, "cores", "peer is LightGBM alone", met=True)
                )
    if {100_000, 1_000_000} <= set(by_items):
        small, large = (by_items[items]["cpu_ms"] for items in (100_000, 1_000_000))
        rows.append(one_run.row("1M items over 100k", large, small, "ms CPU", "within 1.5x", met=large <= 1.5 * small))
    if before is None:
        os.environ.pop("RELOOP_HOME")
    else:
        os.environ["RELOOP_HOME"] = before
    one_run.publish_page("serving", rows, json.dumps(notes, indent=1, default=str))


if __name__ == "__main__":
    main()
