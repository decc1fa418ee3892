import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import publish
from pipelines.errors import StateError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "deep" / "file.txt"
    publish.write_text(target, "old")
    with pytest.raises(RuntimeError, match="half-way"), publish.replacing(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("half-way")
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path):
    table = pa.table({"a": range(1000), "b": [str(n) for n in range(1000)]})
    publish.write_parquet(tmp_path / "one.parquet", table)
    publish.write_parquet(tmp_path / "two.parquet", table)
    assert publish.digest(tmp_path / "one.parquet") == publish.digest(tmp_path / "two.parquet")


def test_nan_is_refused_in_json(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish.write_json(tmp_path / "figures.json", {"ndcg": float("nan")})


def test_a_folder_is_visible_only_with_its_manifest(tmp_path: Path):
    target = tmp_path / "set"
    with pytest.raises(RuntimeError, match="half-way"), publish.folder(target, {}) as out:
        (out / "one").write_text("1")
        raise RuntimeError("half-way")
    assert not target.exists()
    facts: dict[str, int] = {}
    with publish.folder(target, facts) as out:
        (out / "one").write_text("1")
        facts["rows"] = 1
    assert publish.manifest(target, verify=True).facts == {"rows": 1}


def test_a_changed_byte_is_found_before_anyone_parses_the_file(tmp_path: Path):
    with publish.folder(tmp_path / "set", {}) as out:
        (out / "model.txt").write_text("tree")
    (tmp_path / "set" / "model.txt").write_text("treE")
    with pytest.raises(StateError, match="bytes that differ from its manifest"):
        publish.manifest(tmp_path / "set", verify=True)


def test_the_digest_of_a_folder_does_not_depend_on_its_name_or_facts(tmp_path: Path):
    for name in ("a", "b"):
        with publish.folder(tmp_path / name, {"called": name}) as out:
            (out / "x").write_text("x")
    assert publish.manifest(tmp_path / "a").digest == publish.manifest(tmp_path / "b").digest


def _die_before_the_rename(target: Path) -> None:
    with publish.replacing(target) as temporary:
        temporary.write_text("torn")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_writer_leaves_is_swept_by_the_next(tmp_path: Path):
    target = tmp_path / "file.txt"
    publish.write_text(target, "old")
    process = multiprocessing.get_context("spawn").Process(target=_die_before_the_rename, args=(target,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2, "the kill left its temporary file"
    publish.write_text(target, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert target.read_text() == "new"


def _write_on_a_full_disk(target: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    try:
        publish.write_parquet(target, pa.table({"a": pa.array(os.urandom(1 << 20), pa.uint8())}))
    except OSError:
        os._exit(17)


def test_a_full_disk_leaves_no_torn_file_and_heals_when_space_returns(tmp_path: Path):
    target = tmp_path / "table.parquet"
    process = multiprocessing.get_context("spawn").Process(target=_write_on_a_full_disk, args=(target,))
    process.start()
    process.join()
    assert process.exitcode == 17
    assert list(tmp_path.iterdir()) == []
    publish.write_parquet(target, pa.table({"a": [1]}))
    assert target.is_file()
