"""Answers of every process are found by every process, until newer ones take their place."""

from __future__ import annotations

from processes import in_child

from pipelines.config import Home
from pipelines.serving import remembered
from pipelines.serving.remembered import Ring


def record(name: str, size: int = 100) -> bytes:
    return b'{"request_id":"%s","pad":"%s"}' % (name.encode(), b"x" * size)


def test_what_another_process_answered_is_found(home: Home) -> None:
    assert in_child(lambda: Ring(home, 1 << 16).keep(record("theirs"))) == 0
    Ring(home, 1 << 16).keep(record("mine"))
    assert [found["request_id"] for name in ("theirs", "mine") if (found := remembered.find(home, name))] == ["theirs", "mine"]
    assert remembered.find(home, "nobody's") is None


def test_of_several_of_one_name_the_newest_is_told(home: Home) -> None:
    ring = Ring(home, 1 << 16)
    for moment in ("2025-03-01T12:00:02Z", "2025-03-01T12:00:09Z", "2025-03-01T12:00:05Z"):
        ring.keep(b'{"request_id":"twice","answer":{"as_of":"%s"}}' % moment.encode())
    found = remembered.find(home, "twice")
    assert found is not None
    assert found["answer"]["as_of"] == "2025-03-01T12:00:09Z"


def test_a_ring_keeps_the_newest_and_never_half_of_one(home: Home) -> None:
    ring = Ring(home, 4096)
    for n in range(200):
        ring.keep(record(f"r{n}", 100 + n))
        assert remembered.find(home, f"r{n}") is not None
    kept = [n for n in range(200) if remembered.find(home, f"r{n}") is not None]
    assert kept == list(range(kept[0], 200))
    assert 8 <= len(kept) <= 14


def test_what_is_longer_than_the_ring_is_not_kept_and_odd_names_find_nothing(home: Home) -> None:
    ring = Ring(home, 4096)
    ring.keep(record("long", 5000))
    ring.keep(record("a"))
    assert remembered.find(home, "long") is None
    for odd in ('a","pad', "", "\n", "é", "\ud800"):
        assert remembered.find(home, odd) is None


def test_only_the_owner_reads_it_and_it_ends_with_the_process(home: Home) -> None:
    ring = Ring(home, 4096)
    assert ring.path.stat().st_mode & 0o777 == 0o600
    ring.close()
    assert not ring.path.exists()
