"""Where items and users come from, on files small enough to check by eye."""

from __future__ import annotations

from tests.sources.conftest import THREE, VIEWS, ReadTable, at


def test_items_of_their_own_file_hold_from_their_first_event_or_their_own_date(read_table: ReadTable):
    files = {
        "log.csv": THREE,
        "items.csv": "sku,name,kind,maker,cents,stock,colour,since\napple,Apple,fruit,Acme,250,yes,red,\npear,Pear,fruit,,300,0,,2024-02-01\nkiwi,Kiwi,fruit,,,,,\n",
    }
    mapping = {
        "files": {"log": "log.csv", "products": "items.csv"},
        "events": {"file": "log", **VIEWS},
        "items": {
            "file": "products",
            "item_id": "sku",
            "title": "name",
            "category": "kind",
            "brand": "maker",
            "price": {"column": "cents", "factor": 0.01},
            "available": "stock",
            "valid_from": "since",
            "attributes": {"colour": "colour", "origin": {"constant": "garden"}},
        },
    }
    items = {row["item_id"]: row for row in read_table(files, mapping)["items"]}
    assert items["apple"]["valid_from"] == at("2024-03-01T10:00")
    assert items["pear"]["valid_from"] == at("2024-02-01")
    assert items["kiwi"]["valid_from"] == at("2024-03-01T10:00"), "never seen: from the source's first moment"
    assert (items["apple"]["title"], items["apple"]["brand"], items["apple"]["price"], items["apple"]["available"]) == (
        "Apple",
        "Acme",
        2.5,
        True,
    )
    assert items["pear"]["available"] is False
    assert dict(items["apple"]["attributes"]) == {"colour": "red", "origin": "garden"}
    assert dict(items["pear"]["attributes"]) == {"origin": "garden"}


def test_items_seen_on_event_rows_get_a_version_when_something_changed_and_never_before(read_table: ReadTable):
    content = (
        "user,item,at,name,price\nann,a,2024-03-01T10:00,Apple,1\nbob,a,2024-03-01T12:00,Apple,9\nann,a,2024-03-02T10:00,,1\n"
        "ann,a,2024-03-03T10:00,Apple,2\nann,a,bad,Apple,7\nann,a,2024-03-04T10:00,Apple,2\n"
    )
    items = read_table({"log.csv": content}, {"events": VIEWS, "items": {"item_id": "item", "title": "name", "price": "price"}})["items"]
    assert [(row["valid_from"], row["title"], row["price"]) for row in items] == [
        (at("2024-03-01T10:00"), "Apple", 1.0),
        (at("2024-03-03T10:00"), "Apple", 2.0),
    ]


def test_one_hot_columns_become_one_text(read_table: ReadTable):
    mapping = {"events": VIEWS, "items": {"item_id": "item", "category": {"flags": ["War", "Drama"]}}}
    items = read_table({"log.csv": "user,item,at,War,Drama\nann,a,2024-03-01,1,1\nann,b,2024-03-02,0,0\n"}, mapping)["items"]
    assert [(row["item_id"], row["category"]) for row in items] == [("a", "War|Drama"), ("b", None)]


def test_sessions_stand_in_for_users(read_table: ReadTable):
    mapping = {"events": {**VIEWS, "user_id": "session", "session_id": "session"}}
    events = read_table({"log.csv": "session,item,at\ns1,a,2024-03-01\ns1,b,2024-03-01\ns2,a,2024-03-01\n"}, mapping)["events"]
    assert [(row["user_id"], row["session_id"]) for row in events] == [("s1", "s1"), ("s1", "s1"), ("s2", "s2")]


def test_what_was_never_seen_holds_from_its_launch_where_that_is_after_the_sources_first_moment(read_table: ReadTable):
    files = {"log.csv": THREE, "items.csv": "sku,launch\nkiwi,2024-03-02\nfig,2020-01-01\nplum,2020-01-01\n"}
    mapping = {
        "files": {"log": "log.csv", "products": "items.csv"},
        "events": {"file": "log", **VIEWS},
        "items": {"file": "products", "item_id": "sku", "created_at": "launch"},
    }
    assert {row["item_id"]: row["valid_from"] for row in read_table(files, mapping)["items"]} == {
        "fig": at("2024-03-01T10:00"),
        "kiwi": at("2024-03-02"),
        "plum": at("2024-03-03T10:00"),
    }
