"""Threads that ask while a block runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, Self


class Crowd(ABC):
    """Runs `run(place)` in so many threads from entering a `with` block until `stop` is set on leaving it."""

    def __init__(self, threads: int) -> None:
        self.stop = threading.Event()
        self._threads = [threading.Thread(target=self.run, args=(place,)) for place in range(threads)]

    @abstractmethod
    def run(self, place: int) -> None:
        """Ask until `stop` is set; `place` counts the threads from 0."""

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()
