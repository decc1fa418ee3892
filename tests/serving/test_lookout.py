"""What looks every so often goes on looking, whatever goes wrong."""

from __future__ import annotations

import logging
import threading

import pytest
from swap_lab import until

from pipelines.serving.lookout import Lookout


def test_an_error_is_logged_once_counted_each_time_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    wrong, looks = [True], [0]

    def look() -> None:
        looks[0] += 1
        if wrong[0]:
            raise OSError("the disk is away")

    out = Lookout("disk", look, 0.001)
    with caplog.at_level(logging.ERROR):
        out.start()
        until(lambda: out.failed >= 5)
        assert out.trouble == "OSError: the disk is away"
        wrong[0] = False
        until(lambda: not out.trouble)
        out.stop()
    assert [record.message for record in caplog.records] == ["disk: it is tried again in 0.001 s"]
    assert caplog.records[0].exc_info
    assert looks[0] > out.failed >= 5


def test_it_ends_after_the_look_under_way_and_not_before() -> None:
    begun, go, ended = threading.Event(), threading.Event(), []

    def look() -> None:
        begun.set()
        go.wait(10)
        ended.append(True)

    out = Lookout("slow", look, 0.0)
    assert not out.running
    out.start()
    assert begun.wait(10)
    assert out.running
    threading.Timer(0.05, go.set).start()
    out.stop()
    assert ended == [True]
    assert not out.running
    assert not [thread for thread in threading.enumerate() if thread.name == "slow"]
