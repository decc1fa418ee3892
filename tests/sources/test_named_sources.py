"""Online Retail, MovieLens and RetailRocket: every row is accounted for, in each layout they come in."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import SourceError
from pipelines.sources import normalising, plan, reading
from pipelines.sources.request import Request, Source
from pipelines.window import Window
from tests.sources.conftest import table

RETAIL = "online-retail/online-retail-dataset.csv.gz"


def normalised(home: Home, source: Source, path: Path) -> normalising.Normalised:
    return normalising.normalised(home, Request(source=source, path=path))


def query(folder: Path, sql: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        for name in ("events", "items", "users"):
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{folder}/{name}.parquet')")
        return connection.execute(sql).fetchall()


INVOICES = """InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country
1,85123a,RED MUG,2,7/1/2011 10:00,2.50,17850,United Kingdom
1,85123A,RED MUG ,1,7/1/2011 10:00,2.50,17850,United Kingdom
C2,85123A,RED MUG,-1,7/2/2011 9:00,2.50,17850,United Kingdom
3,POST,POSTAGE,1,7/2/2011 9:05,18,17850,France
4,22423,,-5,7/2/2011 9:10,0,,United Kingdom
5,22423,CAKESTAND,1,7/2/2011 9:15,0,12345,United Kingdom
6,22423,CAKESTAND,1,7/2/2011 9:20,12.75,,United Kingdom
7,DCGSSGIRL,GIRLS PARTY BAG,1,7/3/2011 9:20,3.29,12345,Norway
8,85123A,BLUE MUGS,1,12/1/2011 9:00,2.95,12345,Norway
"""


def test_online_retail_by_hand(home: Home, tmp_path: Path):
    (tmp_path / "retail.csv").write_text(INVOICES)
    folder = normalised(home, Source.ONLINE_RETAIL, tmp_path / "retail.csv").folder
    events = table(folder, "events")
    assert [(row["session_id"], row["item_id"], row["reasons"][:1]) for row in events] == [
        ("1", "85123A", []),
        ("1", "85123A", []),
        ("C2", "85123A", ["cancellation"]),
        ("3", "POST", ["non_product_code"]),
        ("4", "22423", ["negative_quantity"]),
        ("5", "22423", ["zero_price"]),
        ("6", "22423", ["missing_user"]),
        ("7", "DCGSSGIRL", []),
        ("8", "85123A", []),
    ]
    assert events[0]["event_at"] == datetime(2011, 7, 1, 9, 0, tzinfo=UTC), "summer time"
    assert events[-1]["event_at"] == datetime(2011, 12, 1, 9, 0, tzinfo=UTC), "winter time"
    assert events[0]["value"] == 5.0
    items = [(row["item_id"], row["title"], row["category"], row["price"]) for row in table(folder, "items")]
    assert items == [("85123A", "RED MUG", "MUG", 2.5), ("DCGSSGIRL", "GIRLS PARTY BAG", "BAG", 3.29), ("85123A", "RED MUG", "MUG", 2.95)]
    assert [(row["user_id"], row["country"]) for row in table(folder, "users")] == [("17850", "United Kingdom"), ("12345", "Norway")]


def test_online_retail_whole_reconciles_with_its_file_to_the_cent(home: Home, real_data: Path):
    """Every row of the file is there once, with one primary reason, and their amounts add up to the file's."""
    folder = normalised(home, Source.ONLINE_RETAIL, real_data / RETAIL).folder
    fates = "SELECT coalesce(reasons[1], 'kept'), count(*), sum(value::DECIMAL(18, 3))::VARCHAR FROM events GROUP BY 1 ORDER BY 1"
    assert query(folder, fates) == [
        ("cancellation", 9_288, "-896812.490"),
        ("kept", 396_340, "8761066.653"),
        ("missing_user", 131_421, "1510366.410"),
        ("negative_quantity", 1_336, "0.000"),
        ("non_product_code", 2_362, "373127.361"),
        ("zero_price", 1_162, "0.000"),
    ]
    with duckdb.connect() as connection:
        total = connection.execute(
            "SELECT count(*), sum(Quantity::BIGINT * UnitPrice::DECIMAL(18, 3))::VARCHAR FROM read_csv($file, all_varchar = true)",
            {"file": str(real_data / RETAIL)},
        ).fetchone()
    assert query(folder, "SELECT count(*), sum(value::DECIMAL(18, 3))::VARCHAR FROM events") == [total]
    assert total[0] == 541_909
    assert query(folder, "SELECT count(*) - count(DISTINCT event_id), count(DISTINCT source_row) FROM events") == [(5_268, 541_909)]
    leaks = "SELECT count(*) FROM items i WHERE NOT EXISTS (FROM events e WHERE e.item_id = i.item_id AND e.received_at = i.valid_from AND len(e.reasons) = 0)"
    assert query(folder, leaks) == [(0,)], "every version holds from a sale that proves it"


@pytest.mark.slow
def test_online_retail_in_374_days_reads_every_row_once(home: Home, real_data: Path):
    request = Request(source=Source.ONLINE_RETAIL, path=real_data / RETAIL)
    windows = plan.windows(home, request, batch_days=1)
    assert len(windows) == 374
    batches = [home.landing / reading.stage_batch(home, request, window) for window in windows]
    assert sum(publish.manifest(batch).facts["rows"]["events"] for batch in batches) == 541_909
    # A window also brings every item and user as it stood at its start: the versions of all windows are those of the source.
    for name, entity in (("items", "item_id"), ("users", "user_id")):
        version = [entity, "valid_from"]
        staged = pa.concat_tables(pq.read_table(batch / f"{name}.parquet", columns=version) for batch in batches)
        whole = pq.read_table(normalised(home, Source.ONLINE_RETAIL, real_data / RETAIL).folder / f"{name}.parquet", columns=version)
        assert len(staged) > len(whole)
        assert staged.group_by(version).aggregate([]).num_rows == whole.group_by(version).aggregate([]).num_rows


RATINGS = [("1", "10", "5", "978300760"), ("2", "20", "3.5", "978302109"), ("1", "20", "4", "978301968")]
LAYOUTS = {
    "1m": {
        "ml-1m/ratings.dat": "".join("::".join(row) + "\n" for row in RATINGS),
        "ml-1m/movies.dat": "10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Action\n",
        "ml-1m/users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    },
    "latest": {
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in RATINGS),
        "movies.csv": 'movieId,title,genres\n10,Amélie (2001),Comedy|Romance\n20,"Heat (1995)",(no genres listed)\n',
        "tags.csv": "userId,movieId,tag,timestamp\n1,10,nice,978300760\n",
    },
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_movielens_layouts(home: Home, tmp_path: Path, layout: str, packed: bool):
    encoding = "latin-1" if layout == "1m" else "utf-8"
    folder = tmp_path / "ml"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for name, text in LAYOUTS[layout].items():
            archive.writestr(name, text.encode(encoding))
            (folder / Path(name).name).write_bytes(text.encode(encoding))
    found = normalised(home, Source.MOVIELENS, tmp_path / "ml.zip" if packed else folder).folder
    events = table(found, "events")
    assert [(row["user_id"], row["item_id"], row["value"], row["event_type"]) for row in events] == [
        ("1", "10", 5.0, "rating"),
        ("1", "20", 4.0, "rating"),
        ("2", "20", 3.5, "rating"),
    ]
    items = {row["item_id"]: row for row in table(found, "items")}
    assert (items["10"]["title"], items["10"]["category"]) == ("Amélie (2001)", "Comedy")
    assert dict(items["10"]["attributes"]) == {"genres": "Comedy|Romance", "year": "2001"}
    assert items["20"]["category"] == ("Action" if layout == "1m" else None)
    if layout == "1m":
        users = {row["user_id"]: (row["age_band"], dict(row["attributes"])) for row in table(found, "users")}
        assert users == {
            "1": ("under-18", {"gender": "F", "occupation": "K-12 student"}),
            "2": ("56-plus", {"gender": "M", "occupation": "self-employed"}),
        }


def test_movielens_100k(home: Home, real_data: Path):
    found = normalised(home, Source.MOVIELENS, real_data / "movielens-100k")
    assert (found.first.date().isoformat(), found.last.date().isoformat()) == ("1997-09-20", "1998-04-22")
    assert query(found.folder, "SELECT count(*), sum(value), sum(len(reasons)) FROM events") == [(100_000, 352_986.0, 0)]
    assert query(found.folder, "SELECT count(*), count(category), count(DISTINCT category) FROM items") == [(1_682, 1_680, 18)]
    assert query(found.folder, "SELECT count(*), count(age_band), count(DISTINCT attributes['occupation']) FROM users") == [(943, 943, 21)]


def test_a_folder_without_ratings_is_no_movielens(home: Home, tmp_path: Path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"none of \['u.data', 'ratings.dat', 'ratings.csv'\] among \['other.csv'\]"):
        normalised(home, Source.MOVIELENS, tmp_path)


ORIGINAL = """timestamp,visitorid,event,itemid,transactionid
1433221332117,257597,view,355908,
1433224214164,992329,addtocart,248676,
1433222276276,111016,transaction,318965,4000
"""
PROPERTIES = """timestamp,itemid,property,value
1433041200000,355908,categoryid,1338
1433041200000,355908,available,1
1433041200000,355908,888,n277.200
1433646000000,355908,available,0
1433646000000,248676,categoryid,7
"""


def test_retailrocket_original_with_its_properties(home: Home, tmp_path: Path):
    (tmp_path / "events.csv").write_text(ORIGINAL)
    (tmp_path / "item_properties_part1.csv").write_text(PROPERTIES)
    for path in (tmp_path, tmp_path / "events.csv"):
        found = normalised(home, Source.RETAILROCKET, path).folder
        events = table(found, "events")
        assert [(row["user_id"], row["event_type"], row["item_id"]) for row in events] == [
            ("257597", "view", "355908"),
            ("111016", "purchase", "318965"),
            ("992329", "add_to_cart", "248676"),
        ]
        assert events[0]["event_at"] == datetime(2015, 6, 2, 5, 2, 12, 117_000, tzinfo=UTC)
        assert [(row["item_id"], row["category"], row["available"], row["valid_from"].day) for row in table(found, "items")] == [
            ("355908", "1338", True, 31),
            ("248676", "7", None, 7),
            ("355908", "1338", False, 7),
        ]


def test_retailrocket_sample(home: Home, real_data: Path):
    found = normalised(home, Source.RETAILROCKET, real_data / "retailrocket-sample" / "events.csv.gz")
    assert query(found.folder, "SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), sum(len(reasons)) FROM events") == [
        (97_381, 2_174, 29_905, 0)
    ]
    assert query(found.folder, "SELECT list(DISTINCT event_type ORDER BY event_type) FROM events") == [
        (["add_to_cart", "purchase", "view"],)
    ]


def test_other_columns_are_sent_to_a_mapping(home: Home, tmp_path: Path):
    (tmp_path / "events.csv").write_text("when,who,what\n1,2,3\n")
    with pytest.raises(SourceError, match="use --source table with a mapping"):
        normalised(home, Source.RETAILROCKET, tmp_path / "events.csv")


def test_batch_ids_tell_windows_apart(home: Home, tmp_path: Path):
    (tmp_path / "retail.csv").write_text(INVOICES)
    request = Request(source=Source.ONLINE_RETAIL, path=tmp_path / "retail.csv")
    ids = {reading.stage_batch(home, request, Window.parse(f"2011-07-0{day}", f"2011-07-0{day + 1}")) for day in (1, 2)}
    assert len(ids) == 2
