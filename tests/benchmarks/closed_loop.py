"""A small shop whose people ask the real service for their lists, and whose only log is what they did with them.

    organic       a share of the visits browses the shop as before and never sees a list (search, shelves)
    calls         the others ask `GET /v1/users/{id}/recommendations` when they come, look from the top, and answer by their
                  true taste (`simulator.shoppers`); what they do goes to `POST /v1/events` with the request that led to it
    cycles        each week the Dags take in what happened, retrain if a training is due, and put the challenger before the gate

What an arm learns from is what it caused. The truth behind the people is known, so what a list is worth can be told exactly.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from starlette.testclient import TestClient

from pipelines import columns as c
from pipelines import config, run
from pipelines.config import Home
from pipelines.evaluation import spread
from pipelines.serving import assembly
from pipelines.sources.request import Request, Source, World
from pipelines.sources.simulator import Shop
from pipelines.sources.simulator.shoppers import Shoppers
from pipelines.window import Window, utc

START = utc("2025-01-06")
WORLD = World(seed=7, users=1000, items=300, events_per_day=1600)
ASKING = 0.7  # share of the visits that see lists
K = 10
MAPPING = """
files: {events: events.parquet, items: items.parquet, users: users.parquet}
events: {file: events, event_id: event_id, user_id: user_id, item_id: item_id, event_type: event_type, event_at: event_at,
  received_at: received_at, value: value, quantity: quantity, session_id: session_id, device: device}
items: {file: items, item_id: item_id, title: title, category: category, brand: brand, price: price, available: available,
  created_at: created_at, valid_from: valid_from}
users: {file: users, user_id: user_id, country: country, age_band: age_band, signed_up_at: signed_up_at, valid_from: valid_from}
"""
SETTINGS = """
[retrieval]
sources = ["popular", "popular_7d", "item_knn", "user_knn", "sequence_rules", "repeat", "cold_items"]
[ranking]
n_rounds = 60
num_threads = 1
[gate]
min_users = 200
min_slice_users = 50
slices = ["light_users", "tail_items"]
max_slice_loss = 0.1
max_segment_loss = 0.1
max_fresh_loss = 0.05
max_age_days = 14  # four hundred judged users show gains from 4% on: a fortnight later what is fresh need only be no worse
[serving.cache]
list_seconds = 0
# What is measured is what lists are worth, not whether the machine is busy.
[serving.limits]
requests_per_second = 100000
max_wait_ms = 20000
max_late_ms = 20000
[serving.deadline]
request_ms = 20000
store_ms = 2000
retrieve_by_ms = 10000
rank_by_ms = 15000
"""


def day_of(number: int) -> datetime:
    """Return the midnight that begins a day of the world, the first being 0."""
    return START + timedelta(days=number)


@dataclass
class Clock:
    """What time it is in the shop."""

    now: datetime = START

    def __call__(self) -> datetime:
        """Return it."""
        return self.now


@dataclass
class Day:
    """What a day was worth to the people who were shown lists, and what was shown.

    Attributes:
        worth: mean share of the taste that could be met: 0 is a random shelf, 1 the best ten.
        clicks, carts, bought: of the places shown.
        coverage: share of the items on sale that were shown; gini: of how often; categories: mean number in a list.
    """

    worth: float
    calls: int
    clicks: int
    carts: int
    bought: int
    coverage: float
    gini: float
    categories: float
    revenue: float
    rungs: dict[str, int] = field(default_factory=dict)


Shows = Callable[[int, Shoppers], tuple[list[str], str, str]]  # a call -> items, name of the request, rung
Heard = Callable[[pa.Table], None]


def lived(shoppers: Shoppers, shows: Shows, heard: Heard) -> Day:
    """Let everybody of a day be shown a list and answer it."""
    truth = shoppers.truth
    ids = truth.item_ids.to_pylist()
    place = {item: at for at, item in enumerate(ids)}
    sale = np.flatnonzero(truth.available)
    worth, shelves, kinds, rungs = [], [], [], Counter()
    clicks = carts = bought = 0
    revenue = 0.0
    for call in range(len(shoppers.calls)):
        items, request_id, rung = shows(call, shoppers)
        utility = shoppers.utility(int(shoppers.calls.user[call]))
        random, best = utility[sale].mean(), np.sort(utility[sale])[-K:].mean()
        shown = [utility[place[item]] if item in place and truth.available[place[item]] else random for item in items[:K]]
        worth.append((np.mean([*shown, *[random] * (K - len(shown))]) - random) / (best - random))
        shelves.append(items[:K])
        rungs[rung] += 1
        kinds.append(len({str(truth.categories[place[item]]) for item in items if item in place}))
        done = shoppers.answer(call, items)
        if done:
            events = shoppers.events(call, items, request_id, done)
            revenue += float(sum(value or 0.0 for value in events[c.VALUE].to_pylist()))
            heard(events)
        clicks, carts, bought = clicks + len(done), carts + sum(d[1] for d in done), bought + sum(d[2] for d in done)
    at_sale = {ids[at]: number for number, at in enumerate(sale)}
    lists = np.array([[at_sale.get(item, -1) for item in row] + [-1] * (K - len(row)) for row in shelves], np.int32)
    return Day(
        float(np.mean(worth)),
        len(shoppers.calls),
        clicks,
        carts,
        bought,
        len({item for row in shelves for item in row} & at_sale.keys()) / len(sale),
        spread.gini(lists, len(sale), K),
        float(np.mean(kinds)),
        round(revenue, 2),
        dict(rungs),
    )


def written(folder: Path, shop: Shop, warm: int, days: int) -> Request:
    """Write the shop's own log as files: everybody's up to the first list, then of those who ask for none; return how it is read."""
    if not (folder / "mapping.yml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        whole = Window(day_of(0), day_of(warm + days))
        events = [shop.events(Window(day_of(0), day_of(warm)))]
        for number in range(warm, warm + days):
            own = shop.events(Window(day_of(number), day_of(number + 1)))
            asked = Shoppers(shop, number, share=ASKING).calls.session
            numbers = np.array([int(name[5:]) for name in own[c.SESSION_ID].to_pylist()])
            events.append(own.filter(pa.array(~np.isin(numbers, asked))))
        for name, table in {"events": pa.concat_tables(events), "items": shop.items(whole), "users": shop.users(whole)}.items():
            pq.write_table(
                table.drop_columns([n for n in (c.ATTRIBUTES, c.REQUEST_ID) if n in table.column_names]), folder / f"{name}.parquet"
            )
        (folder / "mapping.yml").write_text(MAPPING, encoding="utf-8")
    return Request(source=Source.TABLE, path=folder, mapping=folder / "mapping.yml")


def cycle(home: Home, request: Request, first: int, end: int) -> list[dict[str, Any]]:
    """Let the Dags take in some days, train if that is due, decide, and look for drift; return what the run says of it."""
    plan = run.Plan(request, [Window(day_of(first), day_of(end))], 14)
    figures = run.execute(home, plan, config.load(home), Console(stderr=True, quiet=True))
    return [dict(one) for one in figures]


@contextmanager
def served(home: Home, clock: Clock) -> Iterator[Shows]:
    """Yield the real service of a state folder as something that shows lists; ends it afterwards, every event taken."""
    with assembly.house(home, clock) as house, TestClient(assembly.gated(house, home)) as client:

        def shows(call: int, shoppers: Shoppers) -> tuple[list[str], str, str]:
            clock.now = START + timedelta(microseconds=int(shoppers.calls.at[call]))
            user = shoppers.truth.user_ids[int(shoppers.calls.user[call])].as_py()
            answer = client.get(f"/v1/users/{user}/recommendations", params={"k": K})
            answer.raise_for_status()
            body = answer.json()
            return [item["item_id"] for item in body["items"]], body["request_id"], body["rung"]

        shows.heard = lambda events: _post(client, clock, events)  # type: ignore[attr-defined]
        yield shows


def _post(client: TestClient, clock: Clock, events: pa.Table) -> None:
    rows = events.drop_columns([c.RECEIVED_AT]).to_pylist()
    clock.now = rows[-1][c.EVENT_AT] + timedelta(seconds=1)
    said = [
        {name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items() if value is not None}
        for row in rows
    ]
    for row in said:
        if c.QUANTITY in row:
            row[c.QUANTITY] = int(row[c.QUANTITY])
    client.post("/v1/events", json={"events": said}).raise_for_status()


def popular(shop: Shop, warm: int) -> tuple[Shows, Heard]:
    """Return somebody who shows everybody what was taken most in the last seven days, and hears what they take."""
    log: Counter[tuple[int, str]] = Counter()
    before = shop.events(Window(day_of(warm - 7), day_of(warm)))
    log.update(zip(_days(before), before[c.ITEM_ID].to_pylist(), strict=True))

    def shows(call: int, shoppers: Shoppers) -> tuple[list[str], str, str]:
        today = int(shoppers.calls.at[call] // 86_400_000_000)
        if shows.day != today:  # type: ignore[attr-defined]
            taken: Counter[str] = Counter()
            for (day, item), count in log.items():
                taken[item] += count if today - 7 <= day < today else 0
            sale = {item for item, there in zip(shoppers.truth.item_ids.to_pylist(), shoppers.truth.available, strict=True) if there}
            shows.list = [item for item, _ in taken.most_common() if item in sale][:K]  # type: ignore[attr-defined]
            shows.day = today  # type: ignore[attr-defined]
        return shows.list, f"p{call}-{today}", "popular"  # type: ignore[attr-defined]

    shows.day = -1  # type: ignore[attr-defined]
    return shows, lambda events: log.update(zip(_days(events), events[c.ITEM_ID].to_pylist(), strict=True))


def _days(events: pa.Table) -> list[int]:
    return [(moment - START).days for moment in events[c.EVENT_AT].to_pylist()]


def by_truth(call: int, shoppers: Shoppers) -> tuple[list[str], str, str]:
    """Show everybody the ten that they like best: nobody can do better."""
    sale = np.flatnonzero(shoppers.truth.available)
    best = sale[np.argsort(-shoppers.utility(int(shoppers.calls.user[call]))[sale], kind="stable")[:K]]
    return shoppers.truth.item_ids.take(pa.array(best)).to_pylist(), f"o{call}", "oracle"


def by_lot(call: int, shoppers: Shoppers) -> tuple[list[str], str, str]:
    """Show everybody ten items drawn by lot."""
    rng = np.random.default_rng([int(shoppers.calls.session[call]), int(shoppers.calls.at[call] // 86_400_000_000)])
    drawn = rng.choice(np.flatnonzero(shoppers.truth.available), K, replace=False)
    return shoppers.truth.item_ids.take(pa.array(drawn)).to_pylist(), f"r{call}", "random"


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, made and written if there is none."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(make(), indent=1, default=str), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def begun(root: Path, request: Request, warm: int, settings: Sequence[str] = ()) -> Home:
    """Return a state folder that knows the shop up to the first list, its first model released by the Dags; made once."""
    home = Home(root)
    if not (root / "ready").is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        (root / "reloop.toml").write_text(SETTINGS + "\n".join(settings), encoding="utf-8")
        cycle(home, request, 0, warm)
        (root / "ready").touch()
    return home
