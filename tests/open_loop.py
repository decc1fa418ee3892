"""Requests that are sent when they are due, whether earlier ones were answered or not, and timed from that moment.

A service that stalls is not spared the requests that would have come meanwhile (open loop, Poisson).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
SLO_MS = 100.0


@dataclass(frozen=True)
class Call:
    """One request; with a body it is a POST."""

    path: str
    body: bytes = b""
    tier: str = ""

    def wire(self) -> bytes:
        """Return it as HTTP."""
        if not self.body:
            return f"GET {self.path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        head = f"POST {self.path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(self.body)}\r\n\r\n"
        return head.encode() + self.body


@dataclass
class Seen:
    """What a load met.

    Attributes:
        untold: refusals that did not say when to come back.
    """

    rate: float
    seconds: float = 0.0
    codes: dict[int, int] = field(default_factory=dict)
    rungs: dict[str, int] = field(default_factory=dict)
    accepted_ms: list[float] = field(default_factory=list)
    refused_ms: list[float] = field(default_factory=list)
    tiers: dict[str, list[float]] = field(default_factory=dict)
    untold: int = 0
    cpu_seconds: float = 0.0
    resident: int = 0

    @property
    def sent(self) -> int:
        """Requests."""
        return sum(self.codes.values())

    @property
    def shed(self) -> float:
        """Share that was told to come back."""
        return sum(count for code, count in self.codes.items() if code in {429, 503}) / max(self.sent, 1)

    @property
    def broken(self) -> int:
        """Requests that were neither answered nor told to come back."""
        return sum(count for code, count in self.codes.items() if code not in {200, 202, 429, 503})

    @property
    def available(self) -> float:
        """Share that was answered and not by 5xx."""
        return sum(count for code, count in self.codes.items() if 0 < code < 500) / max(self.sent, 1)

    def quantile(self, q: float, tier: str = "") -> float:
        """Return a quantile of what was accepted, milliseconds; of one tier where it is named."""
        values = self.tiers.get(tier, []) if tier else self.accepted_ms
        return statistics.quantiles(values, n=1000)[int(q * 1000) - 1] if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Service:
    """A `reloop serve` that runs: the id of its supervisor, and where it listens."""

    pid: int
    port: int

    def workers(self) -> list[int]:
        """Return the ids of the processes that answer."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def cpu(self) -> float:
        """Return the processor seconds that they took so far."""
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.workers()]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats) / TICKS

    def resident(self) -> int:
        """Return their memory, bytes."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers()) * os.sysconf("SC_PAGESIZE")

    def held(self) -> tuple[int, int]:
        """Return how many files they have open, and threads."""
        pids = self.workers()
        return tuple(sum(len(list(Path(f"/proc/{pid}/{part}").iterdir())) for pid in pids) for part in ("fd", "task"))  # type: ignore[return-value]


async def load(service: Service, rate: float, seconds: float, call: Callable[[], Call], seed: int = 1) -> Seen:
    """Send requests at a rate, and return what became of them."""
    rng, seen, idle = random.Random(seed), Seen(rate), list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
    running: set[asyncio.Task[None]] = set()

    async def ask(due: float, asked: Call) -> None:
        head = b""
        try:
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(asked.wire())
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            code = int(head.split(b" ", 2)[1])
            length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1])
            body = await asyncio.wait_for(reader.readexactly(length), 20)
            idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            code, body = 0, b""
        took = (time.perf_counter() - due) * 1e3
        seen.codes[code] = seen.codes.get(code, 0) + 1
        if code in {200, 202}:
            seen.accepted_ms.append(took)
            seen.tiers.setdefault(asked.tier, []).append(took)
        else:
            seen.refused_ms.append(took)
            seen.untold += code in {429, 503} and b"retry-after:" not in head.lower()
        if code == 200 and b'"rung"' in body:
            rung = body.split(b'"rung":"', 1)[1].split(b'"', 1)[0].decode()
            seen.rungs[rung] = seen.rungs.get(rung, 0) + 1

    before, begun = service.cpu(), time.perf_counter()
    due = begun
    while due < begun + seconds:
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(ask(due, call()))
        running.add(task)
        task.add_done_callback(running.discard)
        due += rng.expovariate(rate)
    await asyncio.gather(*running)
    seen.seconds = time.perf_counter() - begun
    seen.cpu_seconds, seen.resident = service.cpu() - before, service.resident()
    for _, writer in idle:
        writer.close()
    return seen


async def saturating(service: Service, seconds: float, call: Callable[[], Call], clients: int = 4) -> float:
    """Return the answers a second that come where a few clients ask without pause: what the service can do here and now, whatever else runs."""
    answered, end = 0, time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        while time.perf_counter() < end:
            writer.write(call().wire())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1])
            await reader.readexactly(length)
            if head.split(b" ", 2)[1] == b"200":
                answered += 1
            else:
                await asyncio.sleep(0.05)
        writer.close()

    await asyncio.gather(*[ask() for _ in range(clients)])
    return answered / seconds


def everything(users: Sequence[str], items: Sequence[str], seed: int = 1) -> Callable[[], Call]:
    """Return what draws a request as a shop has them: every surface, events among them, half of the home lists asked for again."""
    rng = random.Random(seed)
    shares = {"home": 40, "because": 8, "similar": 20, "together": 8, "like": 4, "trending": 4, "basket": 4, "session": 4, "events": 8}

    def draw() -> Call:
        (tier,) = rng.choices(list(shares), list(shares.values()))
        user, item = rng.choice(users), rng.choice(items)
        event = {"item_id": item, "event_type": "view"}
        calls = {
            "home": lambda: (f"/v1/users/{user}/recommendations?k=10", {}),
            "because": lambda: (f"/v1/users/{user}/because-you-viewed?k=10", {}),
            "similar": lambda: (f"/v1/items/{item}/similar?k=10&user_id={user}", {}),
            "together": lambda: (f"/v1/items/{item}/bought-together?k=10", {}),
            "like": lambda: (f"/v1/items/{item}/like?change=cheaper&k=10", {}),
            "trending": lambda: ("/v1/trending?k=10", {}),
            "basket": lambda: ("/v1/baskets/recommendations", {"item_ids": [item], "k": 10}),
            "session": lambda: ("/v1/sessions/recommendations", {"events": [event], "k": 10}),
            "events": lambda: ("/v1/events", {"events": [{**event, "user_id": user}]}),
        }
        path, body = calls[tier]()
        return Call(path, json.dumps(body).encode() if body else b"", tier)

    return draw
