"""A thread of the service that looks every so often: at releases, snapshots, experiments, rollouts, itself.

One way of going wrong for all of them: what a look raises is logged once with its trace, and again only when something else goes
wrong; it is counted (`reloop_looks_failed_total`), and the next look comes. No error ends the thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

LOG: Final = logging.getLogger(__name__)
JOIN_SECONDS: Final = 60.0


class Lookout:
    """A daemon thread, begun by `start`.

    Args:
        name: of the thread, in logs and metrics.
        look: called again and again by this one thread.
        seconds: between two looks.

    Attributes:
        failed: looks that raised.
        trouble: what the last look raised; empty where it did not.
        stopping: set once it is to end, for a look that takes long.
    """

    def __init__(self, name: str, look: Callable[[], object], seconds: float) -> None:
        self.name, self.failed, self.trouble, self.stopping = name, 0, "", threading.Event()
        self._look, self._seconds = look, seconds
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None and not self.stopping.is_set()

    def start(self) -> None:
        """Look from now on, for the first time after a pause."""
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, after the look under way."""
        self.stopping.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self.stopping.wait(self._seconds):
            try:
                self._look()
                self.trouble = ""
            except Exception as error:
                self.failed += 1
                if (said := f"{type(error).__name__}: {error}") != self.trouble:
                    LOG.exception("%s: it is tried again in %g s", self.name, self._seconds)
                self.trouble = said
