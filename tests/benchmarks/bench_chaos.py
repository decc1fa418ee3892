"""What each fault does to the answers: rung, errors, time added, and how long until all is well again; with the deadlines as they are shipped.

The simulated shop of the tests, trained twice; its model with the ranker. Requests come at a steady rate, each for another user, so
that no remembered list hides a fault; where a rung needs lists made beforehand they are there. `added` is over the same process without
the fault, just before; a busy machine adds to both. The peer of a fault's time is the bound: 50 ms more at p99, errors 0.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import chaos_lab as lab
import served_shop
import trained_shop
from chaos_lab import Proxy, Seen, Server, house, requests
from one_run import machine, write_page

from pipelines.config import Home
from pipelines.ranking.two_stage import TwoStage
from pipelines.serving import batch
from pipelines.serving.assembly import House

N, PAUSE, ADDED_MS, BACK_SECONDS = 150, 0.02, 50.0, 10.0


@dataclass
class Line:
    """One fault and what came of it."""

    fault: str
    calm: Seen
    seen: Seen
    back_seconds: float | None = None
    label: str = ""

    @property
    def added_p99(self) -> float:
        return self.seen.p99 - self.calm.p99

    def told(self) -> str:
        rungs = ", ".join(f"{rung} {count}" for rung, count in self.seen.rungs.most_common())
        labels = ", ".join(name for name, _ in self.seen.labels.most_common(2)) or "-"
        back = "-" if self.back_seconds is None else f"{self.back_seconds:.1f} s"
        return (
            f"{self.fault:<44} {rungs:<34} {labels:<18} {len(self.seen.errors):>3}"
            f" {self.seen.p50 - self.calm.p50:>+8.1f} {self.added_p99:>+8.1f} {back:>7}"
        )


@dataclass
class Rig:
    """A shop over a Redis behind a proxy, answering."""

    redis: Server
    proxy: Proxy
    home: Home
    made: House
    asked: int = 0

    def ask(self, n: int = N) -> Seen:
        """Ask for the next users."""
        users = [f"u{(self.asked + at) % 800:08d}" for at in range(n)]
        self.asked += n
        self.made.caches._kept.clear()
        return requests(self.made, users, pause=PAUSE)

    def back(self) -> float:
        """Return seconds until an answer has nothing to complain of the store."""
        users = itertools.cycle(lab.active(self.made, 400))

        def well() -> bool:
            self.made.caches._kept.clear()
            return "store" not in requests(self.made, [next(users)]).labels

        return lab.until(well, 30)


@contextmanager
def rigged(served: Home, root: Path, model: TwoStage, settings: str = "") -> Iterator[Rig]:
    """Yield a rig of its own."""
    with Server(root / "redis") as redis:
        redis.start()
        home = lab.shop(served, root / "var", settings)
        lab.filled(home, redis.address)
        proxy = Proxy(redis.port)
        with house(home, proxy.address, ranked=model) as made:
            rig = Rig(redis, proxy, home, made)
            rig.ask(20)
            yield rig
        proxy.close()


def of_store(served: Home, root: Path, model: TwoStage) -> Iterator[Line]:
    """Yield what the faults of the online store do."""
    with rigged(served, root / "store", model) as rig:

        def while_so(fault: str, begin: Callable[[], object], end: Callable[[], object]) -> Line:
            calm = rig.ask()
            begin()
            seen = rig.ask()
            end()
            return Line(fault, calm, seen, rig.back())

        def slow(seconds: float) -> Callable[[], None]:
            return lambda: setattr(rig.proxy, "delay", seconds)

        yield while_so("Redis slow, 10 ms", slow(0.01), slow(0.0))
        yield while_so("Redis slow, 200 ms", slow(0.2), slow(0.0))
        yield while_so("Redis frozen (SIGSTOP)", rig.redis.freeze, rig.redis.thaw)
        direct = rig.redis.client()

        def lock() -> None:
            direct.config_set("requirepass", "secret")
            lab.client.Redis(port=rig.redis.port, password="secret").client_kill_filter(_type="normal", skipme=True)

        yield while_so(
            "Redis wants a password", lock, lambda: lab.client.Redis(port=rig.redis.port, password="secret").config_set("requirepass", "")
        )
        direct = rig.redis.client()

        def full() -> None:
            direct.config_set("maxmemory-policy", "noeviction")
            direct.config_set("maxmemory", "1mb")

        yield while_so("Redis full, noeviction", full, lambda: direct.config_set("maxmemory", 0))

        def evicting() -> None:
            direct.config_set("maxmemory-policy", "allkeys-lru")
            direct.config_set("maxmemory", direct.info("memory")["used_memory"] // 2)
            for n in range(500):
                direct.set(f"other:{n}", "x" * 1000)

        def filled() -> None:
            direct.config_set("maxmemory", 0)
            lab.filled(rig.home, rig.redis.address)

        yield while_so("Redis evicting, allkeys-lru, half", evicting, filled)
        yield while_so("Redis emptied (FLUSHALL)", direct.flushall, filled)

        def restart() -> None:
            rig.redis.start()
            lab.filled(rig.home, rig.redis.address)

        yield while_so("Redis killed, restarted empty, loaded", rig.redis.kill, restart)


def of_release(served: Home, root: Path, model: TwoStage) -> Iterator[Line]:
    """Yield what the faults of a release do."""
    home = lab.shop(served, root / "release")
    with served_shop.environment(home):
        batch.run(home, trained_shop.SECOND, active_days=0)
    with house(home, ranked=model) as made:
        rig = Rig(None, None, home, made)  # type: ignore[arg-type]
        rig.ask(20)
        calm, sound = rig.ask(), made.holder.held
        lab.poisoned(made)
        seen = rig.ask()
        made.holder.held = sound
        yield Line("every vector and score NaN", calm, seen, rig.back())
        lab.broken(made)
        seen = rig.ask()
        made.holder.held = sound
        yield Line("every request raises; lists beforehand", calm, seen, rig.back())
        lab.broken(made)
        made.holder.held.champion.answer = lambda ask: time.sleep(3600)
        seen = rig.ask()
        yield Line("every request hangs; lists beforehand", calm, seen)
    shutil.rmtree(home.serving / "lists")
    damaged = lab.shop(served, root / "damaged")
    for weights in damaged.bundles.rglob("*.npz"):
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with house(damaged) as made:
        yield Line("bundle truncated, nothing beforehand", calm, Rig(None, None, damaged, made).ask())  # type: ignore[arg-type]
    with house(home, ranked=model) as made:
        for part in (home.bundles, home.features, home.lake):
            shutil.rmtree(part)
        yield Line("bundles, features, lake deleted while serving", calm, Rig(None, None, home, made).ask())  # type: ignore[arg-type]
    empty = Home(root / "empty")
    empty.root.mkdir()
    with house(empty) as made:
        yield Line("nothing at all", calm, Rig(None, None, empty, made).ask())  # type: ignore[arg-type]


def of_cache(served: Home, root: Path, model: TwoStage) -> Iterator[Line]:
    """Yield what the faults of a shared cache do."""
    with Server(root / "cache-redis") as redis:
        redis.start()
        home = lab.shop(served, root / "cache", f'[serving.cache]\nredis = "redis://{redis.address}/0"\n')
        with house(home, ranked=model) as made:
            rig = Rig(redis, None, home, made)  # type: ignore[arg-type]
            rig.ask(20)
            calm = rig.ask()
            redis.freeze()
            seen = rig.ask()
            redis.thaw()
            yield Line("shared cache frozen", calm, seen)
            calm = rig.ask()
            redis.kill()
            yield Line("shared cache killed", calm, rig.ask())


def table(lines: list[Line]) -> list[dict[str, Any]]:
    """Return the figures of the page."""
    rows = []
    for line in lines:
        back = line.back_seconds
        met = not line.seen.errors and line.added_p99 <= ADDED_MS and (back is None or back <= BACK_SECONDS)
        figures = {"rungs": dict(line.seen.rungs), "labels": dict(line.seen.labels), "errors": len(line.seen.errors), "back_seconds": back}
        rows.append(
            {
                "case": line.fault,
                "ours": round(line.added_p99, 2),
                "peer": ADDED_MS,
                "unit": "ms added at p99",
                "ratio": round(ADDED_MS / max(line.added_p99, 0.01), 2),
                "target": f"<= {ADDED_MS:g} ms, 0 errors, back in {BACK_SECONDS:g} s",
                "met": met,
                **figures,
            }
        )
    return rows


def main() -> None:
    """Inject every fault and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, help="folder of the shop that is trained twice, made if it is not there; default: anew")
    asked = parser.parse_args()
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        trained = trained_shop.twice(asked.trained or root / "trained")
        served = served_shop.released(trained, root / "served")
        with served_shop.environment(trained):
            model = lab.ranking(trained)
        print(f"chaos, on {machine()}\n{'fault':<44} {'rungs':<34} {'label':<18} err  p50 ms   p99 ms    back", flush=True)
        for part in (of_store, of_release, of_cache):
            for line in part(served, root, model):
                lines.append(line)
                print(line.told(), flush=True)
    write_page(
        "chaos", table(lines), f"{N} requests a fault at {1 / PAUSE:.0f} a second less their own time; store of the tests, 150 items."
    )


if __name__ == "__main__":
    main()
