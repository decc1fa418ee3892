"""Promise 3: nothing damaged is served. Every damage is refused by a digest, before any native parser sees a byte."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import faiss
import lightgbm
import numpy as np
import pyarrow.parquet as pq
import pytest
from trained_shop import FIRST

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.registry import bundle, signing


class Parsed(BaseException):
    """A parser was handed bytes that nobody had vouched for."""


@pytest.fixture
def sealed(trained: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a state folder with one bundle, in a process whose parsers may not be reached."""
    digest = cycle.records(trained, FIRST, "bundle")[0]["digest"]
    home = Home(tmp_path / "var")
    shutil.copytree(trained.bundles / digest, home.bundles / digest)
    shutil.copy(trained.root / signing.KEY_FILE, home.root)

    def reached(*_: object, **__: object) -> None:
        raise Parsed

    for owner, name in ((lightgbm, "Booster"), (np, "load"), (pq, "read_table"), (pq, "ParquetFile"), (faiss, "deserialize_index")):
        monkeypatch.setattr(owner, name, reached)
    return home


@pytest.fixture
def digest(sealed: Home) -> str:
    return next(path.name for path in sealed.bundles.iterdir())


def files(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    assert len(found) > 10
    return found


def refused(home: Home, digest: str) -> str:
    with pytest.raises(StateError) as refusal:
        bundle.load(home, digest)
    return str(refusal.value)


def test_the_trap_works_a_sound_bundle_does_reach_a_parser(sealed: Home, digest: str) -> None:
    with pytest.raises(Parsed):
        bundle.load(sealed, digest)


def test_500_flipped_bits_are_refused_unparsed(sealed: Home, digest: str) -> None:
    rng = np.random.default_rng(7)
    found = files(sealed.bundles / digest)
    said = set()
    for _ in range(500):
        file = found[rng.integers(len(found))]
        sound = file.read_bytes()
        broken = bytearray(sound)
        broken[rng.integers(len(broken))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(broken))
        said.add(refused(sealed, digest).partition(": ")[2][:30])
        file.write_bytes(sound)
    assert len(said) > 1, "manifest and files are refused in words of their own"


def damages(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in files(folder):
        sound = file.read_bytes()
        for share in range(10):
            file.write_bytes(sound[: len(sound) * share // 10])
            yield f"{file.name} cut at {share}0%", file
        file.write_bytes(bytes(len(sound)))
        yield f"{file.name} zeroed", file
        file.unlink()
        yield f"{file.name} missing", file
        file.write_bytes(sound)


def test_every_file_cut_at_ten_places_zeroed_or_missing_is_refused_unparsed(sealed: Home, digest: str) -> None:
    count = 0
    for what, _ in damages(sealed.bundles / digest):
        count += 1
        assert refused(sealed, digest), what
    assert count > 120


def test_two_files_that_changed_places_are_refused_unparsed(sealed: Home, digest: str) -> None:
    one, two = (sealed.bundles / digest / "model" / "retrieval" / name / "state.npz" for name in ("popular", "popular_7d"))
    first, second = one.read_bytes(), two.read_bytes()
    assert first != second
    one.write_bytes(second)
    two.write_bytes(first)
    assert "differ from its manifest" in refused(sealed, digest)


def test_a_link_or_a_file_of_another_format_is_refused_although_its_bytes_are_right(sealed: Home, digest: str, tmp_path: Path) -> None:
    file = sealed.bundles / digest / "model" / "items.parquet"
    moved = file.rename(tmp_path / "items.parquet")
    file.symlink_to(moved)
    assert "links" in refused(sealed, digest)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_that_names_a_file_outside_of_its_folder_is_none(sealed: Home, digest: str, name: str) -> None:
    folder = sealed.bundles / digest
    found = publish.manifest(folder)
    found.files[name] = {"sha256": "0" * 64, "bytes": 1}
    publish.write_json(folder / publish.MANIFEST, {"files": found.files, "facts": found.facts})
    signing.sign(sealed, folder)
    assert "outside of its folder" in refused(sealed, digest)
