"""Arrays that processes share: those of the bundle, byte for byte, or made anew; read-only, and gone with their bundle."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from swap_lab import digests

from pipelines.config import Home
from pipelines.registry import choosing
from pipelines.registry.choosing import Serving
from pipelines.serving import mapped


def loaded(shop: Home, version: int) -> Serving:
    digest = digests(shop)[version]
    return choosing.loaded(shop, version, digest, arrays=mapped.arrays_of(shop, digest))


def test_mapped_arrays_are_those_of_the_bundle_and_cannot_be_written(shop: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PAGE", 1)
    own = choosing.loaded(shop, 1, digests(shop)[1])
    shared = loaded(shop, 1)
    compared = 0
    for name, model in own.model.retrievers.items():
        state, other = model.state or {}, shared.model.retrievers[name].state or {}
        assert sorted(state) == sorted(other)
        for key, array in state.items():
            np.testing.assert_array_equal(array, other[key])
            assert array.dtype == other[key].dtype
            assert not other[key].size or not other[key].flags.writeable
            compared += 1
    assert compared > 10


def test_a_cache_that_was_changed_is_made_anew_and_who_mapped_the_old_one_keeps_it(shop: Home) -> None:
    loaded(shop, 1)
    cache = shop.cache / "serving" / digests(shop)[1]
    files = sorted(cache.rglob("*.npy"))
    assert len(files) > 10
    before = {file: file.read_bytes() for file in files}
    files[0].chmod(0o644)
    files[0].write_bytes(before[files[0]][:-1] + b"!")
    files[-1].unlink()
    loaded(shop, 1)
    assert {file: file.read_bytes() for file in files} == before


def test_what_belongs_to_a_bundle_that_was_taken_goes_with_the_next_one(shop: Home) -> None:
    first = loaded(shop, 1)
    shutil.rmtree(shop.bundles / digests(shop)[1])
    loaded(shop, 2)
    assert {path.name for path in (shop.cache / "serving").glob("?" * 64)} == {digests(shop)[2]}
    assert all(np.isfinite(array).all() for model in first.model.retrievers.values() for array in (model.state or {}).values())
