"""Who tests the tests of a bundle: each check is taken out, and what it alone refuses must then get through.

A check whose removal nothing notices is one that another does already, or that does nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_forge import digest_of, first_leaf, forged, rewritten
from trained_shop import SECOND

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, bundle_folder, compatibility, golden, libraries, signing
from pipelines.registry.golden import Parts


def nothing(*_: Any, **__: Any) -> None:
    """Check nothing."""


def unsigned(home: Home, trained: Home) -> str:
    digest = digest_of(home, trained)
    (home.bundles / digest / signing.SIGNATURE).unlink()
    return digest


def with_a_stranger(home: Home, trained: Home) -> str:
    digest = digest_of(home, trained)
    (home.bundles / digest / "model" / "notes.json").write_text("{}")
    return digest


def under_another_name(home: Home, trained: Home) -> str:
    (home.bundles / digest_of(home, trained)).rename(home.bundles / ("0" * 64))
    return "0" * 64


def with_a_part_of_another_release(home: Home, trained: Home) -> str:
    other = home.bundles / digest_of(home, trained, SECOND) / "reference.json"
    return forged(home, digest_of(home, trained), lambda out: shutil.copy(other, out / "reference.json") and None)


def of_another_library(home: Home, trained: Home) -> str:
    digest = digest_of(home, trained)
    path = home.bundles / digest
    manifest = json.loads((path / publish.MANIFEST).read_text())
    manifest["facts"]["libraries"]["numpy"] = "1.26.4"
    publish.write_json(path / publish.MANIFEST, manifest)
    signing.sign(home, path)
    return digest


def with_other_features(home: Home, trained: Home) -> str:
    def change(out: Path) -> None:
        said = json.loads((out / bundle.FACTS_FILE).read_text())
        said["serves"] = "ranked"
        said["features"]["names"].reverse()
        publish.write_json(out / bundle.FACTS_FILE, said)

    return forged(home, digest_of(home, trained), change)


def with_memory_of_other_items(home: Home, trained: Home) -> str:
    def change(out: Path) -> None:
        import numpy as np

        file = out / "model/memory/content.npz"
        with np.load(file, allow_pickle=False) as arrays:
            kept = dict(arrays)
        rows = int(kept["shape"][0]) - 1
        end = int(kept["indptr"][rows])
        np.savez(
            file,
            data=kept["data"][:end],
            indices=kept["indices"][:end],
            indptr=kept["indptr"][: rows + 1],
            shape=np.array([rows, kept["shape"][1]]),
        )

    return forged(home, digest_of(home, trained), change, honest_parts=True)


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        ((signing, "check"), unsigned),
        ((bundle_folder, "_check_parts"), with_a_part_of_another_release),
        ((libraries, "check"), of_another_library),
        ((compatibility, "check_features"), with_other_features),
        ((compatibility, "check_parts"), with_memory_of_other_items),
    ],
)
def test_without_a_check_what_it_refuses_is_loaded(
    shop: Home, trained: Home, monkeypatch: pytest.MonkeyPatch, check: tuple[Any, str], broken: Callable[[Home, Home], str]
) -> None:
    digest = broken(shop, trained)
    with pytest.raises(StateError):
        bundle.load(shop, digest)
    monkeypatch.setattr(*check, nothing)
    assert bundle.load(shop, digest) is not None


@pytest.mark.parametrize("broken", [with_a_stranger, under_another_name])
def test_digest_and_strangers_are_refused_by_the_folder_s_own_check(shop: Home, trained: Home, broken: Callable[[Home, Home], str]) -> None:
    digest = broken(shop, trained)
    with pytest.raises(StateError):
        bundle.load(shop, digest)
    assert bundle.TwoStage.load(shop.bundles / digest / bundle.MODEL_FOLDER) is not None, "the model itself does not mind"


def test_without_the_golden_answers_a_wrong_score_is_served(shop: Home, trained: Home) -> None:
    """One digit of one leaf, with every digest and the signature made to fit: all checks of bytes and shapes let it pass."""
    found = forged(
        shop,
        digest_of(shop, trained),
        lambda out: rewritten(out / "model/ranker", lambda text: first_leaf(text, lambda leaf: leaf.replace("0.0", "9.0", 1))),
        honest_parts=True,
    )
    assert bundle.load(shop, found) is not None
    path = shop.bundles / found
    with pytest.raises(StateError, match="golden rows"):
        golden.check(path / "golden", Parts.load(path / bundle.MODEL_FOLDER), 1e-9)


def test_without_the_comparison_of_digests_a_changed_file_is_parsed(shop: Home, trained: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = digest_of(shop, trained)
    file = shop.bundles / digest / "reference.json"
    file.write_text(file.read_text().replace("0", "1", 1))
    with pytest.raises(StateError, match="differ from its manifest"):
        bundle.load(shop, digest)
    monkeypatch.setattr(publish, "check_file", lambda path, name, _: path / name)
    monkeypatch.setattr(bundle_folder, "_check_parts", nothing)
    assert bundle.load(shop, digest) is not None
    assert hashlib.sha256(file.read_bytes()).hexdigest() != publish.manifest(shop.bundles / digest).files["reference.json"]["sha256"]
