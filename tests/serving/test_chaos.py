"""Whatever breaks, every request gets an answer from the right rung that says what broke, and the service comes back by itself."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import chaos_lab as lab
import pytest
import served_shop
from chaos_lab import Proxy, Server, house, requests, users
from trained_shop import SECOND

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import store
from pipelines.ranking.two_stage import TwoStage
from pipelines.serving import batch, blocked
from pipelines.serving.request import Filters

# The claims are about rungs and labels, so the deadlines leave room for a busy machine; `make bench-chaos` has the times.
PATIENT = "[serving.deadline]\nrequest_ms = 5000\nstore_ms = 250\nretrieve_by_ms = 4000\nrank_by_ms = 4500\n"

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def server(served: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Home]]:
    """Return a Redis with the features of the shop, and the shop."""
    with Server(tmp_path_factory.mktemp("redis")) as running:
        running.start()
        home = lab.shop(served, tmp_path_factory.mktemp("chaos") / "var", PATIENT)
        lab.filled(home, running.address)
        yield running, home


@pytest.fixture(scope="module")
def model(trained: Home) -> TwoStage:
    """Return a model with a ranker."""
    with served_shop.environment(trained):
        return lab.ranking(trained)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    """Return a Redis that runs and holds nothing."""
    with Server(tmp_path / "redis") as running:
        running.start()
        yield running


def test_a_frozen_store_then_a_thawed_one(server, model):
    redis, home = server
    with house(home, redis.address, ranked=model) as made:
        seen = requests(made, users(3))
        assert (seen.rungs, seen.labels) == ({"full": 3}, {})
        redis.freeze()
        try:
            seen = requests(made, users(12, 10))
        finally:
            redis.thaw()
        assert seen.errors == []
        assert seen.rungs == {"blend": 12}
        assert seen.labels == {"store": 12}
        assert made.knowledge.breaker.state != "closed"
        assert "Timeout" in seen.answers[0].degraded[0]
        assert "not asked for another" in seen.answers[-1].degraded[0], "who comes later does not wait"
        assert lab.until(lambda: requests(made, users(1, 30)).rungs == {"full": 1}, 10) <= 10, "closed again within ten seconds"


def test_a_slow_store_is_left_alone(server, model):
    redis, home = server
    proxy = Proxy(redis.port)
    with house(home, proxy.address, ranked=model) as made:
        assert requests(made, users(2)).rungs == {"full": 2}
        proxy.delay = 0.5
        seen = requests(made, users(10, 10))
        assert (seen.errors, seen.rungs, seen.labels) == ([], {"blend": 10}, {"store": 10})
        proxy.delay = 0.0
        assert lab.until(lambda: requests(made, users(1, 30)).rungs == {"full": 1}, 10) <= 10
    proxy.close()


def test_a_wrong_password_and_a_right_one_again(server, model):
    redis, home = server
    with house(home, redis.address, ranked=model) as made:
        redis.client().config_set("requirepass", "secret")
        try:
            redis.client().execute_command("AUTH", "secret")
            with_password = lab.client.Redis(port=redis.port, password="secret")
            with_password.client_kill_filter(_type="normal", skipme=True)
            seen = requests(made, users(5))
            assert (seen.errors, seen.rungs, seen.labels) == ([], {"blend": 5}, {"store": 5})
            assert "secret" not in str([answer.degraded for answer in seen.answers])
        finally:
            lab.client.Redis(port=redis.port, password="secret").config_set("requirepass", "")
        assert lab.until(lambda: requests(made, users(1, 20)).rungs == {"full": 1}, 10) <= 10


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
def test_a_store_without_memory_still_serves_and_its_loss_is_told(served, tmp_path, redis, policy, model):
    """Eviction is what a load finds out right after writing; what is gone is named in each answer it is missing from."""
    home = lab.shop(served, tmp_path / "var", PATIENT)
    lab.filled(home, redis.address)
    direct = redis.client()
    direct.config_set("maxmemory-policy", policy)
    direct.config_set("maxmemory", direct.info("memory")["used_memory"] * 3 // 5)
    with house(home, redis.address, ranked=model) as made:
        if policy == "allkeys-lru":
            for n in range(500):
                direct.set(f"other:{n}", "x" * 1000)
        seen = requests(made, lab.active(made, 100))
        assert (seen.errors, seen.rungs) == ([], {"full": 100})
        if policy == "noeviction":
            assert seen.labels == {}
        else:
            assert seen.labels["store"] > 0
            with pytest.MonkeyPatch.context() as patch, served_shop.environment(home):
                patch.setenv("RELOOP_REDIS", redis.address)
                with pytest.raises(StateError, match="evicted"):
                    store.materialize(home, SECOND)


@pytest.mark.slow
def test_a_store_that_was_emptied_or_killed_and_comes_back_empty(served, tmp_path, redis, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    lab.filled(home, redis.address)
    with house(home, redis.address, ranked=model) as made:
        assert requests(made, users(3)).labels == {}
        redis.client().flushall()
        seen = requests(made, lab.active(made, 10, 10))
        assert (seen.errors, seen.rungs) == ([], {"full": 10})
        assert seen.labels == {"store": 10}, "an answer that lacks the features of the store says so"
        redis.kill()
        seen = requests(made, lab.active(made, 10, 30))
        assert (seen.errors, seen.rungs, seen.labels) == ([], {"blend": 10}, {"store": 10})
        redis.start()
        lab.filled(home, redis.address)
        assert lab.until(lambda: requests(made, lab.active(made, 1, 50)).labels == {}, 15) <= 15


def test_the_embedded_store_may_be_damaged(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, ranked=model) as made:
        assert requests(made, users(2)).labels == {}
    files = list(home.feast.rglob("*.db*"))
    online = [file for file in files if "online" in file.name]
    assert online
    for file in online:
        file.write_bytes(b"this is no database" * 1000)
    with house(home, ranked=model) as made:
        seen = requests(made, users(8))
    assert (seen.errors, seen.rungs, seen.labels) == ([], {"blend": 8}, {"store": 8})


def test_a_corrupt_bundle_is_never_served_and_popularity_answers(served, tmp_path):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    damaged = list(home.bundles.rglob("*.npz"))
    assert damaged
    for weights in damaged:
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with house(home) as made:
        seen = requests(made, users(5))
    assert seen.errors == []
    assert set(seen.rungs) <= {"segment_popular", "popular"}
    assert seen.labels["full"] == 5


def test_a_bundle_that_is_taken_away_under_a_running_service_changes_nothing(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, ranked=model) as made:
        shutil.rmtree(home.bundles)
        shutil.rmtree(home.features)
        shutil.rmtree(home.lake)
        seen = requests(made, users(5))
    assert (seen.errors, seen.rungs, seen.labels) == ([], {"full": 5}, {})


def test_snapshots_that_are_taken_away_leave_those_of_before(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, ranked=model) as made:
        requests(made, users(2))
        shutil.rmtree(home.feast)
        time.sleep(1.1)
        seen = requests(made, users(5, 10))
    assert seen.errors == []
    assert set(seen.rungs) <= {"full", "blend"}


def test_a_release_of_nothing_but_nan_shows_none_of_it(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, ranked=model) as made:
        lab.poisoned(made)
        seen = requests(made, [*users(40), None])
    assert seen.errors == []
    assert set(seen.rungs) <= {"blend", "segment_popular", "popular"}
    assert seen.labels["ranker"] + seen.labels["full"] == 41
    assert all(math.isfinite(shown.score) and shown.item_id for answer in seen.answers for shown in answer.items)
    assert all(answer.items for answer in seen.answers)


def test_lists_that_were_made_beforehand_answer_for_a_broken_release_and_may_be_damaged_too(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with served_shop.environment(home):
        batch.run(home, SECOND, k=20, active_days=1)
    with house(home, ranked=model) as made:
        lab.broken(made)
        seen = requests(made, users(60))
        assert seen.errors == []
        assert set(seen.rungs) <= {"cached", "segment_popular", "popular"}
        assert seen.rungs["cached"] > 0
    for file in (home.serving / "lists").glob("*.db"):
        file.write_bytes(b"this is no database" * 1000)
    with house(home, ranked=model) as made:
        lab.broken(made)
        seen = requests(made, users(10))
    assert seen.errors == []
    assert set(seen.rungs) <= {"segment_popular", "popular"}
    assert seen.labels["cached"] == 10


def test_nothing_at_all_is_an_empty_answer(tmp_path, monkeypatch):
    home = Home(tmp_path / "var")
    monkeypatch.setenv("RELOOP_HOME", str(home.root))
    home.root.mkdir()
    with house(home) as made:
        seen = requests(made, ["anybody", None])
        other = requests(made, ["anybody"], surface="similar", item_ids=("anything",))
    assert (seen.errors, seen.rungs, other.rungs) == ([], {"empty": 2}, {"empty": 1})
    assert seen.labels["full"] == 2


def test_a_catalogue_of_which_one_item_may_be_shown_gives_that_item_once_on_every_rung(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, ranked=model) as made:
        ids = made.knowledge.catalogue.item_ids.to_pylist()
        answer = requests(made, users(1)).answers[0]
        only = answer.items[0].item_id
        blocked.block(home, [item for item in ids if item != only], "all but one")
        time.sleep(0.6)
        for poison in (False, True):
            if poison:
                lab.poisoned(made)
            seen = requests(made, users(6, 20), filters=Filters(available_only=False))
            assert seen.errors == []
            assert all([shown.item_id for shown in found.items] in ([only], []) for found in seen.answers)
            assert any(found.items for found in seen.answers)
        blocked.block(home, [only], "all")
        time.sleep(0.6)
        seen = requests(made, [*users(6, 40), None])
        assert (seen.errors, seen.rungs) == ([], {"empty": 7})


def test_values_past_their_ttl_are_missing_and_that_is_told(served, tmp_path):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with house(home, clock=lambda: lab.moment(40)) as made:
        seen = requests(made, lab.active(made, 5))
    assert (seen.errors, seen.labels) == ([], {"store": 5})


def test_a_bus_that_is_down_takes_no_events_and_lists_go_on(served, tmp_path, redis, model):
    redis.kill()
    home = lab.shop(served, tmp_path / "var", f'{PATIENT}[stream]\nbus = "redis://{redis.address}/0"\n')
    with house(home, ranked=model) as made:
        with pytest.raises(StateError, match="event bus"):
            made.take([{"user_id": "u00000001", "item_id": "i00000001", "event_type": "view"}])
        seen = requests(made, users(3))
        assert (seen.errors, seen.rungs, seen.labels) == ([], {"full": 3}, {})
        redis.start()
        (verdict,) = made.take([{"user_id": "u00000001", "item_id": "i00000001", "event_type": "view"}])
        assert verdict.accepted


def test_a_shared_cache_in_trouble_costs_no_answer(served, tmp_path, redis, model):
    home = lab.shop(served, tmp_path / "var", f'{PATIENT}[serving.cache]\nredis = "redis://{redis.address}/0"\nredis_ms = 250\n')
    with house(home, ranked=model) as made:
        assert requests(made, users(3)).rungs == {"full": 3}
        redis.freeze()
        seen = requests(made, users(8, 10))
        assert (seen.errors, seen.rungs, seen.labels) == ([], {"full": 8}, {})
        assert made.caches.breakers()[0].state != "closed"
        redis.thaw()
        redis.kill()
        seen = requests(made, users(8, 20))
        assert (seen.errors, seen.rungs, seen.labels) == ([], {"full": 8}, {})


def test_a_takedown_reaches_every_rung_surface_and_list_of_a_running_service(served, tmp_path, model):
    home = lab.shop(served, tmp_path / "var", PATIENT)
    with served_shop.environment(home):
        batch.run(home, SECOND, k=50, active_days=0)
    with house(home, ranked=model) as made:
        before = requests(made, users(30))
        victim = before.answers[0].items[0].item_id
        blocked.block(home, [victim], "recalled")
        assert lab.until(lambda: victim in made.ladder.blocked.items, 60) < 60
        surfaces = [
            {"surface": name, "item_ids": ("i00000003",)} for name in ("similar", "bought_together", "basket", "because_you_viewed")
        ]
        for said in [{}, {"surface": "trending"}, *surfaces]:
            seen = requests(made, [*users(30), None], **said)
            assert seen.errors == []
            assert all(victim != shown.item_id for found in seen.answers for shown in found.items), said
        lab.broken(made)
        seen = requests(made, [*users(30, 100), None], k=50)
        assert "cached" in seen.rungs
        assert all(victim != shown.item_id for found in seen.answers for shown in found.items)


def test_the_path_of_a_file_is_not_told_to_clients_who_ask(server, model):
    redis, home = server
    with house(home, redis.address, ranked=model) as made:
        redis.freeze()
        try:
            lines = requests(made, users(2)).answers[0].degraded
        finally:
            redis.thaw()
    assert str(home.root) not in " ".join(lines)
