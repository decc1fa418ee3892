"""How a mapping reads event rows, on files small enough to check by eye."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from pipelines.errors import MappingError, SourceError
from tests.sources.conftest import THREE, VIEWS, ReadTable, at, column


def test_one_csv_needs_four_lines_of_mapping(read_table: ReadTable):
    events = read_table({"log.csv": THREE}, {"events": VIEWS})["events"]
    assert column(events, "user_id") == ["ann", "bob", "ann"]
    assert column(events, "item_id") == ["apple", "pear", "plum"]
    assert column(events, "event_at") == [at("2024-03-01T10:00"), at("2024-03-02T10:00"), at("2024-03-03T10:00")]
    assert column(events, "received_at") == column(events, "event_at")
    assert column(events, "source_row") == [0, 1, 2]
    assert column(events, "reasons") == [[], [], []]
    assert column(events, "raw") == [None] * 3


@pytest.mark.parametrize(
    ("written", "spec", "read"),
    [
        ("2024-07-01 10:00:00", "at", "2024-07-01T10:00"),
        ("2024-07-01T10:00:00.123456+02:00", "at", "2024-07-01T08:00:00.123456"),
        ("2024-07-01T10:00:00Z", {"column": "at", "zone": "Europe/Paris"}, "2024-07-01T10:00"),
        ("2024-07-01 10:00", {"column": "at", "zone": "Europe/London"}, "2024-07-01T09:00"),
        ("2024-01-01 10:00", {"column": "at", "zone": "Europe/London"}, "2024-01-01T10:00"),
        ("2024-07-01", {"column": "at", "zone": "Asia/Tokyo"}, "2024-07-01T00:00"),
        ("20240701", "at", "2024-07-01T00:00"),
        ("1719828000", "at", "2024-07-01T10:00"),
        ("1719828000123", "at", "2024-07-01T10:00:00.123"),
        ("1719828000123456", "at", "2024-07-01T10:00:00.123456"),
        ("1719828000123456789", "at", "2024-07-01T10:00:00.123456"),
        ("1719828000.5", {"column": "at", "format": "epoch_s"}, "2024-07-01T10:00:00.5"),
        ("7/1/2024 9:05", {"column": "at", "format": "%m/%d/%Y %H:%M"}, "2024-07-01T09:05"),
        ("01.07.2024", {"column": "at", "format": "%d.%m.%Y", "zone": "Asia/Tokyo"}, "2024-07-01T00:00"),
        ("01.07.2024", {"column": "at", "format": ["%Y-%m-%d", "%d.%m.%Y"]}, "2024-07-01T00:00"),
        ("01/Jul/2024:10:00:00 +0200", {"column": "at", "format": "%d/%b/%Y:%H:%M:%S %z"}, "2024-07-01T08:00"),
    ],
)
def test_times_are_read_as_the_mapping_says(read_table: ReadTable, written: str, spec: Any, read: str):
    events = read_table({"log.csv": f"user,item,at\nann,apple,{written}\n"}, {"events": {**VIEWS, "event_at": spec}})["events"]
    assert column(events, "event_at") == [at(read)]
    assert column(events, "reasons") == [[]]


def test_date_and_time_may_stand_in_two_columns(read_table: ReadTable):
    mapping = {"events": {**VIEWS, "event_at": {"columns": ["day", "time"], "format": "%Y-%m-%d %H%M", "zone": "America/New_York"}}}
    events = read_table({"log.csv": "user,item,day,time\nann,apple,2024-01-05,0930\n"}, mapping)["events"]
    assert column(events, "event_at") == [at("2024-01-05T14:30")]


def test_a_row_that_cannot_be_read_is_kept_with_its_reason_and_its_text(read_table: ReadTable):
    """Seven bad rows beside nine good: nothing is lost, and every reason says what was wrong."""
    good = "".join(f"ann,i{n},2024-03-0{n + 1} 10:00,1.5,view\n" for n in range(9))
    bad = (
        "ann,x,yesterday,1.5,view\n"  # no time
        "ann,x,1970-01-01 00:00,1.5,view\n"  # a zero that stands for no time
        "ann,x,2024-03-04 10:00,much,view\n"
        "ann,x,2024-03-04 10:00,1.5,stare\n"
        "ann,x\n"
        "ann,x,2024-03-04 10:00,1.5,view,more\n"
    )
    mapping = {"events": {**VIEWS, "value": "price", "event_type": {"column": "type", "values": {"view": "view"}}}}
    content = ("user,item,at,price,type\n" + good + bad).encode() + b"ann,caf\xe9,2024-03-04 10:00,1.5,view\n"
    events = read_table({"log.csv": content}, mapping)["events"]
    reasons = {row["source_row"]: row["reasons"] for row in events if row["reasons"]}
    assert reasons == {
        9: ["unreadable event_at"],
        10: ["unreadable event_at"],
        11: ["unreadable value"],
        12: ["unknown event_type"],
        13: ["unreadable row"],
        14: ["unreadable row"],
        15: ["unreadable text"],
    }
    assert len(events) == 16
    raw = {row["source_row"]: row["raw"] for row in events if row["raw"]}
    assert sorted(raw) == sorted(reasons)
    assert json.loads(raw[9]) == {"user": "ann", "item": "x", "at": "yesterday", "price": "1.5", "type": "view"}
    assert json.loads(raw[13]) == ["ann", "x"]
    assert "more" in raw[14]
    assert r"caf\udce9" in raw[15] or "caf" in raw[15]
    assert column(events, "source_row")[:5] == [9, 10, 13, 14, 15], "rows without a time come first, in their order"


def test_european_numbers(read_table: ReadTable):
    mapping = {
        "files": {"log": {"path": "log.csv", "separator": ";", "decimal": ",", "thousands": ".", "encoding": "cp1252"}},
        "events": {**VIEWS, "value": "betrag"},
    }
    events = read_table(
        {"log.csv": "user;item;at;betrag\nann;apfel;2024-03-01;€ 1.234,50\nbob;süß;2024-03-01;3,5\n".encode("cp1252")}, mapping
    )["events"]
    assert column(events, "value") == [1234.5, 3.5]
    assert column(events, "item_id") == ["apfel", "süß"]


def test_values_are_products_in_other_units_and_currencies(read_table: ReadTable):
    value = {"product": ["n", "cents"], "factor": 0.01, "currency": {"column": "money", "rates": {"EUR": 1, "USD": 0.5}}}
    content = (
        "user,item,at,n,cents,money\nann,a,2024-03-01,3,250,EUR\nann,b,2024-03-02,2,100,USD\n"
        "ann,c,2024-03-03,2,100,DEM\nann,d,2024-03-04,,100,EUR\nann,e,2024-03-05,1,inf,EUR\n"
    )
    events = read_table({"log.csv": content}, {"events": {**VIEWS, "value": value, "quantity": "n"}})["events"]
    assert column(events, "value") == [7.5, 1.0, None, None, None]
    assert column(events, "reasons") == [[], [], ["unreadable value"], [], ["unreadable value"]], "an empty cell is null, not unreadable"
    assert column(events, "quantity") == [3.0, 2.0, 2.0, None, 1.0]


def test_texts_are_joined_replaced_cut_banded_and_defaulted(read_table: ReadTable):
    content = "shop,customer,visitor,sku,at,tag,age,action\nA,7,,red-1,2024-03-01,mobile app,34,1\nB,,v9,RED-2,2024-03-02,,12,2\nB,,v8,x3,2024-03-03,tv,80,3\n"
    mapping = {
        "events": {
            "user_id": {"first_of": ["customer", "visitor"]},
            "item_id": {"columns": ["shop", "sku"], "joined_by": "/", "case": "lower"},
            "event_type": {"column": "action", "values": {1: "view", 2: "add_to_cart"}, "default": "purchase"},
            "event_at": "at",
            "device": {"column": "tag", "pattern": r"^(\w+)", "default": "unknown"},
        },
        "users": {"user_id": {"first_of": ["customer", "visitor"]}, "age_band": {"column": "age", "bands": [18, 35, 65]}},
    }
    read = read_table({"log.csv": content}, mapping)
    assert column(read["events"], "user_id") == ["7", "v9", "v8"]
    assert column(read["events"], "item_id") == ["a/red-1", "b/red-2", "b/x3"]
    assert column(read["events"], "event_type") == ["view", "add_to_cart", "purchase"]
    assert column(read["events"], "device") == ["mobile", "unknown", "tv"]
    assert column(read["users"], "age_band") == ["18-34", "under-18", "65-plus"]


def test_rows_that_are_no_events_go_under_the_first_reason_that_holds(read_table: ReadTable):
    content = "user,item,at,n,state\nann,a,2024-03-01,1,paid\n,a,2024-03-02,1,paid\n,a,2024-03-03,-1,void\nbob,POST,2024-03-04,1,paid\nbob,b,2024-03-05,0,paid\n"
    skip = [
        {"column": "state", "equals": ["void", "lost"], "reason": "cancellation"},
        {"column": "n", "at_most": 0, "reason": "nothing bought"},
        {"column": "item", "matches": "^[A-Z]+$", "reason": "no product"},
        {"column": "user", "missing": True, "reason": "missing_user"},
    ]
    events = read_table({"log.csv": content}, {"events": {**VIEWS, "skip": skip}})["events"]
    assert column(events, "reasons") == [
        [],
        ["missing_user"],
        ["cancellation", "nothing bought", "missing_user"],
        ["no product"],
        ["nothing bought"],
    ]
    assert all((row["raw"] is not None) == bool(row["reasons"]) for row in events)


@pytest.mark.parametrize(("test", "hit"), [({"differs": ["ok"]}, [1]), ({"lacks": "^o"}, [1]), ({"above": 5}, []), ({"below": 5}, [])])
def test_other_ways_to_say_which_rows_are_no_events(read_table: ReadTable, test: dict[str, Any], hit: list[int]):
    skip = [{"column": "state", "reason": "odd", **test}]
    events = read_table(
        {"log.csv": "user,item,at,state\nann,a,2024-03-01,ok\nann,b,2024-03-02,ko\nann,c,2024-03-03,\n"},
        {"events": {**VIEWS, "skip": skip}},
    )["events"]
    assert [row["source_row"] for row in events if row["reasons"]] == hit


ORDERS = "order_id,customer,placed,country\n1,ann,2024-03-01 10:00,NO\n2,bob,2024-03-02 11:00,SE\n"
LINES = "order_id,sku,n,price\n1,apple,2,1.5\n1,pear,1,2\n2,apple,1,1.5\n3,plum,1,9\n"
SHOP: dict[str, Any] = {
    "files": {"orders": "orders.csv", "lines": "lines.csv"},
    "events": {
        "file": "lines",
        "join": [{"file": "orders", "on": "order_id"}],
        "user_id": "customer",
        "item_id": "sku",
        "event_type": {"constant": "purchase"},
        "event_at": "orders.placed",
        "session_id": "order_id",
        "value": ["n", "price"],
    },
    "users": {"user_id": "customer", "country": "country"},
}


def test_lines_find_user_and_time_in_their_orders(read_table: ReadTable):
    read = read_table({"orders.csv": ORDERS, "lines.csv": LINES}, SHOP)
    told = [(row["user_id"], row["item_id"], row["event_at"], row["value"], row["reasons"]) for row in read["events"]]
    assert told == [
        (None, "plum", None, 9.0, ["no match in orders", "unreadable event_at"]),
        ("ann", "apple", at("2024-03-01T10:00"), 3.0, []),
        ("ann", "pear", at("2024-03-01T10:00"), 2.0, []),
        ("bob", "apple", at("2024-03-02T11:00"), 1.5, []),
    ]
    assert {(row["user_id"], row["country"]) for row in read["users"]} == {("ann", "NO"), ("bob", "SE")}


def test_a_join_that_would_double_rows_is_refused(read_table: ReadTable):
    with pytest.raises(MappingError, match=r"events.join: orders: \{'order_id': '1'\} stands in 2 rows, first in row 0"):
        read_table({"orders.csv": ORDERS + "1,eve,2024-03-05 10:00,DK\n", "lines.csv": LINES}, SHOP)


def test_a_cell_with_several_values_is_several_rows(read_table: ReadTable):
    mapping = {"files": {"baskets": {"path": "b.csv", "explode": {"column": "item", "separator": " "}}}, "events": VIEWS}
    events = read_table({"b.csv": "user,item,at\nann,a b c,2024-03-01\nbob,,2024-03-02\n"}, mapping)["events"]
    assert [(row["source_row"], row["item_id"]) for row in events] == [(0, "a"), (0, "b"), (0, "c"), (1, None)]
    assert len({row["event_id"] for row in events}) == 4


def test_exact_repeats_share_an_id_and_all_else_differs(read_table: ReadTable):
    content = "user,item,at\nann,a,2024-03-01\nann,a,2024-03-01\nan,na,2024-03-01\n"
    ids = column(read_table({"log.csv": content}, {"events": VIEWS})["events"], "event_id")
    assert ids[0] == ids[1] != ids[2]


def test_an_id_of_the_source_is_kept(read_table: ReadTable):
    events = read_table({"log.csv": "user,item,at,no\nann,a,2024-03-01,77\n"}, {"events": {**VIEWS, "event_id": "no"}})["events"]
    assert column(events, "event_id") == ["77"]


class TestWithoutAClock:
    def test_numbers_that_rise_with_time_become_days(self, read_table: ReadTable):
        mapping = {"events": {**VIEWS, "event_at": {"sequence": "week", "step": "7 days", "start": "2024-01-01"}}}
        events = read_table({"log.csv": "user,item,week\nann,a,0\nann,b,2\nbob,c,1\n"}, mapping)["events"]
        assert {row["item_id"]: row["event_at"] for row in events} == {"a": at("2024-01-01"), "b": at("2024-01-15"), "c": at("2024-01-08")}

    def test_the_order_in_the_file_is_each_users_order_and_all_end_together(self, read_table: ReadTable):
        mapping = {"events": {**VIEWS, "event_at": {"sequence": "row", "per": "user", "start": "2024-01-01"}}}
        events = read_table({"log.csv": "user,item\nann,a\nbob,x\nann,b\nann,c\nbob,y\n"}, mapping)["events"]
        days = {row["item_id"]: row["event_at"] for row in events}
        assert days == {"a": at("2024-01-01"), "b": at("2024-01-02"), "c": at("2024-01-03"), "x": at("2024-01-02"), "y": at("2024-01-03")}

    def test_gaps_between_orders_add_up_and_the_lines_of_an_order_share_a_moment(self, read_table: ReadTable):
        mapping = {
            "files": {"orders": "orders.csv", "lines": "lines.csv"},
            "events": {
                "file": "lines",
                "join": [{"file": "orders", "on": "order_id"}],
                "user_id": "user_id",
                "item_id": "product_id",
                "session_id": "order_id",
                "event_type": {"constant": "purchase"},
                "event_at": {
                    "sequence": "order_number",
                    "per": "user_id",
                    "gap_days": "days_since_prior",
                    "hour": "hour",
                    "tie": "position",
                    "start": "2024-01-01",
                    "align": "start",
                },
            },
        }
        orders = "order_id,user_id,order_number,days_since_prior,hour\n9,1,1,,8\n7,1,2,15,9\n8,1,3,3,10\n5,2,1,,23\n"
        lines = "order_id,product_id,position\n9,a,1\n9,b,2\n7,c,1\n8,d,1\n8,e,2\n5,a,1\n"
        events = read_table({"orders.csv": orders, "lines.csv": lines}, mapping)["events"]
        micro = timedelta(microseconds=1)
        assert {(row["session_id"], row["item_id"]): row["event_at"] for row in events} == {
            ("9", "a"): at("2024-01-01T08:00") + micro,
            ("9", "b"): at("2024-01-01T08:00") + 2 * micro,
            ("7", "c"): at("2024-01-16T09:00") + micro,
            ("8", "d"): at("2024-01-19T10:00") + micro,
            ("8", "e"): at("2024-01-19T10:00") + 2 * micro,
            ("5", "a"): at("2024-01-01T23:00") + micro,
        }

    def test_a_number_that_cannot_be_read_has_no_moment(self, read_table: ReadTable):
        mapping = {"events": {**VIEWS, "event_at": {"sequence": "n", "per": "user"}}}
        events = read_table({"log.csv": "user,item,n\nann,a,1\nann,b,2\nann,c,soon\n"}, mapping)["events"]
        assert [(row["item_id"], row["reasons"]) for row in events] == [("c", ["unreadable event_at"]), ("a", []), ("b", [])]


def test_receipt_may_be_later_than_the_event(read_table: ReadTable):
    events = read_table(
        {"log.csv": "user,item,at,came\nann,a,2024-03-01,2024-03-05\nann,b,2024-03-02,\nann,c,2024-03-03,?\n"},
        {"events": {**VIEWS, "received_at": "came"}},
    )["events"]
    assert [(row["item_id"], row["received_at"], row["reasons"]) for row in events] == [
        ("b", at("2024-03-02"), []),
        ("c", at("2024-03-03"), ["unreadable received_at"]),
        ("a", at("2024-03-05"), []),
    ]


class TestMisfits:
    """A mapping that does not fit its file says which column, which row, and what the file has."""

    def test_a_missing_column_is_named_with_what_the_file_has(self, read_table: ReadTable):
        with pytest.raises(
            MappingError,
            match=r"events.user_id: column 'user' is missing; the file has \['uid', 'item', 'at'\].*Hint: map it with user_id: uid",
        ):
            read_table({"log.csv": "uid,item,at\n1,2,2024-03-01\n"}, {"events": VIEWS})

    def test_times_in_another_format_name_the_first_row_and_its_text(self, read_table: ReadTable):
        with pytest.raises(
            MappingError,
            match=r"events.event_at \(column 'at'\): unreadable event_at in 2 of 2 rows, first in row 0: .*13/05/2024.*Hint: set `format`",
        ):
            read_table({"log.csv": "user,item,at\n1,2,13/05/2024\n1,3,14/05/2024\n"}, {"events": VIEWS})

    def test_unnamed_event_types_say_what_stands_there(self, read_table: ReadTable):
        mapping = {"events": {**VIEWS, "event_type": {"column": "kind", "values": {"looked": "view"}}}}
        with pytest.raises(
            MappingError, match=r"events.event_type \(column 'kind'\): unknown event_type in 3 of 3 rows.*words there: 'glanced', 'left'\."
        ):
            read_table({"log.csv": "user,item,at,kind\n1,2,2024-03-01,left\n1,3,2024-03-01,glanced\n1,4,2024-03-01,glanced\n"}, mapping)

    def test_a_quote_that_never_closes_is_found(self, read_table: ReadTable):
        content = 'user,item,at\n1,"2,2024-03-01\n' + "1,2,2024-03-01\n" * 80_000
        with pytest.raises(MappingError, match="quote: none"):
            read_table({"log.csv": content}, {"events": VIEWS})

    def test_an_encoding_that_is_none_is_named(self, read_table: ReadTable):
        with pytest.raises(MappingError, match="encoding: 'klingon'"):
            read_table({"log.csv": THREE}, {"files": {"log": {"path": "log.csv", "encoding": "klingon"}}, "events": VIEWS})

    @pytest.mark.parametrize("content", ["", "user,item,at\n"])
    def test_an_empty_file_is_refused(self, read_table: ReadTable, content: str):
        with pytest.raises((SourceError, MappingError), match="no rows"):
            read_table({"log.csv": content}, {"events": VIEWS})

    def test_a_file_that_is_not_there_is_named_with_those_that_are(self, read_table: ReadTable):
        with pytest.raises(SourceError, match=r"data/orders.csv: no such file; expected one of \['lines.csv', 'log.csv'\]"):
            read_table({"log.csv": THREE, "lines.csv": LINES}, SHOP)
