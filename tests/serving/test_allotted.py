"""What processes share in mapped files lies on the disk before anything is written there: a full disk is an error at the start, never SIGBUS."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.serving import remembered
from pipelines.serving.clicks import Clicks
from pipelines.serving.limits import Buckets
from pipelines.serving.news import News
from pipelines.serving.remembered import Ring
from pipelines.serving.tally import Tally

SHARED: dict[str, Callable[[Home], object]] = {
    "tally": Tally,
    "clicks": lambda home: Clicks(home, lambda: None),
    "news": News,
    "rates": lambda home: Buckets(_rates(home)),
}


def _rates(home: Home) -> Path:
    home.serving.mkdir(parents=True, exist_ok=True)
    return home.serving / "rates"


@contextmanager
def small_disk() -> Iterator[None]:
    """Let no file grow beyond a page."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("make", [*SHARED.values(), lambda home: Ring(home, 1 << 20)], ids=[*SHARED, "ring"])
def test_a_mapped_file_is_no_hole(home: Home, make: Callable[[Home], object]) -> None:
    made = make(home)
    files = [path.stat() for path in home.serving.rglob("*") if path.is_file()]
    assert files
    assert all(file.st_blocks * 512 >= file.st_size > 4096 for file in files)
    del made


@pytest.mark.parametrize("make", SHARED.values(), ids=list(SHARED))
def test_without_room_it_is_not_begun(home: Home, make: Callable[[Home], object]) -> None:
    with small_disk(), pytest.raises(StateError, match="bytes of disk"):
        make(home)


def test_without_room_answers_go_on_and_cannot_be_explained(home: Home) -> None:
    with small_disk():
        ring = Ring(home, 1 << 20)
    ring.keep(b'{"request_id":"a"}')
    assert remembered.find(home, "a") is None
    ring.close()
