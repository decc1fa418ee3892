"""A challenger answers a sample of the requests silently, in a process of its own, and is compared with what was shown.

The request's thread puts its answer into a bounded queue, or drops it; it never waits. A thread passes it on and waits for the
challenger's answer, so long and no longer. A challenger that hangs, crashes or outgrows its memory ends its process; that is begun again a
few times and then given up. What it answers goes into a report and nowhere else.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pipelines import publish
from pipelines.config import REPOSITORY, Home
from pipelines.evaluation import psi
from pipelines.registry.rollouts import Rollout
from pipelines.serving.assignment import fraction
from pipelines.serving.request import BLEND, FULL, Answer, Shown, Why
from pipelines.serving.shadow_process import ENGINE, written
from pipelines.serving.tally import SCORES, score_bins
from pipelines.serving_policies import RolloutPolicy

LOG: Final = logging.getLogger(__name__)
START_SECONDS: Final = 180.0  # for a process that is last in line to load


class Ended(Exception):
    """The challenger's process is no more, or had to be ended."""


@dataclass
class Compared:
    """What a challenger's silent answers were like beside those that were shown.

    Attributes:
        failed: it raised; ended: its process had to be begun again; dropped: requests that found the queue full.
        rungs: (shown, silent) -> answers.
        cpu_ms: of each silent answer; ms: by the clock, of one who is last in line.
    """

    answers: int = 0
    failed: int = 0
    ended: int = 0
    dropped: int = 0
    overlap: float = 0.0
    same: int = 0
    rungs: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Any = field(default_factory=lambda: np.zeros((2, SCORES), np.int64))
    cpu_ms: list[float] = field(default_factory=list)
    shown_ms: list[float] = field(default_factory=list)
    why: str = ""

    def add(self, shown: Answer, told: dict[str, Any]) -> None:
        """Count one pair."""
        self.answers += 1
        if "error" in told:
            self.failed += 1
            self.why = told["error"]
            return
        mine, its = [one.item_id for one in shown.items], told["items"]
        self.overlap += len(set(mine) & set(its)) / max(len(mine), len(its), 1)
        self.same += mine == its
        self.rungs[shown.rung, told["rung"]] += 1
        silent = tuple(Shown(item, at, score, Why("", "")) for at, (item, score) in enumerate(zip(its, told["scores"], strict=True), 1))
        for side, items in enumerate((shown.items, silent)):
            for at in score_bins(items):
                self.scores[side][at] += 1
        self.cpu_ms = [*self.cpu_ms[-1999:], told["cpu_ms"]]
        self.shown_ms = [*self.shown_ms[-1999:], shown.stage_ms.get(FULL, 0.0)]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        good = self.answers - self.failed
        distance = psi.psi(self.scores[0], self.scores[1])
        return {
            "answers": self.answers,
            "failed": self.failed,
            "ended": self.ended,
            "dropped": self.dropped,
            "overlap_at_k": round(self.overlap / good, 4) if good else None,
            "same_lists": round(self.same / good, 4) if good else None,
            "score_psi": round(distance, 4) if np.isfinite(distance) else None,
            "rungs": {f"{shown} -> {silent}": n for (shown, silent), n in sorted(self.rungs.items())},
            "cpu_ms": {f"p{q}": round(float(np.percentile(self.cpu_ms, q)), 2) for q in (50, 99)} if self.cpu_ms else None,
            "shown_ms": {f"p{q}": round(float(np.percentile(self.shown_ms, q)), 2) for q in (50, 99)} if self.shown_ms else None,
            "last_error": self.why,
        }


class Shadow:
    """The silent challenger of one process."""

    def __init__(self, home: Home, policy: RolloutPolicy, engine: str = ENGINE) -> None:
        """Compare nothing yet.

        Args:
            engine: `module:function` that binds a loaded release in the challenger's process.
        """
        self.home, self.policy, self.engine = home, policy, engine
        self.compared = Compared()
        self.rollout: Rollout | None = None
        self._queue: queue.Queue[Answer] = queue.Queue(policy.shadow_waiting)
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def __call__(self, answer: Answer) -> None:
        """Take an answer that was shown, if it is one of the sample and there is room; a watcher of the service."""
        if self.rollout is None or answer.remembered or answer.rung not in {FULL, BLEND}:
            return
        if fraction("shadow", answer.ask.request_id) >= self.policy.shadow_share:
            return
        try:
            self._queue.put_nowait(answer)
        except queue.Full:
            self.compared.dropped += 1

    def follow(self, rollout: Rollout) -> None:
        """Compare the challenger of a rollout; nothing where it does so already."""
        if self.rollout is not None and self.rollout.key == rollout.key:
            return
        self.stop()
        self.rollout, self.compared, self._over = rollout, Compared(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(rollout, self._over, self.compared), name="reloop-shadow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the challenger's process and forget what waits for it."""
        self.rollout = None
        self._over.set()
        self._end()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None
        while not self._queue.empty():
            self._queue.get_nowait()

    def broken(self) -> str | None:
        """Return why a challenger was given up, None where it was not."""
        if self.compared.ended < self.policy.shadow_lives:
            return None
        return f"its silent process ended {self.compared.ended} times, the last time: {self.compared.why}"

    def report(self) -> dict[str, Any]:
        """Return what was compared so far, and publish it for people."""
        found = self.compared.to_json()
        if self.rollout is not None:
            publish.write_json(self.home.reports / "serving" / "shadow" / f"{self.rollout.version}.json", found)
        return found

    def _run(self, rollout: Rollout, over: threading.Event, compared: Compared) -> None:
        while not over.is_set() and compared.ended < self.policy.shadow_lives:
            try:
                if self._process is None:
                    self._begin(rollout, over)
                shown = self._queue.get(timeout=0.2)
                self._send(written(shown.ask))
                compared.add(shown, self._told(self.policy.shadow_seconds, over))
            except queue.Empty:
                continue
            except (Ended, OSError, ValueError) as error:
                self._end()
                if not over.is_set():
                    compared.ended += 1
                    compared.why = f"{error}"[:300]
                    LOG.warning("the silent process of version %s: %s", rollout.version, error)

    def _begin(self, rollout: Rollout, over: threading.Event) -> None:
        arguments = [str(self.home.root), str(rollout.version), rollout.digest, str(self.policy.shadow_megabytes), self.engine]
        command = [sys.executable, "-m", "pipelines.serving.shadow_process", *arguments]
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY, env=quiet, bufsize=0
        )
        self._told(START_SECONDS, over)

    def _send(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            raise Ended("it was ended")
        self._process.stdin.write(line.encode() + b"\n")

    def _told(self, seconds: float, over: threading.Event) -> dict[str, Any]:
        """Return the next line that the process says.

        Raises:
            Ended: it ended, or says nothing in time.
        """
        process, content, begun = self._process, b"", time.perf_counter()
        if process is None or process.stdout is None:
            raise Ended("it was ended")
        ready = select.poll()  # unlike select(), for descriptors of any number: a service that maps many arrays has many
        ready.register(process.stdout, select.POLLIN | select.POLLHUP)
        while not content.endswith(b"\n"):
            if over.is_set():
                raise Ended("the rollout is over")
            if time.perf_counter() - begun > seconds:
                raise Ended(f"no answer within {seconds:g} s")
            if ready.poll(100):
                more = process.stdout.read(1 << 16)
                if not more:
                    raise Ended(f"it ended with {process.wait(10)}")
                content += more
        return dict(json.loads(content))

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(30)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
