"""Lists made beforehand: whole or not there, the same bytes whatever kills the making, found again by the service, and never an old for a new one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
import served_shop
from scripted import PATIENT, Engine, items, raising
from trained_shop import SECOND

from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets.interactions import load
from pipelines.errors import StateError
from pipelines.ranking import two_stage
from pipelines.registry import choosing
from pipelines.serving import batch, batch_lists, blocked
from pipelines.serving.batch_lists import BatchLists
from pipelines.serving.blocked import Blocked
from pipelines.serving.caches import Caches
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.ladder import Ladder
from pipelines.serving.news import News
from pipelines.serving.request import CACHED, Answer, Ask, Filters
from pipelines.serving_policies import CachePolicy, ServingSettings

NOW = SECOND + timedelta(hours=6)


@pytest.fixture(scope="module")
def made(served: Home, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Return a copy of the served shop in which the lists of everybody were made."""
    home = served_shop.copied(served, tmp_path_factory.mktemp("batch") / "var")
    with served_shop.environment(home):
        batch.run(home, SECOND, k=20, active_days=0)
    return home


def ladder(home: Home, settings: ServingSettings = PATIENT) -> Ladder:
    """Return a ladder whose release always fails, over the lists of a state folder."""
    caches = Caches(settings.cache, News(home), precomputed=BatchLists(home, settings))
    knowledge = Knowledge(home, settings)
    return Ladder(settings, lambda asked: (Engine(raising), ""), lambda: knowledge, Blocked(home, follow_seconds=0), cached=caches)


def asked(way: Ladder, user: str = "u00000005", **said) -> Answer:
    return way.answer(Ask(**({"surface": "home", "request_id": "r", "as_of": NOW, "k": 10, "user_id": user} | said)))


def test_the_lists_are_those_that_the_release_would_answer_with(made):
    table = pq.read_table(batch.folder(made, SECOND) / "lists.parquet")
    users = np.array(table["user_id"].to_pylist())
    assert len(users) > 500
    assert users.tolist() == sorted(users.tolist())
    some = users[::97]
    with served_shop.environment(made):
        lists = two_stage.rank_users(made, choosing.serving(made).model, some, SECOND, 20)
    rows = dict(zip(users.tolist(), table["item_ids"].to_pylist(), strict=True))
    assert [rows[user] for user in some] == [[item for item in row if item] for row in lists.item_ids.tolist()]


def test_where_the_release_fails_the_precomputed_list_answers_and_says_its_age(made):
    answer = asked(ladder(made))
    table = pq.read_table(batch.folder(made, SECOND) / "lists.parquet", filters=[("user_id", "=", "u00000005")])
    assert (answer.rung, items(answer)) == (CACHED, table["item_ids"].to_pylist()[0][:10])
    assert answer.degraded == ("full: ValueError: the ranker is broken", "cached: precomputed 6.0 h ago")
    assert answer.release.version == 1
    assert answer.items[0].about["title"]
    assert answer.items[0].sources


def test_filters_and_takedowns_hold_and_there_is_enough_to_choose_from(made):
    way = ladder(made)
    first = asked(way)
    category = first.items[0].about["category"]
    chosen = asked(way, filters=Filters(categories=(category,)))
    assert {shown.about["category"] for shown in chosen.items} == {category}
    blocked.block(made, [items(first)[0]], "recalled")
    try:
        left = asked(way)
        assert items(left)[:9] == items(first)[1:]
        assert len(left.items) == 10
    finally:
        blocked.unblock(made, [items(first)[0]])


def test_what_is_blocked_is_in_no_list_that_is_made_and_a_takedown_makes_them_anew(made, tmp_path):
    home = served_shop.copied(made, tmp_path / "var")
    first = pq.read_table(batch.folder(home, SECOND) / "lists.parquet")
    bad = first["item_ids"].to_pylist()[0][0]
    blocked.block(home, [bad, "unheard of"], "recalled")
    with served_shop.environment(home):
        batch.run(home, SECOND, k=20, active_days=0)
    left = pq.read_table(batch.folder(home, SECOND) / "lists.parquet")
    before, after = ([list(zip(*row.values(), strict=True)) for row in one.drop(["user_id"]).to_pylist()] for one in (first, left))
    assert after == [[place for place in places if place[0] != bad] for places in before]
    (db,) = (
        path
        for path in batch_lists.folder(home).glob("*.db")
        if path.stem == json.loads((batch_lists.folder(home) / "current.json").read_text())["name"]
    )
    assert bad not in db.read_bytes().decode("utf-8", "replace")


def test_who_has_no_list_gets_a_lower_rung(made):
    way = ladder(made)
    assert asked(way, "nobody").rung == "popular"
    assert asked(way, "nobody").degraded[1] == "cached: nothing kept"
    assert asked(way, user=None, user_id=None).rung == "popular"
    assert asked(way, surface="similar", item_ids=("i00000001",)).rung in {"popular", "segment_popular"}


def test_a_list_that_is_too_old_or_of_the_future_is_none(made):
    way = ladder(made)
    assert asked(way, as_of=SECOND + timedelta(days=3)).rung == CACHED
    assert asked(way, as_of=SECOND + timedelta(days=3, seconds=1)).rung != CACHED
    assert asked(way, as_of=SECOND - timedelta(seconds=1)).rung != CACHED


def test_blocks_of_any_size_give_the_same_lists(made, tmp_path):
    whole = pq.read_table(batch.folder(made, SECOND) / "lists.parquet")
    small = config.load(made).serving.batch.model_copy(update={"k": 20, "active_days": 0, "users_at_once": 100})
    with served_shop.environment(made):
        other = Home(tmp_path / "var")
        served_shop.shutil.copytree(made.root, other.root, ignore=served_shop.shutil.ignore_patterns("recommendations"))
        batch.publish_lists(other, choosing.serving(other), SECOND, small)
    assert pq.read_table(batch.folder(other, SECOND) / "lists.parquet").equals(whole)


def test_run_again_it_makes_nothing_and_after_a_new_release_it_does(made, monkeypatch):
    digest = publish.manifest(batch.folder(made, SECOND)).digest
    inode = (batch.folder(made, SECOND) / "lists.parquet").stat().st_ino
    with served_shop.environment(made):
        batch.run(made, SECOND, k=20, active_days=0)
        assert (batch.folder(made, SECOND) / "lists.parquet").stat().st_ino == inode
        (batch.folder(made, SECOND) / "lists.parquet").write_bytes(b"damaged")
        with pytest.raises(StateError, match="bytes that differ"):
            batch.run(made, SECOND, k=20, active_days=0)
        served_shop.shutil.rmtree(batch.folder(made, SECOND))
        batch.run(made, SECOND, k=20, active_days=0)
    assert publish.manifest(batch.folder(made, SECOND)).digest == digest


def test_an_older_moment_does_not_take_the_place_of_a_newer_one(made):
    with served_shop.environment(made):
        record = batch.run(made, SECOND - timedelta(days=1), k=20, active_days=1)
    assert record["loaded"] == []
    assert json.loads((batch_lists.folder(made) / "current.json").read_text())["facts"]["as_of"] == SECOND.isoformat()


def test_the_active_users_are_those_with_an_event_in_the_days_before(made):
    known = load(made, SECOND, config.load(made).training)
    last = {user: known.at[known.user == at].max() for at, user in enumerate(known.user_ids.tolist())}
    day = 86_400_000_000
    assert batch.active(known, 2).tolist() == [user for user, at in last.items() if at >= known.as_of - 2 * day]
    assert batch.active(known, 0).tolist() == list(last)


def test_there_is_nothing_to_make_lists_with_before_the_first_release(home):
    with pytest.raises(StateError, match="no release"):
        batch.run(home, SECOND)


KILLED = """
import os, signal, sys
from pathlib import Path
from pipelines import publish
from pipelines.config import Home
from pipelines.serving import batch, batch_lists
from pipelines.window import utc

where, root = sys.argv[1], Path(sys.argv[2])
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
if where == "in the middle of the blocks":
    batch.table = lambda lists, real=batch.table, seen=[]: die() if seen else (seen.append(1), real(lists))[1]
elif where == "before the load":
    batch_lists.load = die
elif where == "in the middle of the load":
    batch_lists._bodies = lambda file, real=batch_lists._bodies: (die() if n == 300 else row for n, row in enumerate(real(file)))
elif where == "before the pointer":
    batch_lists.publish.write_json = lambda path, value, real=publish.write_json: die() if path.name == "current.json" else real(path, value)
elif where == "before the tidying":
    batch._tidy = die
batch.run(Home(root), utc("2025-02-17"), k=20, active_days=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", ["in the middle of the blocks", "before the load", "in the middle of the load", "before the pointer", "before the tidying"]
)
def test_killed_anywhere_and_run_again_it_ends_in_the_same_bytes(made, tmp_path, where):
    root = tmp_path / "var"
    served_shop.shutil.copytree(made.root, root, ignore=served_shop.shutil.ignore_patterns("recommendations", "lists"))
    with (root / "reloop.toml").open("a") as file:
        file.write("\n[serving.batch]\nusers_at_once = 300\n")
    home = Home(root)
    with served_shop.environment(home):
        died = subprocess.run([sys.executable, "-c", KILLED, where, str(root)], check=False)
        assert died.returncode == -signal.SIGKILL
        before = asked(ladder(home))
        assert before.rung == (CACHED if where == "before the tidying" else before.rung)
        assert (before.rung == CACHED) == (where == "before the tidying"), "half a batch answers nobody"
        batch.run(home, SECOND, k=20, active_days=0)
    assert asked(ladder(home)).rung == CACHED
    files = sorted(path.name for path in batch_lists.folder(home).iterdir())
    assert files == sorted(path.name for path in batch_lists.folder(made).iterdir())
    ours, theirs = (pq.read_table(batch.folder(one, SECOND) / "lists.parquet") for one in (home, made))
    assert ours.equals(theirs)
    assert [path.name for path in home.recommendations.iterdir() if path.suffix == ".tmp"] == []


class TestRedis:
    """Lists over Redis, for machines without the file."""

    @pytest.fixture
    def two(self, made, tmp_path, redis):
        """Return settings with Redis, the home that made the lists, and one that has none."""
        settings = PATIENT.model_copy(update={"cache": CachePolicy(redis=f"redis://{redis}/0", redis_ms=500, prefix="shop")})
        other = Home(tmp_path / "other")
        served_shop.shutil.copytree(made.feast, other.feast)
        return settings, made, other

    def load(self, settings: ServingSettings, home: Home, name: str = "") -> None:
        where = batch.folder(home, SECOND)
        facts = publish.manifest(where).facts
        batch_lists._to_redis(
            settings, batch_lists.keys(home, settings), name or batch_lists.name_of(facts), where / "lists.parquet", facts
        )

    def test_a_machine_without_the_file_answers_from_redis(self, two):
        settings, home, other = two
        assert asked(ladder(other, settings)).rung != CACHED
        self.load(settings, home)
        there, here = asked(ladder(other, settings)), asked(ladder(home, settings))
        assert (there.rung, items(there), there.release) == (CACHED, items(here), here.release)

    def test_a_redis_that_evicts_is_found_out_right_after_the_load(self, two):
        settings, home, _ = two
        client = batch_lists.client(settings.cache.redis, 500)
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 300_000)
        with pytest.raises(StateError, match="keys evicted"):
            self.load(settings, home)
        assert client.get(batch_lists.keys(home, settings) + batch_lists.CURRENT) is None

    def test_a_batch_that_was_replaced_twice_is_gone_and_nothing_else(self, two):
        settings, home, _ = two
        client = batch_lists.client(settings.cache.redis, 500)
        for key in ("reloop:other:batch:one:u1", "reloop:shop:list:x"):
            client.set(key, b"kept")
        for name in ("one", "two", "three"):
            self.load(settings, home, name)
        names = {key.decode().split(":")[3] for key in client.keys("reloop:shop:batch:*")}
        assert names == {"two", "three", "current"}
        assert client.mget("reloop:other:batch:one:u1", "reloop:shop:list:x") == [b"kept"] * 2

    def test_a_redis_that_is_full_is_an_error_with_a_hint(self, two):
        settings, home, _ = two
        client = batch_lists.client(settings.cache.redis, 500)
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 100_000)
        with pytest.raises(StateError, match="OutOfMemory"):
            self.load(settings, home)

    def test_a_redis_that_is_gone_or_was_emptied_leaves_the_file(self, two):
        settings, home, other = two
        self.load(settings, home)
        way, far = ladder(home, settings), ladder(other, settings)
        client = batch_lists.client(settings.cache.redis, 500)
        client.flushall()
        assert asked(way).rung == CACHED
        assert asked(far).rung != CACHED
        client.shutdown(nosave=True)
        assert asked(way).rung == CACHED
        assert asked(far).degraded[1].startswith("cached:")
