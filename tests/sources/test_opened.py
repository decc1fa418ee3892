"""Every container and layout of a file holds the same rows."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.sources.conftest import THREE, VIEWS, ReadTable, Rows, at, column


def zipped(members: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_parquet(rows: Rows, **kinds: pa.DataType) -> bytes:
    sink = pa.BufferOutputStream()
    schema = pa.schema(list(kinds.items())) if kinds else None
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue().to_pybytes()


PARTS = THREE.splitlines(keepends=True)


@pytest.mark.parametrize(
    "files",
    [
        {"log.csv": THREE},
        {"log.csv.gz": gzip.compress(THREE.encode())},
        {"log.zip": zipped({"export/log.csv": THREE, "__MACOSX/log.csv": "junk", "export/.DS_Store": "junk"})},
        {"log.tsv": THREE.replace(",", "\t")},
        {"log.csv": THREE.replace(",", ";")},
        {"log.csv": THREE.replace("\n", "\r\n")},
        {"log.csv": b"\xef\xbb\xbf" + THREE.encode()},
        {"log.csv": THREE.encode("utf-16")},
        {"a.csv": PARTS[0] + PARTS[1], "b.csv": PARTS[0] + PARTS[2] + PARTS[3], "README.md": "no table"},
        {"a/1.csv.gz": gzip.compress((PARTS[0] + PARTS[1]).encode()), "b/2.csv": PARTS[0] + PARTS[2] + PARTS[3]},
        {"log.parquet": as_parquet([dict(zip(("user", "item", "at"), line.strip().split(","), strict=True)) for line in PARTS[1:]])},
        {
            "log.jsonl": "".join(
                json.dumps(dict(zip(("user", "item", "at"), line.strip().split(","), strict=True))) + "\n" for line in PARTS[1:]
            )
        },
    ],
    ids=["csv", "gz", "zip", "tsv", "semicolons", "crlf", "bom", "utf-16", "folder", "folders", "parquet", "jsonl"],
)
def test_every_container_holds_the_same_rows(read_table: ReadTable, files: dict[str, str | bytes]):
    events = read_table(files, {"events": VIEWS})["events"]
    assert [(row["source_row"], row["user_id"], row["item_id"], row["event_at"]) for row in events] == [
        (0, "ann", "apple", at("2024-03-01T10:00")),
        (1, "bob", "pear", at("2024-03-02T10:00")),
        (2, "ann", "plum", at("2024-03-03T10:00")),
    ]


def test_parquet_types_read_as_the_text_of_their_values(read_table: ReadTable):
    """An id column that is float only because it has nulls gives 17850, not 17850.0."""
    content = as_parquet(
        [{"user": 17850.0, "item": 1, "at": at("2024-03-01T10:00")}, {"user": None, "item": 2, "at": at("2024-03-01T11:00")}],
        user=pa.float64(),
        item=pa.int32(),
        at=pa.timestamp("ms", tz="America/New_York"),
    )
    events = read_table({"log.parquet": content}, {"events": VIEWS})["events"]
    assert column(events, "user_id") == ["17850", None]
    assert column(events, "item_id") == ["1", "2"]
    assert column(events, "event_at") == [at("2024-03-01T10:00"), at("2024-03-01T11:00")]


def test_mixed_line_ends_and_quoted_line_ends_are_told_apart(read_table: ReadTable):
    content = 'user,item,at\r\nann,"app\nle",2024-03-01\nbob,"5"" nail",2024-03-02\r\n\nann,plum,2024-03-03'
    events = read_table({"log.csv": content}, {"events": VIEWS})["events"]
    assert column(events, "item_id") == ["app\nle", '5" nail', "plum"]
    assert column(events, "source_row") == [0, 1, 2]


def test_a_separator_that_ends_every_line_is_no_column(read_table: ReadTable):
    events = read_table({"log.csv": "user,item,at\nann,apple,2024-03-01,\nbob,pear,2024-03-02,\n"}, {"events": VIEWS})["events"]
    assert column(events, "reasons") == [[], []]


def test_files_without_header_and_with_long_separators(read_table: ReadTable):
    mapping = {
        "files": {"log": {"path": "log.dat", "separator": "::", "header": False, "columns": ["user", "item", "at"], "skip_lines": 1}},
        "events": VIEWS,
    }
    events = read_table({"log.dat": "exported by hand\n1::2::978300760\n"}, mapping)["events"]
    assert (events[0]["user_id"], events[0]["item_id"], events[0]["event_at"]) == ("1", "2", at("2000-12-31T22:12:40"))


def test_several_files_make_one_table_also_with_columns_in_another_order(read_table: ReadTable):
    mapping = {"files": {"log": {"path": ["log-*.csv", "extra/"]}}, "events": {**VIEWS, "device": "device"}}
    files = {
        "log-1.csv": "user,item,at\nann,apple,2024-03-01\n",
        "log-2.csv": "at,device,item,user\n2024-03-02,phone,pear,bob\n",
        "extra/more.csv": "user,item,at\nann,plum,2024-03-03\n",
        "other.csv": "a,b\n1,2\n",
    }
    events = read_table(files, mapping)["events"]
    assert [(row["source_row"], row["user_id"], row["item_id"], row["device"]) for row in events] == [
        (0, "ann", "apple", None),
        (1, "bob", "pear", "phone"),
        (2, "ann", "plum", None),
    ]
