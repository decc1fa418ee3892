"""What a model learns from is what it is asked with: one row made twice, for training and for a request, is the same to the bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ranking_world
from ranking_world import AS_OF, fill

from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import histories
from pipelines.model_settings import FEATURE_GROUPS
from pipelines.ranking import memory, training_set, two_stage
from pipelines.ranking.features import assemble
from pipelines.ranking.protocol import schema_hash
from pipelines.ranking.two_stage import TwoStage
from pipelines.retrieval import lineup
from pipelines.tables import IMPRESSIONS
from pipelines.window import DAY

SHOWN_AT = 3  # the place of every impression


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Return the shop with a source that has vectors, every group of features, and impressions of some users in the last training window."""
    home = Home(tmp_path_factory.mktemp("parity"))
    with pytest.MonkeyPatch.context() as patched:
        sources = ("popular", "als", "item_knn")
        patched.setattr(ranking_world, "SOURCES", sources)
        settings = ranking_world.SETTINGS.replace("'popular_7d'", "'als'")
        patched.setattr(ranking_world, "SETTINGS", f"{settings}features = {list(FEATURE_GROUPS)}\n")
        fill(home)
    world = universe.load(home, AS_OF)
    moment = world.folds[-2].window.start + DAY
    shown = [(f"u{user:03d}", f"i{item:02d}") for user in range(60) for item in range(user % 4 * 12, user % 4 * 12 + 12, 2)]
    columns = {
        "request_id": [f"r{user}" for user, _ in shown],
        "user_id": [user for user, _ in shown],
        "item_id": [item for _, item in shown],
        "rank": [SHOWN_AT] * len(shown),
        "shown_at": [moment] * len(shown),
        "propensity": [0.25] * len(shown),
    }
    table = {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(len(shown), f.type) for f in IMPRESSIONS}
    publish.write_parquet(home.lake / f"impressions/shown_date={moment:%Y-%m-%d}/impressions.parquet", pa.table(table, schema=IMPRESSIONS))
    training_set.build(home, AS_OF)
    return home


@pytest.fixture(scope="module")
def as_served(shop):
    """Return a model of the newest training fold as a bundle would hold it, loaded from disk."""
    world, settings = universe.load(shop, AS_OF), config.load(shop)
    fold = world.folds[-2]
    known = world.interactions(fold.cutoff, settings.training)
    models = {name: lineup.make(name, settings.retrieval.parameters.get(name)).fit(known) for name in settings.retrieval.sources}
    before = training_set.folder(shop, AS_OF)
    assert len(world.folds) == 3
    first = TwoStage(
        world.item_ids, models, None, settings.retrieval.k_per_source, settings.retrieval.k_blend, exclude_seen=False, serves="blend",
        recipe=two_stage.blend.recipe(shop, AS_OF), groups=training_set.groups(shop, AS_OF), memory=memory.of(known, encoding_of(shop, before)),
    )  # fmt: skip
    first.save(shop.root / "served")
    return TwoStage.load(shop.root / "served")


def encoding_of(shop, folder):
    """Return the encoding that rows of the newest training fold were made with: read off them."""
    from pipelines.ranking.target_encoding import Encoding

    world = universe.load(shop, AS_OF)
    table = pq.read_table(folder / "rank_2.parquet")
    item, worth = np.unique(table["item"].to_numpy(), return_index=True)
    keys = {"item": world.item_ids[item]}
    values = {"item": table["encoded_item"].to_numpy()[worth]}
    goods = ranking_world.items().to_pydict()
    for kind in ("category", "brand"):
        of_item = dict(zip(goods["item_id"], goods[kind], strict=True))
        found = {of_item[str(world.item_ids[row["item"]])]: row[f"encoded_{kind}"] for row in table.to_pylist()}
        found.pop(None, None)
        keys[kind] = np.array(sorted(found))
        values[kind] = np.array([found[key] for key in sorted(found)], np.float32)
    return Encoding(keys, values, 0.0)


@pytest.mark.parametrize("at_once", [1, 7, 500])
def test_a_training_row_is_the_row_of_a_request_at_its_cutoff_bit_for_bit(shop, as_served, at_once):
    world = universe.load(shop, AS_OF)
    fold = world.folds[-2]
    known = world.interactions(fold.cutoff, config.load(shop).training)
    table = pq.read_table(training_set.folder(shop, AS_OF) / "rank_2.parquet")
    learnt = {(row["user"], row["item"]): row for row in table.to_pylist()}
    user_ids = world.user_ids[np.unique(table["user"].to_numpy())][: at_once if at_once < 500 else None]
    users = histories(known, user_ids)
    asked = as_served.propose(users)
    matrix, names = assemble(as_served.context(shop, asked, users, user_ids, fold.cutoff), asked)
    assert names == tuple(name for name in table.column_names if name not in training_set.KEYS)
    assert matrix.dtype == np.float32
    place = {user: at for at, user in enumerate(world.user_ids)}
    checked = 0
    for row, item, values in zip(asked.row, asked.item, matrix, strict=True):
        trained = learnt.get((place[user_ids[row]], int(item)))
        if trained:
            expected = np.array([trained[name] for name in names], np.float32)
            different = [
                name for name, one, other in zip(names, values, expected, strict=True) if not np.array_equal(one, other, equal_nan=True)
            ]
            assert different == []
            checked += 1
    assert checked >= 4 * len(user_ids)
    assert {"als_dot", "content_to_last", "encoded_item", "als_to_session", "request_hour", "request_phone", "popular_z"} <= set(names)


def test_every_group_brings_values_that_differ(shop):
    table = pq.read_table(training_set.folder(shop, AS_OF) / "rank_2.parquet")
    for name in (
        "als_dot",
        "als_to_last",
        "als_z",
        "als_to_session",
        "content_to_history",
        "content_to_last",
        "encoded_item",
        "own_item_count",
    ):
        values = table[name].to_numpy()
        assert len(np.unique(values[np.isfinite(values)])) > 5, name
    proposed = np.isfinite(table["als_score"].to_numpy())
    assert (~proposed).any()
    assert np.isfinite(table["als_dot"].to_numpy()[~proposed]).any(), "also what the source did not propose is scored"
    np.testing.assert_allclose(table["als_dot"].to_numpy()[proposed], table["als_score"].to_numpy()[proposed], rtol=1e-4, atol=1e-6)


def test_the_oldest_window_has_nothing_before_it_to_be_encoded_by(shop):
    first, second = (pq.read_table(training_set.folder(shop, AS_OF) / f"rank_{n}.parquet")["encoded_item"].to_numpy() for n in (1, 2))
    assert np.isnan(first).all()
    assert np.isfinite(second).all()


def test_the_run_holds_the_table_of_its_features_in_their_order(shop):
    facts = publish.manifest(training_set.folder(shop, AS_OF), verify=True).facts
    described = json.loads((training_set.folder(shop, AS_OF) / "features.json").read_text())
    assert [spec["name"] for spec in described] == facts["features"]
    assert facts["schema_hash"] == schema_hash(tuple(spec["name"] for spec in described))
    assert all(spec["unit"] and spec["meaning"] and spec["source"] for spec in described)
    assert {spec["group"] for spec in described} == set(FEATURE_GROUPS)


def test_what_was_shown_and_ignored_is_a_negative_with_its_place(shop):
    world = universe.load(shop, AS_OF)
    rows = pq.read_table(training_set.folder(shop, AS_OF) / "rank_2.parquet").to_pylist()
    at = [row for row in rows if row["position"]]
    assert len(at) > 100
    assert {row["position"] for row in at} == {SHOWN_AT}
    assert {row["propensity"] for row in at} == {0.25}
    for row in at:
        user, item = int(world.user_ids[row["user"]][1:]), int(world.item_ids[row["item"]][1:])
        assert user < 60
        assert item // 12 == user % 4
        assert item % 2 == 0
    ignored = [row for row in rows if row["gain"] == 0]
    assert {row["weight"] for row in ignored if row["position"]} == {1.0}
    assert max(row["weight"] for row in ignored if not row["position"]) > 1
    assert {row["weight"] for row in rows if row["gain"] > 0} == {1.0}


def test_without_impressions_negatives_are_drawn_and_the_record_says_so(shop):
    from pipelines import cycle

    (record,) = cycle.records(shop, AS_OF, "training_set")
    assert record["folds"]["rank_1"]["shown_negatives"] == 0
    assert record["folds"]["rank_2"]["shown_negatives"] == record["shown_negatives"] > 0
    assert record["sampled_negatives"] + record["shown_negatives"] + record["positives"] == record["training_rows"]
    rows = training_set.load(shop, AS_OF)
    assert rows.position is not None
    assert (rows.position[: rows.group[rows.window == 0].sum()] == 0).all()


def test_outcomes_say_what_was_done(shop):
    rows = training_set.load(shop, AS_OF)
    assert set(rows.outcomes) == {"view", "add_to_cart", "purchase", "value"}
    bought = rows.outcomes["purchase"] == 1
    assert np.array_equal(bought, rows.gain == 3)
    assert (rows.outcomes["value"][bought] % 5 == 0).all()
    assert (rows.outcomes["value"][bought] >= 5).all()
    assert (rows.outcomes["value"][~bought] == 0).all()
    assert (rows.outcomes["view"][rows.gain == 1] == 1).all()
    assert not rows.outcomes["add_to_cart"].any()


def test_training_sets_too_large_for_memory_are_mapped_and_the_same(shop):
    in_memory = training_set.load(shop, AS_OF)
    kept = (shop.root / "reloop.toml").read_text()
    try:
        (shop.root / "reloop.toml").write_text(kept + "in_memory_gb = 1e-6\n")
        mapped = training_set.load(shop, AS_OF)
    finally:
        (shop.root / "reloop.toml").write_text(kept)
    assert isinstance(mapped.features, np.memmap)
    assert not isinstance(in_memory.features, np.memmap)
    assert np.array_equal(mapped.features, in_memory.features, equal_nan=True)


def test_a_bundle_of_before_reads_the_groups_of_before(as_served, shop, tmp_path):
    old = replace(as_served, groups=two_stage.BEFORE_GROUPS, memory=None)
    old.save(tmp_path / "old")
    facts = json.loads((tmp_path / "old" / "two_stage.json").read_text())
    assert facts.pop("groups") == list(two_stage.BEFORE_GROUPS)
    assert not (tmp_path / "old" / "memory").exists()
    publish.write_json(tmp_path / "old" / "two_stage.json", facts)
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text())
    file = tmp_path / "old" / "two_stage.json"
    manifest["files"]["two_stage.json"] = {"sha256": publish.digest(file), "bytes": file.stat().st_size}
    publish.write_json(path, manifest)
    assert TwoStage.load(tmp_path / "old").groups == two_stage.BEFORE_GROUPS
