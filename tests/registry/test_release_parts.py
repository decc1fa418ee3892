"""What no digest can say: parts of two releases, other libraries, other features, weights that are no numbers. Each has its own words.

Whoever forges here holds the key: every bundle is signed anew over a manifest that fits, so that only the check at hand can refuse it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_forge import digest_of, first_leaf, forged, rewritten
from trained_shop import FIRST, SECOND

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import store
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, bundle_folder, compatibility, golden, libraries, rehearsal, signing


def said(home: Home, digest: str) -> str:
    with pytest.raises(StateError) as refusal:
        bundle.load(home, digest)
    return str(refusal.value)


def test_the_forger_s_tools_change_nothing_by_themselves(shop: Home, trained: Home) -> None:
    digest = digest_of(shop, trained)
    shutil.move(shop.bundles / digest, shop.bundles / ".aside")
    shutil.copytree(shop.bundles / ".aside", shop.bundles / ("0" * 64))
    assert forged(shop, "0" * 64, lambda out: None) == digest
    assert bundle.load(shop, digest).ranker is not None


@pytest.mark.parametrize("part", ["model/retrieval/item_knn/state.npz", "reference.json", "golden/lists.npz", "model/items.parquet"])
def test_a_part_of_another_release_is_refused_by_its_name(shop: Home, trained: Home, part: str) -> None:
    other = shop.bundles / digest_of(shop, trained, SECOND)
    found = forged(shop, digest_of(shop, trained), lambda out: shutil.copy(other / part, out / part) and None)
    assert "of the same release as the rest" in said(shop, found)
    assert str(bundle_folder.part(part)) in said(shop, found)


def test_parts_that_count_other_items_are_refused_although_every_digest_fits(shop: Home, trained: Home) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def shorter(out: Path) -> None:
        table = pq.read_table(out / "model/items.parquet")
        publish.write_parquet(out / "model/items.parquet", pa.table({"item_id": table["item_id"].slice(0, table.num_rows - 1)}))

    found = forged(shop, digest_of(shop, trained), shorter, honest_parts=True)
    assert "a model of another catalogue" in said(shop, found)


def test_items_out_of_order_are_refused(shop: Home, trained: Home) -> None:
    model = bundle.load(shop, digest_of(shop, trained))
    with pytest.raises(StateError, match="sorted, unique ids"):
        compatibility.check_parts(replace(model, item_ids=model.item_ids[::-1]))


@pytest.mark.parametrize("weight", ["nan", "-inf"])
def test_weights_that_are_no_numbers_are_refused_before_a_native_parser_reads_them(shop: Home, trained: Home, weight: str) -> None:
    """LightGBM ends the process on this very file: its trees are not as long as it says."""
    found = forged(
        shop,
        digest_of(shop, trained),
        lambda out: rewritten(out / "model/ranker", lambda text: first_leaf(text, lambda _: weight)),
        honest_parts=True,
    )
    assert "ranker: model.txt" in said(shop, found)
    assert "NaN or infinity" in said(shop, found)


def test_a_library_of_another_major_version_is_refused_with_what_to_install(shop: Home, trained: Home) -> None:
    digest = digest_of(shop, trained)
    known = publish.manifest(shop.bundles / digest).facts["libraries"]
    assert set(libraries.READERS) <= set(known)
    for name in libraries.READERS:
        path = shop.bundles / digest
        manifest = json.loads((path / publish.MANIFEST).read_text())
        manifest["facts"]["libraries"] = known | {name: "99.1.2"}
        publish.write_json(path / publish.MANIFEST, manifest)
        signing.sign(shop, path)
        refusal = said(shop, digest)
        assert f"{name} {known[name]} instead of 99.x" in refusal
        assert f"{name}==99.1.2" in refusal


def test_a_minor_version_or_a_library_that_reads_no_bundle_is_no_matter() -> None:
    recorded = {"lightgbm": "4.0.0", "numpy": "2.0.1", "feast": "0.1.0", "faiss-cpu": "1.9"}
    assert libraries.misfits(recorded, {"lightgbm": "4.9", "numpy": "2.9", "feast": "9.9", "faiss-cpu": "1.99"}) == []
    assert libraries.misfits({"numpy": "2.0"}, {}) == ["numpy (not installed) instead of 2.x"]


def test_features_that_were_renamed_retyped_reordered_or_asked_of_another_service_are_refused(
    shop: Home, trained: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_of(shop, trained)
    model, told = bundle.load(shop, digest), bundle.facts(shop, digest)["features"]
    assert told["names"] == list(model.ranker.features)
    assert len(told["stored"]) > 20
    serving = replace(model, serves="ranked")

    def refusal(changed: dict[str, Any]) -> str:
        with pytest.raises(StateError) as found:
            compatibility.check_features(shop, told | changed, serving)
        return str(found.value)

    compatibility.check_features(shop, told, serving)
    assert "in the order the bundle was built with" in refusal({"names": told["names"][::-1]})
    assert "schema" in refusal({"schema_hash": "0" * 64})
    assert "ranking_v0" in refusal({"service": "ranking_v0"})
    first = next(iter(told["stored"]))
    assert f"{first} of decimal" in refusal({"stored": told["stored"] | {first: "decimal"}})

    real = store.schema

    def without(home: Home, service: str) -> list[Any]:
        return [spec for spec in real(home, service) if spec.name != first]

    monkeypatch.setattr(store, "schema", without)
    assert f"{first} is not declared" in refusal({})


def test_what_is_asked_of_a_golden_bundle_is_what_the_model_proposes(shop: Home, trained: Home) -> None:
    """The rehearsal blends by itself, without the feature store; it must be the same blend."""
    digest = digest_of(shop, trained)
    path = shop.bundles / digest / bundle.MODEL_FOLDER
    parts, model = golden.Parts.load(path), TwoStage.load(path)
    users = golden.histories(parts.n_items, FIRST)
    proposed, blended = model.propose(users), parts.blended(users)
    assert np.array_equal(proposed.item, blended["item"][blended["item"] >= 0])
    assert np.array_equal(proposed.blend_score, blended["score"][blended["item"] >= 0])
    assert len(proposed) > 500


def test_golden_answers_are_found_again_and_any_other_is_refused(shop: Home, trained: Home) -> None:
    path = shop.bundles / digest_of(shop, trained)
    parts = golden.Parts.load(path / bundle.MODEL_FOLDER)
    assert golden.check(path / "golden", parts, 1e-9) == 0.0
    with np.load(path / "golden" / golden.ROWS_FILE, allow_pickle=False) as kept:
        rows = dict(kept)
    assert rows["features"].shape == (golden.N_ROWS, len(parts.ranker.features))
    assert len(np.unique(rows["score"])) > 50, "the rows do reach different leaves"
    for score in (rows["score"] + 2e-9, np.where(np.arange(len(rows["score"])) == 7, np.nan, rows["score"])):
        np.savez(path / "golden" / golden.ROWS_FILE, features=rows["features"], score=score)
        with pytest.raises(StateError, match="golden rows"):
            golden.check(path / "golden", parts, 1e-9)
    without = replace(parts, ranker=None, retrievers=dict(list(parts.retrievers.items())[1:]))
    with pytest.raises(StateError, match="golden lists"):
        golden.check(path / "golden", without, 1e-9)


def test_a_golden_row_is_no_row_of_the_training_set(shop: Home, trained: Home) -> None:
    """Columns are drawn each on its own: no person's row lies in a bundle."""
    import pyarrow.parquet as pq

    path = shop.bundles / digest_of(shop, trained)
    with np.load(path / "golden" / golden.ROWS_FILE, allow_pickle=False) as kept:
        drawn = kept["features"]
    names = bundle.load(shop, path.name).ranker.features
    table = pq.read_table(trained.training / f"{FIRST:%Y-%m-%dT%H%M%S}" / "training_set" / "rank_1.parquet", columns=list(names))
    real = {row.tobytes() for row in np.column_stack([table[name].to_numpy() for name in names]).astype(np.float32)}
    assert len(real) > 1000
    assert not [row for row in drawn if row.tobytes() in real]


def test_a_rehearsal_is_remembered_for_this_machine_and_these_libraries(trained: Home, shop: Home) -> None:
    """The memory is what `bundle.build` left: a rehearsal of a bundle that passed here starts no process."""
    digest = digest_of(shop, trained)
    known = json.loads(rehearsal.memo(trained, digest).read_text())
    assert known["difference"] == 0.0
    assert rehearsal.rehearse(trained, digest) == known


@pytest.mark.parametrize("damage", ["crash", "hang", pytest.param("wrong score", marks=pytest.mark.slow)])
def test_a_bundle_damaged_before_it_was_digested_fails_its_rehearsal_and_not_the_process_that_asks(
    shop: Home, trained: Home, damage: str
) -> None:
    """Finding F6: LightGBM aborts, hangs, or scores wrongly, on files that its own digests would have let through."""
    digest = digest_of(shop, trained)

    def damaged(text: str) -> str:
        if damage == "wrong score":  # as long as before: one digit of one leaf
            return first_leaf(text, lambda leaf: leaf[:-1] + ("1" if leaf[-1] != "1" else "2")).replace("leaf_value=0.", "leaf_value=9.", 1)
        return first_leaf(text, lambda leaf: f"{leaf}0000")  # longer than `tree_sizes` says: LightGBM aborts

    def broken(out: Path) -> None:
        rewritten(out / "model/ranker", damaged)

    found = forged(shop, digest, broken, honest_parts=True)
    if damage == "hang":
        (shop.root / "reloop.toml").write_text("[bundle]\nrehearsal_seconds = 0.2\n")
    expected = {"wrong score": "golden rows", "crash": "ended by signal 6", "hang": r"no answer in 0\.2 s"}[damage]
    with pytest.raises(StateError, match=expected):
        bundle.rehearse(shop, found)
    assert not rehearsal.memo(shop, found).exists()
