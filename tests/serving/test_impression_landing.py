"""What lands of the impression log: once, by the same validation; nothing disappears, killed or not."""

from __future__ import annotations

import json
import os
import signal
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import scripted
from exposure_log import AS_OF, answer, digests, logged
from processes import in_child

from pipelines.config import Home
from pipelines.errors import ValidationBlocked
from pipelines.lake import impressions, segments
from pipelines.serving import collecting

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
        if in_child(lambda nth=nth: killed_at(home, step, nth)) != -signal.SIGKILL:
            break
        kills += 1
    assert kills >= 1
    assert digests(home) == wanted
    assert not segments.closed(home)


def killed_at(home: Home, step: str, nth: int) -> None:
    """Collect, and be killed at the nth call of a step: at odd numbers before it is done, at even ones after."""
    from pipelines import publish
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
