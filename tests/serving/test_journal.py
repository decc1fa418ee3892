"""The impression log: nothing shown is lost but what was never flushed, nothing waits for it, and it lands once, by the same validation."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import scripted

from pipelines.config import Home
from pipelines.decision_policies import ImpressionPolicy
from pipelines.errors import ValidationBlocked
from pipelines.lake import impressions, outcomes, segments
from pipelines.ranking import deeds
from pipelines.serving import collecting
from pipelines.serving.assembly import House
from pipelines.serving.journal import Journal, Seen
from pipelines.serving.request import CACHED, EMPTY, FULL, Answer
from pipelines.window import DAY, Window, floor_day

POLICY = ImpressionPolicy(feature_share=0.25)
AS_OF = floor_day(scripted.NOW) + DAY


def answer(number: int = 0, **said: object) -> Answer:
    """Return an answer of three items, with the values of two features."""
    asked = {name: said.pop(name) for name in ("user_id", "country", "surface", "events", "as_of") if name in said}
    ask = scripted.ask(request_id=f"r{number}", **asked)
    items = tuple(replace(one, score=2.0 / one.rank, propensity=0.5, sources=("als", "popular")) for one in scripted.shown("a", "b", "c"))
    features = {"price": (1.0, float("nan"), 3.0), "clicks": (0.0, 1.0, 2.0)}
    return Answer(ask, items, FULL, scripted.RELEASE, variant="x:control", features=features, **said) if "rung" not in said else Answer(
        ask, items, str(said.pop("rung")), scripted.RELEASE, features=features, **said
    )  # fmt: skip


def logged(home: Home, answers: list[Answer], policy: ImpressionPolicy = POLICY) -> Journal:
    journal = Journal(home, policy)
    for one in answers:
        journal(one)
    journal.close()
    return journal


def lake_of(home: Home) -> list[dict[str, object]]:
    files = sorted((home.lake / "impressions").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def digests(home: Home) -> dict[str, str]:
    """Return the digest of everything that a landing leaves, but for its reports."""
    places = [home.lake, home.quarantine]
    files = [file for place in places for file in sorted(place.rglob("*")) if file.is_file() and not file.name.endswith(".lock")]
    return {str(file.relative_to(home.root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


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


def in_child(work) -> int:
    """Run something in a forked process; return how it ended."""
    if (pid := os.fork()) == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_what_a_killed_process_had_flushed_is_landed_and_its_torn_tail_is_no_row(home: Home):
    def written_then_killed() -> None:
        journal = Journal(home, POLICY)
        journal(answer(1))
        journal(answer(2))
        journal.flush()
        os.write(journal._file, b'{"request_id":"r3","user_id":"bo","shown_at":17')
        journal(answer(4))  # in the buffer
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WTERMSIG(in_child(written_then_killed)) == signal.SIGKILL
    (report,) = collecting.collect(home, AS_OF)
    assert (report["rows"]["read"], report["rows"]["accepted"], report["torn"]) == (6, 6, 1)
    assert {row["request_id"] for row in lake_of(home)} == {"r1", "r2"}


def test_a_segment_that_is_being_written_is_left_alone(home: Home):
    journal = Journal(home, POLICY)
    journal(answer(1))
    journal.flush()
    done: list[int] = []

    def others() -> None:
        os._exit(len(collecting.collect(home, AS_OF)))

    done.append(os.waitstatus_to_exitcode(in_child(others)))
    assert done == [0]
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


BAD = {
    "no json": "{",
    "no answer": '{"request_id": "q9"}',
    "no list": '{"request_id":"q9","user_id":"bo","shown_at":1,"model_version":null,"variant":null,"surface":"home","rung":"full","items":5}',
    "absurd time": '{"request_id":"q9","user_id":"bo","shown_at":1e30,"model_version":null,"variant":null,"surface":"home","rung":"full","items":[["a",1,1,1,[]]]}',
}


def line(**said: object) -> str:
    whole = {
        "request_id": "q9",
        "user_id": "bo",
        "shown_at": 1740830400000000,
        "model_version": None,
        "variant": None,
        "surface": "home",
        "rung": "full",
        "items": [["a", 1, 0.5, 1.0, []]],
    }
    return json.dumps(whole | said)


def test_what_cannot_be_an_impression_goes_to_quarantine_and_nothing_disappears(home: Home):
    logged(home, [answer(number) for number in range(30)])
    wrong = [
        *BAD.values(), line(user_id=""), line(items=[["", 1, 0.5, 1.0, []]]), line(items=[["b", 0, 0.5, 1.0, []]]), line(request_id="q10", shown_at=0),
        line(items=[["c", 1, 0.5, 0.0, []]]), line(items=[["d", 1, 0.5, 1.5, []]]),
    ]  # fmt: skip
    again = line(request_id="r1")  # the same request and item as before, told otherwise
    (segments.folder(home) / f"other{segments.CLOSED}").write_text("\n".join([*wrong, again, ""]), encoding="utf-8")
    (report,) = collecting.collect(home, AS_OF)
    rows = report["rows"]
    assert rows == {"read": 90 + len(wrong) + 1, "accepted": 90, "quarantined": len(wrong), "duplicates": 1}
    refused = pq.read_table(home.quarantine / report["batch_id"] / "impressions.parquet").to_pylist()
    assert len(refused) == len(wrong)
    assert all(row["reasons"] for row in refused), report
    assert {row["raw"] for row in refused if row["raw"]} == set(BAD.values())
    assert report["reasons"][segments.UNREADABLE] == len(BAD)


def test_a_segment_of_garbage_is_blocked_and_stays(home: Home):
    segments.folder(home).mkdir(parents=True)
    (segments.folder(home) / f"x{segments.CLOSED}").write_text("garbage\n" * 100, encoding="utf-8")
    with pytest.raises(ValidationBlocked, match="are in quarantine"):
        collecting.collect(home, AS_OF)
    assert not (home.lake / "impressions").exists()
    assert len(segments.closed(home)) == 1


@pytest.mark.slow
def test_order_repetition_and_batches_leave_no_trace(home: Home, tmp_path: Path):
    answers = [answer(number, as_of=scripted.NOW + timedelta(hours=8 * number)) for number in range(9)]
    logged(home, answers)
    collecting.collect(home, AS_OF)
    other = Home(tmp_path / "other")
    for some in (answers[6:], answers[:4], answers[3:8], answers):
        logged(other, some[::-1])
        collecting.collect(other, AS_OF)
    ours, theirs = ({name: value for name, value in digests(one).items() if "shown_date" in name} for one in (home, other))
    assert len(ours) == 4
    assert ours == theirs


SLOW = ("land", "rename", "unlink", "write_json", "validate", "stage")  # fast ones stand for them
STEPS = ("clear", *(pytest.param(step, marks=pytest.mark.slow) for step in SLOW))


@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_and_run_again_it_ends_the_same(home: Home, tmp_path: Path, step: str):
    """A kill before and after each step, and at each rename, removal and small file on the way."""

    def seeded(one: Home) -> None:
        segments.folder(one).mkdir(parents=True)
        for number in range(3):
            text = "".join(f"{line(request_id=f'r{number}-{at}')}\n" for at in range(5)) + "garbage\n"
            (segments.folder(one) / f"s{number}{segments.CLOSED}").write_text(text, encoding="utf-8")

    calm = Home(tmp_path / "calm")
    seeded(calm)
    collecting.collect(calm, AS_OF)
    wanted = digests(calm)
    assert wanted
    seeded(home)
    kills = 0
    for nth in range(1, 40):
        if not os.WIFSIGNALED(in_child(lambda nth=nth: killed_at(home, step, nth))):
            break
        kills += 1
    assert kills >= 1
    assert digests(home) == wanted
    assert not segments.closed(home)


def killed_at(home: Home, step: str, nth: int) -> None:
    """Collect, and be killed at the nth call of a step: at odd numbers before it is done, at even ones after."""
    from pipelines import publish
    from pipelines.lake import impressions
    from pipelines.sources import impression_log
    from pipelines.validation import impressions as judge

    owner = {
        "stage": impression_log,
        "validate": judge,
        "land": impressions,
        "clear": impression_log,
        "rename": Path,
        "unlink": Path,
        "write_json": publish,
    }[step]
    real, calls = getattr(owner, step), [0]

    def once(*given, **named):
        calls[0] += 1
        if calls[0] == (nth + 1) // 2 and nth % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        found = real(*given, **named)
        if calls[0] == nth // 2 and not nth % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, step, once)
    collecting.collect(home, AS_OF)
