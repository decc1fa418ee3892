"""Hostile input is refused before it is decoded; honest input of the same kinds passes."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.config import Home, SourceSettings
from pipelines.errors import MappingError, SourceError
from pipelines.sources import guard, mapping, normalising, opened
from pipelines.sources.files import Place
from pipelines.sources.request import Request, Source
from tests.sources.conftest import THREE, VIEWS, ReadTable

LIMITS = SourceSettings(ratio_from_bytes=1 << 20)


@pytest.mark.parametrize(
    "path",
    ["http://169.254.169.254/latest", "file:///etc/passwd", "s3://bucket/key", "https:/x", "data:text/csv,a", "hf://datasets/x", "a\0b"],
)
def test_addresses_are_no_paths(path: str):
    with pytest.raises(SourceError, match="a local file or folder"):
        guard.rooted(path, LIMITS)
    with pytest.raises(SourceError, match="a local file or folder"):
        guard.rooted(Path(path), LIMITS)


def test_devices_and_pipes_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path in (Path("/dev/zero"), tmp_path / "pipe.csv"):
        with pytest.raises(SourceError, match="not a regular file"):
            Place(path, LIMITS)


def test_roots_hold_what_may_be_read_also_behind_links(tmp_path: Path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "log.csv").write_text(THREE)
    (outside / "log.csv").write_text(THREE)
    (inside / "link.csv").symlink_to(outside / "log.csv")
    limits = SourceSettings(roots=(str(inside),))
    assert Place(inside / "log.csv", limits).only == "log.csv"
    for path in (outside / "log.csv", inside / ".." / "out" / "log.csv", inside / "link.csv"):
        with pytest.raises(SourceError, match=r"see sources\.roots"):
            Place(path, limits)


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text(THREE)
    (folder / "log.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(SourceError, match="a link out of its folder"):
        Place(folder, LIMITS)


@pytest.mark.parametrize("name", ["../secret.csv", "/etc/passwd", "a/../../secret.csv", "..\\secret.csv", "http://x/log.csv"])
def test_a_mapping_cannot_name_a_file_outside(read_table: ReadTable, tmp_path: Path, name: str):
    (tmp_path / "secret.csv").write_text(THREE)
    with pytest.raises(SourceError, match=r"leaves its folder|without a scheme"):
        read_table({"log.csv": THREE}, {"files": {"log": name}, "events": VIEWS})


def test_a_zip_member_with_a_climbing_name_is_only_a_name(read_table: ReadTable, tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../log.csv", THREE)
    with pytest.raises(SourceError, match="no table"):
        read_table({"log.zip": buffer.getvalue()}, {"events": VIEWS})
    assert not list(tmp_path.parent.glob("log.csv"))


def expanding() -> bytes:
    return b"user,item,at\n" + b"a,b,2024-03-01\n" * 4_000_000


def test_a_gzip_bomb_is_cut_off_while_it_unpacks(tmp_path: Path, home: Home):
    """60 MB out of 60 kB: no more than the allowance is ever unpacked."""
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(expanding(), 9))
    entry = Place(tmp_path / "log.csv.gz", LIMITS).entries[0]
    tight = LIMITS.model_copy(update={"max_ratio": 100.0})
    given = 0
    with entry.open(tight) as stream, pytest.raises(SourceError, match="at most 100 times the stored size"):
        while block := stream.read(1 << 16):
            given += len(block)
    assert given < 20_000_000


def test_a_zip_bomb_is_cut_off_in_the_whole_reading(home: Home, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "log.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("log.csv", expanding())
    (tmp_path / "map.yml").write_text(json.dumps({"events": VIEWS}))
    home.root.mkdir()
    (home.root / "reloop.toml").write_text("[sources]\nmax_ratio = 50.0\nratio_from_bytes = 1000000\n")
    with pytest.raises(SourceError, match=r"log\.csv: .* bytes that unpack to more than"):
        normalising.normalised(home, Request(source=Source.TABLE, path=tmp_path / "log.zip", mapping=tmp_path / "map.yml"))
    assert not list(home.landing.rglob("*.parquet")), "nothing of it stays behind"


@pytest.mark.parametrize("name", ["log.csv.gz", "log.zip", "log.parquet"])
def test_damaged_archives_are_named(read_table: ReadTable, name: str):
    with pytest.raises(SourceError, match=name.split(".", maxsplit=1)[0]):
        read_table({name: b"this is neither"}, {"events": VIEWS})


def test_a_truncated_gzip_is_not_taken_for_a_short_file(read_table: ReadTable):
    whole = gzip.compress((THREE + "".join(f"u{n},i{n},2024-03-01\n" for n in range(5000))).encode())
    with pytest.raises(SourceError, match="damaged"):
        read_table({"log.csv.gz": whole[: len(whole) // 2]}, {"events": VIEWS})


def test_an_encrypted_zip_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("log.csv", THREE)
    data = bytearray((tmp_path / "log.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "log.zip").write_bytes(bytes(data))
    entry = Place(tmp_path / "log.zip", LIMITS).entries[0]
    with pytest.raises(SourceError, match="encrypted"), entry.open(LIMITS):
        pass


def test_a_parquet_bomb_is_refused_by_its_rows_not_by_what_its_footer_claims(tmp_path: Path):
    """A constant column of 20M rows claims few bytes uncompressed, yet decodes to 160 MB."""
    file = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(file, pa.schema([("n", pa.int64())])) as writer:
        for _ in range(20):
            writer.write_table(pa.table({"n": pa.array([7], pa.int64()).take(pa.array([0] * 1_000_000))}))
    claimed = sum(pq.read_metadata(file).row_group(g).total_byte_size for g in range(20))
    assert claimed < 1 << 20, "or the test shows nothing"
    began = time.perf_counter()
    with pytest.raises(SourceError, match="that decode to about"):
        guard.parquet(file, LIMITS)
    assert time.perf_counter() - began < 5


def test_a_parquet_bomb_of_long_strings_is_refused_by_its_dictionary(tmp_path: Path):
    """One string of 100 kB, 20,000 times: 2 GB out of a few kB."""
    file = tmp_path / "bomb.parquet"
    word = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"s": word}), file)
    assert file.stat().st_size < 1 << 20
    with pytest.raises(SourceError, match="that decode to about"):
        guard.parquet(file, LIMITS)


def test_honest_parquet_with_repetition_passes(tmp_path: Path):
    file = tmp_path / "log.parquet"
    words = pa.array(["view", "buy"]).take(pa.array([n % 2 for n in range(300_000)]))
    pq.write_table(pa.table({"kind": words, "n": pa.array(range(300_000))}), file)
    assert guard.parquet(file, LIMITS).names == ["kind", "n"]


def test_too_many_columns_are_refused_in_every_format(tmp_path: Path, read_table: ReadTable):
    names = [f"c{n}" for n in range(3000)]
    pq.write_table(pa.table({name: pa.array([1], pa.int8()) for name in names}), tmp_path / "wide.parquet")
    with pytest.raises(SourceError, match="3,000 columns"):
        guard.parquet(tmp_path / "wide.parquet", LIMITS)
    wide = ",".join(f"c{n}" for n in range(100_000))
    with pytest.raises(SourceError, match="100,000 columns"):
        read_table({"wide.csv": f"{wide}\n"}, {"events": VIEWS})


def test_deep_nesting_is_refused(tmp_path: Path, read_table: ReadTable):
    kind: pa.DataType = pa.int8()
    for _ in range(40):
        kind = pa.list_(kind)
    pq.write_table(pa.table({"deep": pa.nulls(1, kind)}), tmp_path / "deep.parquet")
    with pytest.raises(SourceError, match="nested deeper than 16"):
        guard.parquet(tmp_path / "deep.parquet", LIMITS)
    good = '{"user": "ann", "item": {"id": "a"}, "at": "2024-03-01"}\n'
    deep = '{"a":' * 5000 + "1" + "}" * 5000 + "\n"
    events = read_table({"log.jsonl": good + deep + good}, {"events": {**VIEWS, "item_id": "item.id"}})["events"]
    assert [(row["source_row"], row["reasons"]) for row in events] == [(1, ["unreadable row"]), (0, []), (2, [])]


INJECTIONS = [
    "x'; DROP TABLE t; --",
    "\"; COPY (SELECT 1) TO '/tmp/x'; --",
    "' || (SELECT content FROM read_text('/etc/passwd')) || '",
    "a\\'b",
    "${HOME}",
    "{{ 1 }}",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_words_of_a_mapping_or_a_file_never_become_sql(read_table: ReadTable, text: str):
    """The same words as column name, value, constant, replacement, default, rule and attribute come out as themselves."""
    quoted = '"' + text.replace('"', '""') + '"'
    content = f"{quoted},item,at\n{quoted},a,2024-03-01\nplain,b,2024-03-02\n,c,2024-03-03\n"
    mapping = {
        "files": {text: {"path": "log.csv", "separator": ","}},
        "events": {
            **VIEWS,
            "file": text,
            "user_id": {"column": text, "values": {text: text}, "default": text},
            "device": {"constant": text},
            "session_id": {"columns": ["item", text], "joined_by": text},
            "skip": [{"column": text, "equals": [text], "reason": "odd"}],
        },
        "items": {"item_id": "item", "attributes": {text: {"column": text, "default": text}}},
    }
    read = read_table({"log.csv": content}, mapping)
    assert [row["user_id"] for row in read["events"]] == [text, "plain", text]
    assert {row["device"] for row in read["events"]} == {text}
    assert [row["reasons"] for row in read["events"]] == [["odd"], [], []]
    assert read["events"][0]["session_id"] == f"a{text}{text}"
    assert json.loads(read["events"][0]["raw"]) == {text: text, "item": "a", "at": "2024-03-01"}
    assert {dict(row["attributes"])[text] for row in read["items"]} == {"plain", text}


def test_parquet_column_names_are_quoted(read_table: ReadTable):
    name = 'a"b; DROP TABLE x'
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: ["ann"], "item": ["a"], "at": ["2024-03-01"]}), sink)
    events = read_table({"log.parquet": sink.getvalue().to_pybytes()}, {"events": {**VIEWS, "user_id": name}})["events"]
    assert events[0]["user_id"] == "ann"


def test_a_file_name_that_is_a_pattern_or_holds_a_quote_is_only_that_file(read_table: ReadTable):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"user": ["ann"], "item": ["a"], "at": ["2024-03-01"]}), sink)
    events = read_table({"it's[1]*.parquet": sink.getvalue().to_pybytes()}, {"events": VIEWS})["events"]
    assert len(events) == 1


def test_the_engine_reaches_no_file_but_its_inputs_and_cannot_be_changed(tmp_path: Path):
    (tmp_path / "in.csv").write_text(THREE)
    (tmp_path / "other.csv").write_text(THREE)
    (tmp_path / "work").mkdir()
    with opened.connect(tmp_path / "work", [tmp_path / "in.csv"], LIMITS) as connection:
        assert connection.execute(f"SELECT count(*) FROM read_csv('{tmp_path}/in.csv')").fetchone() == (3,)
        for statement in (
            f"SELECT * FROM read_csv('{tmp_path}/other.csv')",
            "SELECT * FROM read_text('/etc/passwd')",
            "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/new.db'",
            "INSTALL httpfs",
            "LOAD httpfs",
            "SET enable_external_access = true",
            "SET memory_limit = '100GB'",
        ):
            with pytest.raises(Exception, match=r"(?i)permission|cannot|locked|not allowed|disabled"):
                connection.execute(statement)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("events: &a {user_id: u}\nitems: *a\n", "alias"),
        ("events: !!python/object/apply:os.system ['true']\n", "no YAML"),
        ("[" * 100_000, "nested deeper"),
        ("a: " * 50 + "1", "no YAML"),
        ("x" * 2_000_000, "at most"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, text: str, match: str):
    file = tmp_path / "map.yml"
    file.write_text(text)
    with pytest.raises(MappingError, match=match):
        mapping.load(file)
