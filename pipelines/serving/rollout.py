"""Rollouts go by themselves: shadow, canary step by step, all; or back, within a minute, where the guard finds a bound broken.

One process of a machine does it, whichever holds the lock; the others count. Each look reads what all of them counted (`tally`), asks the
guard, and acts by an entry of the ledger that every process follows. A champion that was promoted at once is watched, too: against what
the one before it was like just before, with wider bounds, and once: what was rolled back to is not rolled back from by a machine. Who takes
the lock over goes on with the watch: the ledger tells since when, and what was counted lies on disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from pipelines.config import Home
from pipelines.registry import ledger, rollback, rollouts
from pipelines.registry.rollouts import Follower, Rollout, Seen
from pipelines.serving import clicks, guard, tally
from pipelines.serving.clicks import Sums
from pipelines.serving.holder import workers
from pipelines.serving.lookout import Lookout
from pipelines.serving.shadow import Shadow
from pipelines.serving.tally import Figures
from pipelines.serving_policies import RolloutPolicy
from pipelines.window import utc

LOG: Final = logging.getLogger(__name__)
BASELINE_SECONDS: Final = 600.0  # before a promotion, over which the champion of before is looked at


@dataclass(frozen=True)
class Move:
    """What is to become of a rollout.

    Attributes:
        to: wait, go on to `share`, promote, or end.
    """

    to: Literal["wait", "step", "promote", "end"]
    share: float
    reasons: tuple[str, ...]
    figures: dict[str, Any]


def moved(
    share: float,
    seconds: float,
    whole: tuple[Figures, Figures],
    late: tuple[Figures, Figures],
    policy: RolloutPolicy,
    *,
    acted: tuple[Sums, Sums],
) -> Move:
    """Return what becomes of a canary after some seconds at a share; pure.

    Args:
        whole, late: challenger and control, since the step began, and of the newest `window_seconds`.
        acted: what their users did since the step began (`clicks`).
    """
    figures = {"clicks": {side: [int(of) for of in sums.sum(axis=0)] for side, sums in zip(("challenger", "control"), acted, strict=True)}}
    level = guard.alpha(policy, seconds, policy.most_step_seconds, len(policy.shares))
    found = guard.judged(*whole, policy, level, late=False)
    fresh = guard.judged(*late, policy, level, late=True)
    fewer = guard.clicked(*acted, policy, guard.CLICKS * policy.false_alarm_rate / len(policy.shares))
    if broken := tuple(dict.fromkeys((*found.broken, *fresh.broken, *([fewer] if fewer else [])))):
        return Move("end", 0.0, broken, (fresh.figures if fresh.broken else found.figures) | figures)
    requests, figures = min(whole[0].requests, whole[1].requests), found.figures | figures
    enough = f"{whole[0].requests} requests at {share:.0%} of users in {seconds:.0f} s, no bound broken"
    if not (requests >= policy.step_requests and seconds >= policy.step_seconds):
        if seconds >= policy.most_step_seconds:
            few = f"{requests} requests in {seconds:.0f} s: not the {policy.step_requests} that it takes to go on"
            return Move("end", 0.0, (few,), figures)
        return Move("wait", share, (), figures)
    if further := [one for one in policy.shares if one > share]:
        return Move("step", further[0], (enough,), figures)
    clicked, others = (int(side[:, 1].sum()) for side in acted)
    if others and clicked < policy.last_clicks and seconds < policy.click_seconds:
        return Move("wait", share, (), figures)
    return Move("promote", 1.0, (f"{enough}, {clicked} answers clicked",), figures)


class Steward:
    """Looks after the rollouts of a state folder, while it holds the lock."""

    def __init__(self, home: Home, policy: RolloutPolicy, shadow: Shadow | None = None) -> None:
        """Look after nothing yet.

        Args:
            shadow: where a challenger answers silently; without it a shadow waits.
        """
        self.home, self.policy, self.shadow = home, policy, shadow
        self._lock: int | None = None
        self._follower: Follower | None = None
        self._seen: Seen | None = None
        self._begun = self._promoted = 0.0
        self._watched: tuple[int, int] | None = None  # version and the one before it
        self.lookout = Lookout("reloop-steward", self.look, policy.look_seconds)

    def start(self) -> None:
        """Look again and again, in a thread."""
        self.lookout.start()

    def stop(self) -> None:
        """End the thread, and let another process have the lock."""
        self.lookout.stop()
        if self.shadow is not None:
            self.shadow.stop()
        if self._follower is not None:
            self._follower.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def look(self) -> None:
        """Look once, and act; nothing where another process does."""
        if not self._elected():
            return
        if self._follower is None:
            self._follower = Follower(self.home)
        seen, now = self._follower.look(), time.perf_counter()
        if self._seen is None:
            clicks.sweep(self.home, seen.rollout)
        self._notice(seen, now)
        if self.shadow is not None and (seen.rollout is None or seen.rollout.kind != ledger.SHADOW):
            self.shadow.stop()
        if seen.rollout is not None:
            self._manage(seen.rollout, now)
        elif self._watched is not None:
            self._watch(*self._watched, now)

    def _elected(self) -> bool:
        if self._lock is None:
            self.home.serving.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.home.serving / "steward.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._lock = descriptor
            tally.sweep(self.home)
        return True

    def _notice(self, seen: Seen, now: float) -> None:
        """Note when a step, or a reign, began."""
        before = self._seen
        if before is not None and seen.rollout is not None and seen.rollout != before.rollout:
            self._begun = now
        if before is None:
            self._begun = now
        if before is None or seen.pointer.fence != before.pointer.fence:
            self._watched, self._promoted = None, now
            last = next((one for one in reversed(ledger.history(self.home)) if one["kind"] in ledger.REIGNS), None)
            mine, other = seen.pointer.version, None if last is None else last.get("champion_before")
            if last is not None and last["kind"] == ledger.PROMOTED and last.get("champion_after") == mine and mine and other:
                self._watched = (mine, other)
                if before is None and last["recorded_at"] is not None:  # the process that saw it has ended
                    self._promoted = now - max((ledger.clock(self.home) - utc(last["recorded_at"])).total_seconds(), 0.0)
        self._seen = seen

    def _manage(self, rollout: Rollout, now: float) -> None:
        seconds = now - self._begun
        if rollout.kind == ledger.SHADOW:
            self._shadowed(rollout, seconds)
            return
        held = workers(self.home)
        if refused := [f"process {pid}: {one['refused'][rollout.digest]}" for pid, one in held.items() if rollout.digest in one["refused"]]:
            self._act(rollout, Move("end", 0.0, tuple(refused), {}))
            return
        if rollout.share <= 0:  # loaded beside the champion everywhere, then one switch
            loaded = sum((one["challenger"] or {}).get("digest") == rollout.digest for one in held.values())
            if held and loaded == len(held):
                self._act(rollout, Move("promote", 1.0, (f"{loaded} processes have it loaded",), {}))
            elif seconds >= self.policy.most_step_seconds:
                self._act(rollout, Move("end", 0.0, (f"{loaded} of {len(held)} processes have it loaded after {seconds:.0f} s",), {}))
            return
        champion = rollout.baseline.version or 0
        whole, late = (
            (tally.between(self.home, rollout.version, since, now), tally.between(self.home, champion, since, now))
            for since in (self._begun + tally.PERIOD_SECONDS, max(self._begun + tally.PERIOD_SECONDS, now - self.policy.window_seconds))
        )
        move = moved(rollout.share, seconds, whole, late, self.policy, acted=clicks.of(self.home, rollout))
        self._act(rollout, move)

    def _act(self, rollout: Rollout, move: Move) -> None:
        reasons, by, figures = list(move.reasons), rollback.MACHINE, move.figures
        if move.to == "step":
            rollouts.step(self.home, rollout, kind=ledger.CANARY, share=move.share, reasons=reasons, author=by, figures=figures)
        elif move.to == "promote":
            rollouts.promote(self.home, rollout, reasons=reasons, author=by, figures=figures)
        elif move.to == "end":
            rollouts.end(self.home, rollout, reasons=reasons, author=by, figures=figures)
        if move.to != "wait":
            LOG.warning("rollout of version %s: %s: %s", rollout.version, move.to, "; ".join(move.reasons))

    def _shadowed(self, rollout: Rollout, seconds: float) -> None:
        """Keep the shadow running; go on to a canary once it has answered enough, or give up with it."""
        if self.shadow is None:
            return
        self.shadow.follow(rollout)
        report = self.shadow.report()
        if wrong := self.shadow.broken():
            self._act(rollout, Move("end", 0.0, (wrong,), report))
        elif report["answers"] >= self.policy.shadow_answers and seconds >= self.policy.step_seconds:
            enough = f"{report['answers']} silent answers in {seconds:.0f} s, {report['failed']} failed"
            self._act(rollout, Move("step", self.policy.shares[0], (enough,), report))
        elif seconds >= self.policy.most_step_seconds:
            few = f"{report['answers']} silent answers in {seconds:.0f} s: not the {self.policy.shadow_answers} that it takes to go on"
            self._act(rollout, Move("end", 0.0, (few,), report))

    def _watch(self, version: int, before: int, now: float) -> None:
        """Guard a champion that serves all: against what the one before it was like."""
        if now - self._promoted > self.policy.watch_seconds:
            self._watched = None
            return
        control = tally.between(self.home, before, self._promoted - BASELINE_SECONDS, self._promoted - tally.PERIOD_SECONDS)
        level = guard.alpha(self.policy, now - self._promoted, self.policy.watch_seconds)
        for since in (self._promoted, max(self._promoted, now - self.policy.window_seconds)):
            mine = tally.between(self.home, version, since, now)
            found = guard.judged(mine, control, self.policy, level, late=False, slack=self.policy.watch_slack)
            if found.broken:
                self._watched = None
                rollback.by_machine(self.home, version, reason="; ".join(found.broken))
                LOG.error("version %s was rolled back from: %s", version, "; ".join(found.broken))
                return
