"""What requests read is what the lake knew before a moment, whole or not at all, the same bytes every time."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest

from pipelines import columns as c
from pipelines import lake, publish, tables
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.features import request_snapshot
from pipelines.features.history_snapshot import event_key
from pipelines.window import micros, utc

NOW = utc("2025-03-01T12:00")


def event(user: str, item: str, hours_ago: float, *, late: float = 0.0, kind: str = c.VIEW, **more: object) -> dict[str, object]:
    at = NOW - timedelta(hours=hours_ago)
    told = {c.EVENT_ID: f"{user}-{item}-{hours_ago}", c.USER_ID: user, c.ITEM_ID: item, c.EVENT_TYPE: kind}
    return {**told, c.EVENT_AT: at, c.RECEIVED_AT: at + timedelta(hours=late), **more}


def landed(
    home: Home, *events: dict[str, object], items: tuple[dict[str, object], ...] = (), users: tuple[dict[str, object], ...] = ()
) -> None:
    schemas = {"events": tables.EVENTS, "items": tables.ITEMS, "users": tables.USERS}
    given = {"events": events, "items": items, "users": users}
    lake.land_tables(home, **{name: pa.Table.from_pylist(list(rows), schema=schemas[name]) for name, rows in given.items()})


def past(home: Home, user: str, at=NOW):
    snapshot = request_snapshot.open_snapshot(home)
    found = snapshot.histories.past(snapshot.histories.place(user), micros(at))
    return [(snapshot.catalogue.item_ids[int(item)].as_py(), int(at)) for item, at in zip(found.item, found.at, strict=True)]


def test_a_history_is_oldest_first_and_ends_before_the_moment_asked(home):
    landed(home, event("ann", "b", 1), event("ann", "a", 3), event("bob", "a", 2))
    request_snapshot.publish_snapshot(home, NOW)
    assert [item for item, _ in past(home, "ann")] == ["a", "b"]
    assert [item for item, _ in past(home, "ann", NOW - timedelta(hours=2))] == ["a"]
    assert past(home, "cyd") == []


def test_only_what_happened_and_was_received_before_the_moment_is_in_it(home):
    landed(home, event("ann", "a", 2), event("ann", "late", 2.5, late=4), event("ann", "b", 0), event("ann", "c", -1))
    request_snapshot.publish_snapshot(home, NOW)
    assert [item for item, _ in past(home, "ann")] == ["a"]


def test_the_newest_events_are_kept_of_who_has_too_many(home):
    home.root.mkdir(parents=True)
    (home.root / "reloop.toml").write_text("[serving]\nhistory_events = 2\n", encoding="utf-8")
    landed(home, *(event("robot", f"i{n}", n) for n in range(1, 6)), event("ann", "i1", 1))
    request_snapshot.publish_snapshot(home, NOW)
    assert [item for item, _ in past(home, "robot")] == ["i2", "i1"]
    assert [item for item, _ in past(home, "ann")] == ["i1"]


def test_every_user_is_found_and_nobody_else(home):
    names = ["", "a", "aa", "b", "ä", "日本", "😀", "z" * 300]
    landed(home, *(event(name, "i", n + 1) for n, name in enumerate(names)))
    request_snapshot.publish_snapshot(home, NOW)
    histories = request_snapshot.open_snapshot(home).histories
    assert [histories.users[histories.place(name)].as_py() for name in names] == names
    assert [histories.place(name) for name in ("ab", "A", "zz", "é", "z" * 299)] == [-1] * 5


def test_an_event_is_known_by_its_id_as_the_session_spells_it(home):
    told = event("ann", "a", 1, **{c.EVENT_ID: "e-ünïque"})
    landed(home, told)
    request_snapshot.publish_snapshot(home, NOW)
    histories = request_snapshot.open_snapshot(home).histories
    assert histories.past(0, micros(NOW)).event.tolist() == [event_key("e-ünïque")]


def test_type_value_and_device_are_kept(home):
    landed(home, event("ann", "a", 2, kind=c.RATING, value=4.5, device="iOS"), event("ann", "b", 1, device="desk"))
    request_snapshot.publish_snapshot(home, NOW)
    found = request_snapshot.open_snapshot(home).histories.past(0, micros(NOW))
    assert [c.EVENT_TYPES[code] for code in found.event_type.tolist()] == [c.RATING, c.VIEW]
    assert found.value[0] == np.float32(4.5)
    assert np.isnan(found.value[1])
    assert found.device.tolist() == [1, 0]


def version(key: str, name: str, days_ago: float, **more: object) -> dict[str, object]:
    at = NOW - timedelta(days=days_ago)
    return {key: name, c.VALID_FROM: at, c.RECEIVED_AT: at, **more}


def test_items_and_users_are_as_they_were_known_then(home):
    landed(
        home,
        event("ann", "sold", 1),
        items=(
            version(c.ITEM_ID, "lamp", 9, title="Lamp", price=10.0, available=True),
            version(c.ITEM_ID, "lamp", 2, title="Lamp", price=8.0, available=False),
            version(c.ITEM_ID, "lamp", -1, title="Lamp", price=5.0, available=True),
        ),
        users=(version(c.USER_ID, "ann", 9, country="DE"), version(c.USER_ID, "cyd", 9, country="FR")),
    )
    request_snapshot.publish_snapshot(home, NOW)
    snapshot = request_snapshot.open_snapshot(home)
    shop = snapshot.catalogue
    assert shop.told(shop.place("lamp")) == {"title": "Lamp", "price": 8.0, "available": False}
    assert (shop.told(shop.place("sold")), shop.place("sofa")) == ({}, -1)
    assert snapshot.histories.profiles[c.COUNTRY].to_pylist() == ["DE", "FR"]


def test_what_rises_and_what_is_liked_are_told_apart_and_by_country(home):
    old = [event(f"u{n}", "classic", 24 * 10 + n) for n in range(20)]
    new = [event(f"u{n}", "hit", 1 + n / 10) for n in range(8)]
    abroad = [event(f"f{n}", "baguette", 48 + n) for n in range(3)]
    profiles = [version(c.USER_ID, f"u{n}", 30, country="DE") for n in range(20)] + [
        version(c.USER_ID, f"f{n}", 30, country="FR") for n in range(3)
    ]
    landed(home, *old, *new, *abroad, users=tuple(profiles))
    request_snapshot.publish_snapshot(home, NOW)
    shop = request_snapshot.open_snapshot(home).catalogue
    first = {key: shop.item_ids[int(items[0])].as_py() for key, (items, _) in shop.lists.items()}
    assert first["trending", ""] == "hit"
    assert first["trending", "country=FR"] == "baguette"
    # 20 events of 10 days ago fade to 20 x 2^(-10/7) = 7.4, the 8 of today have hardly faded
    assert first["popular", ""] == "hit"
    assert all((np.diff(scores) <= 0).all() and (scores > 0).all() for _, scores in shop.lists.values())


def test_the_same_lake_gives_the_same_folder(home):
    landed(home, event("ann", "a", 1), event("bob", "b", 2))
    first = request_snapshot.publish_snapshot(home, NOW)
    digest = publish.manifest(first, verify=True).digest
    assert request_snapshot.publish_snapshot(home, NOW) == first
    assert publish.manifest(first, verify=True).digest == digest
    assert [path.name for path in request_snapshot.folder(home).glob("as_of=*")] == [first.name]


def test_an_empty_lake_has_a_snapshot_of_nothing(home):
    landed(home)
    request_snapshot.publish_snapshot(home, NOW)
    snapshot = request_snapshot.open_snapshot(home)
    assert (len(snapshot.histories.users), len(snapshot.catalogue.item_ids), past(home, "ann")) == (0, 0, [])


def test_without_one_it_is_said_what_to_do(home):
    with pytest.raises(StateError, match="reloop features"):
        request_snapshot.open_snapshot(home)


@pytest.mark.parametrize("dies_at", ["history_snapshot.write", "publish.write_json", "shutil.rmtree"])
def test_killed_anywhere_a_reader_keeps_the_old_one_and_a_rerun_ends_the_same(home, monkeypatch, dies_at):
    landed(home, event("ann", "a", 1))
    before = request_snapshot.publish_snapshot(home, NOW - timedelta(minutes=1))
    landed(home, event("ann", "b", 0.5))

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(f"pipelines.features.request_snapshot.{dies_at}", die)
        try:
            request_snapshot.publish_snapshot(home, NOW)
        except Killed:
            assert request_snapshot.open_snapshot(home).name == before.name
    after = request_snapshot.publish_snapshot(home, NOW)
    assert request_snapshot.open_snapshot(home).name == after.name
    assert [item for item, _ in past(home, "ann")] == ["a", "b"]


def test_a_reader_of_the_old_one_goes_on_while_two_newer_ones_come(home):
    landed(home, event("ann", "a", 1))
    request_snapshot.publish_snapshot(home, NOW)
    old = request_snapshot.open_snapshot(home)
    for minutes in (1, 2):
        request_snapshot.publish_snapshot(home, NOW + timedelta(minutes=minutes))
    assert old.histories.past(old.histories.place("ann"), micros(NOW)).item.tolist() == [0]
    assert request_snapshot.open_snapshot(home).as_of == NOW + timedelta(minutes=2)
