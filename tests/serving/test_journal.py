"""The impression log: nothing shown is lost but what was never flushed, nothing waits for it, and it lands once, by the same validation."""

from __future__ import annotations

import os
import resource
import signal
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scripted
from exposure_log import AS_OF, POLICY, answer, digests, lake_of, logged
from processes import in_child

from pipelines.config import Home
from pipelines.decision_policies import ImpressionPolicy
from pipelines.lake import impressions, outcomes, segments
from pipelines.ranking import deeds
from pipelines.serving import collecting
from pipelines.serving.assembly import House
from pipelines.serving.journal import Journal, Seen
from pipelines.serving.request import CACHED, EMPTY, Answer
from pipelines.window import DAY, Window


def test_what_was_shown_is_in_the_lake_with_its_propensity(home: Home):
    journal = logged(home, [answer(1)])
    assert (journal.counts.answers, journal.counts.rows, journal.counts.dropped) == (1, 3, 0)
    (report,) = collecting.collect(home, AS_OF)
    assert report["rows"] == {"read": 3, "accepted": 3, "quarantined": 0, "duplicates": 0}
    first, *_ = rows = lake_of(home)
    assert [row["item_id"] for row in rows] == ["a", "b", "c"]
    assert first == {
        "request_id": "r1", "user_id": "bo", "item_id": "a", "rank": 1, "shown_at": scripted.NOW, "model_version": "3",
        "variant": "x:control", "sources": ["als", "popular"], "score": 2.0, "propensity": 0.5, "feature_values": first["feature_values"],
        "surface": "home", "rung": "full",
    }  # fmt: skip
    assert collecting.collect(home, AS_OF) == []
    assert not segments.closed(home)
    assert not list(home.landing.glob("impressions*"))


def test_feature_values_are_logged_for_a_share_of_the_requests_that_were_ranked_for_their_user(home: Home):
    fit = [answer(number, country="SE") for number in range(400)]
    unfit = [answer(1000, user_id=None), answer(1001, rung=CACHED), answer(1002, surface="trending"), answer(1003, events=(("x",),))]
    logged(home, [*fit, *unfit])
    collecting.collect(home, AS_OF)
    values = {row["request_id"]: dict(row["feature_values"]) for row in lake_of(home) if row["feature_values"] and row["item_id"] == "b"}
    assert 0.17 < len(values) / 400 < 0.33
    assert set(values) <= {one.ask.request_id for one in fit}
    assert set(map(str, values.values())) == {str({"clicks": 1.0, "price": None, segments.COUNTRY: 1.0, segments.DEVICE: -1.0})}
    logged(home, unfit, ImpressionPolicy(feature_share=1.0))
    assert len(list(segments.folder(home).glob("*"))) == 1


def test_who_is_nobody_is_logged_and_is_nobody_twice(home: Home):
    logged(home, [answer(1, user_id=None), answer(2, user_id=None)])
    collecting.collect(home, AS_OF)
    assert {row["user_id"] for row in lake_of(home)} == {"anonymous:r1", "anonymous:r2"}


def test_an_answer_that_showed_nothing_is_an_exposure_and_no_impression(home: Home):
    empty = Answer(scripted.ask(), (), EMPTY, scripted.RELEASE, assigned="x:control")
    assert logged(home, [empty, answer(7)]).counts.rows == 4
    (report,) = collecting.collect(home, AS_OF)
    assert report["rows"]["accepted"] == 4
    with impressions.connect(home, Window(AS_OF - DAY, AS_OF)) as engine:
        shown = engine.execute("SELECT DISTINCT request_id FROM impressions").fetchall()
        nothing = engine.execute("SELECT request_id, user_id, variant, rung, rank, item_id FROM empty_answers").fetchall()
    assert (shown, nothing) == ([("r7",)], [("r1", "bo", "x:control", "empty", 0, "(nothing)")])


def test_a_place_that_came_into_view_is_marked_once_whenever_the_mark_lands(home: Home, tmp_path: Path):
    """A mark before its answer, in its batch or after it, once or twice: the same bytes; a mark of nothing that was shown is no impression."""
    marks = [Seen("r1", "bo", "b", scripted.NOW + timedelta(seconds=9)), Seen("r1", "bo", "b", scripted.NOW + timedelta(minutes=5))]
    stray = [Seen("r1", "bo", "elsewhere", scripted.NOW), Seen("r1", "bo", "c", scripted.NOW + timedelta(days=3))]
    found = []
    for number, order in enumerate(
        [(marks, [answer(1)]), ([answer(1)], marks), ([answer(1), *marks], [marks[1]]), (marks[::-1], [answer(1)])]
    ):
        other = Home(tmp_path / str(number))
        for batch in (*order, stray):
            journal = Journal(other, POLICY.model_copy(update={"feature_share": 0.0}))
            for one in batch:
                journal(one) if isinstance(one, Answer) else journal.saw(one)
            journal.close()
            collecting.collect(other, AS_OF)
        found.append({name: digest for name, digest in digests(other).items() if "shown_date" in name})
    assert len(found[0]) == 2
    assert all(one == found[0] for one in found)
    with outcomes.connect(other, Window(AS_OF - DAY, AS_OF), 24.0) as engine:
        seen = dict(engine.execute("SELECT item_id, seen_at FROM outcomes ORDER BY rank").fetchall())
    assert seen == {"a": None, "b": marks[0].at, "c": None}, "a mark counts within a day"


def test_training_may_take_what_was_seen_alone(home: Home):
    logged(home, [answer(1)])
    journal = Journal(home, POLICY)
    journal.saw(Seen("r1", "bo", "b", scripted.NOW))
    journal.close()
    collecting.collect(home, AS_OF)
    asked = (home, Window(AS_OF - DAY, AS_OF), np.array(["bo"]), np.array(["a", "b", "c"]))
    assert deeds.shown(*asked).key.tolist() == [0, 1, 2]
    (home.root / "reloop.toml").write_text("[impressions]\ntrain_on_seen = true\n")
    assert deeds.shown(*asked).key.tolist() == [1]


def test_a_full_buffer_drops_and_counts_and_never_waits(home: Home):
    journal = Journal(home, POLICY.model_copy(update={"buffer_rows": 10}))
    for number in range(5):
        journal(answer(number))
    journal.close()
    assert (journal.counts.rows, journal.counts.dropped) == (9, 6)


def test_marks_leave_room_for_what_is_shown(home: Home):
    journal = Journal(home, POLICY.model_copy(update={"buffer_rows": 100}))
    taken = [journal.saw(Seen("r", "bo", f"i{n}", scripted.NOW)) for n in range(90)]
    assert taken == [True] * 25 + [False] * 65
    for number in range(25):
        journal(answer(number))
    assert journal.counts.dropped == 65
    journal.flush()
    assert (journal.counts.answers, journal.counts.rows) == (25, 100)
    assert journal.saw(Seen("r", "bo", "later", scripted.NOW)), "what was written has made room"
    journal.close()


def test_what_is_no_item_was_never_seen(home: Home):
    made = SimpleNamespace(journal=Journal(home, POLICY))
    mark = {"user_id": "bo", "item_id": "(nothing)", "event_type": "seen", "request_id": "r"}
    assert "no item" in House._saw(made, mark, scripted.NOW).reasons[0]  # type: ignore[arg-type]
    assert House._saw(made, {**mark, "item_id": "a"}, scripted.NOW).accepted  # type: ignore[arg-type]
    made.journal.policy = made.journal.policy.model_copy(update={"buffer_rows": 1})
    assert "too many" in House._saw(made, {**mark, "item_id": "b"}, scripted.NOW).reasons[0]  # type: ignore[arg-type]
    made.journal.close()
    assert made.journal.counts.rows == 1


def test_taking_an_answer_costs_microseconds(home: Home):
    journal, one = Journal(home, POLICY.model_copy(update={"buffer_rows": 10**6})), answer()
    began = time.thread_time()
    for _ in range(20_000):
        journal(one)
    assert (time.thread_time() - began) / 20_000 < 200e-6  # nothing is written or encoded: 1 us, and room for a busy machine
    journal.close()


def test_segments_are_closed_by_size_and_by_age(home: Home):
    now = [0.0]
    journal = Journal(
        home, POLICY.model_copy(update={"segment_bytes": 1024, "flush_seconds": 0.01, "segment_seconds": 5}), ticks=lambda: now[0]
    )
    for number in range(8):
        journal(answer(number))
        journal.flush()
    closed = journal.counts.segments
    assert closed >= 2
    assert len(list(segments.folder(home).glob(f"*{segments.CLOSED}"))) == closed
    journal(answer(9))
    journal.flush()
    now[0] = 6.0
    journal.start()
    for _ in range(500):
        if journal.counts.segments > closed and not list(segments.folder(home).glob(f"*{segments.OPEN}")):
            break
        time.sleep(0.01)
    assert journal.counts.segments > closed
    journal.close()


def test_a_disk_that_refuses_is_counted_and_later_lines_are_whole(home: Home):
    journal = Journal(home, POLICY)
    journal(answer(1))
    journal.flush()
    size = next(segments.folder(home).glob("*")).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, before[1]))
    try:
        journal(answer(2))
        journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert journal.counts.lost == 3
    journal(answer(3))
    journal.close()
    collecting.collect(home, AS_OF)
    assert {row["request_id"] for row in lake_of(home)} == {"r1", "r3"}


def test_what_a_killed_process_had_flushed_is_landed_and_its_torn_tail_is_no_row(home: Home):
    def written_then_killed() -> None:
        journal = Journal(home, POLICY)
        journal(answer(1))
        journal(answer(2))
        journal.flush()
        os.write(journal._file, b'{"request_id":"r3","user_id":"bo","shown_at":17')
        journal(answer(4))  # in the buffer
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(written_then_killed) == -signal.SIGKILL
    (report,) = collecting.collect(home, AS_OF)
    assert (report["rows"]["read"], report["rows"]["accepted"], report["torn"]) == (6, 6, 1)
    assert {row["request_id"] for row in lake_of(home)} == {"r1", "r2"}


def test_a_segment_that_is_being_written_is_left_alone(home: Home):
    journal = Journal(home, POLICY)
    journal(answer(1))
    journal.flush()
    assert in_child(lambda: os._exit(len(collecting.collect(home, AS_OF)))) == 0
    journal.close()
    assert len(collecting.collect(home, AS_OF)) == 1


@pytest.mark.parametrize("harm", ["removed", "a folder where it is to be closed"])
def test_a_segment_that_cannot_be_closed_does_not_end_the_log(home: Home, harm: str):
    journal = Journal(home, POLICY.model_copy(update={"flush_seconds": 0.01, "segment_seconds": 0.02}))
    journal(answer(1))
    journal.flush()
    segment = next(segments.folder(home).glob(f"*{segments.OPEN}"))
    if harm == "removed":
        segment.unlink()
    else:
        segment.with_suffix(segments.CLOSED).mkdir()
    journal.start()
    time.sleep(0.1)
    journal(answer(2))
    for _ in range(500):
        if journal.counts.segments:
            break
        time.sleep(0.01)
    journal.close()
    assert (journal.counts.rows, journal.counts.segments, journal.counts.lost) == (6, 1, 0)


def test_what_is_written_after_somebody_removed_the_segment_goes_to_the_next(home: Home):
    journal = Journal(home, POLICY)
    journal(answer(1))
    journal.flush()
    next(segments.folder(home).glob("*")).unlink()
    journal(answer(2))
    journal.close()
    collecting.collect(home, AS_OF)
    assert {row["request_id"] for row in lake_of(home)} == {"r2"}


def test_who_tidies_asks_for_the_lock_and_not_for_the_process(home: Home):
    journal = Journal(home, POLICY)
    journal._name = "999999999-of another container"
    journal._begin()
    left = segments.folder(home) / f"{os.getpid()}-of a process that ended-000000{segments.NEW}"
    left.touch()
    assert segments.abandoned(home) == [left]
    journal.close()
