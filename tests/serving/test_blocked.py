"""A takedown is followed by every process, kept with its reason, and survives what the file may meet."""

import subprocess
import sys

import pytest
from scripted import RELEASE, ask, items, shown

from pipelines.config import Home
from pipelines.errors import ReloopError, StateError
from pipelines.serving import blocked
from pipelines.serving.blocked import Blocked
from pipelines.serving.request import FULL, Answer


def test_a_decision_of_another_process_is_followed(home: Home):
    here = Blocked(home, follow_seconds=0)
    assert here.items == frozenset()
    code = f"from pathlib import Path; from pipelines.config import Home; from pipelines.serving import blocked; print(blocked.block(Home(Path({str(home.root)!r})), ['a', 'b', 'a'], 'recalled'))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "2\n"
    assert here.items == {"a", "b"}
    assert blocked.unblock(home, ["a"], "repaired") == 1
    assert here.items == {"b"}


def test_the_file_is_asked_at_most_every_so_often(home: Home):
    now = [0.0]
    here = Blocked(home, follow_seconds=0.5, ticks=lambda: now[0])
    blocked.block(home, ["a"], "recalled")
    assert here.items == frozenset()
    now[0] = 0.5
    assert here.items == {"a"}


def test_what_stands_is_told_with_its_reason_and_deciding_twice_changes_nothing(home: Home):
    assert blocked.block(home, ["a", "b"], "recalled") == 2
    assert blocked.block(home, ["a"], "again") == 0
    blocked.unblock(home, ["b"])
    (entry,) = blocked.standing(home)
    assert (entry["item_id"], entry["reason"]) == ("a", "recalled")
    assert entry["decided_at"].endswith("Z")


def test_a_takedown_needs_a_reason(home: Home):
    with pytest.raises(ReloopError, match="reason: none"):
        blocked.block(home, ["a"], "  ")


def test_a_damaged_file_stops_the_start_and_later_the_last_known_state_holds(home: Home):
    blocked.block(home, ["a"], "recalled")
    here = Blocked(home, follow_seconds=0)
    here._db.close()
    assert here.items == {"a"}
    for file in home.serving.glob("blocked.db*"):
        file.unlink()
    (home.serving / "blocked.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match="nobody knows what must not be shown"):
        Blocked(home)


def test_those_below_move_up_and_their_features_with_them(home: Home):
    blocked.block(home, ["i2"], "recalled")
    answer = Answer(ask(), shown("i1", "i2", "i3"), FULL, RELEASE, features={"price": (1.0, 2.0, 3.0)})
    left = Blocked(home).without(answer)
    assert (items(left), [place.rank for place in left.items], left.features) == (["i1", "i3"], [1, 2], {"price": (1.0, 3.0)})
