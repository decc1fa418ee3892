"""Events of a moment ago, by user: what this process was told and the online store may not know yet. Bounded in users, events and time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from pipelines.serving_policies import EventPolicy
from pipelines.streaming.session import SessionEvent, newest


class Recent:
    """The overlay of a process; any number of threads.

    An event counts from the moment it was accepted. The consumer brings it to the store within a second; who then merges both
    meets one event twice, by the same id.
    """

    def __init__(self, policy: EventPolicy) -> None:
        self.policy = policy
        self._turn = threading.Lock()
        self._of: OrderedDict[str, tuple[int, tuple[SessionEvent, ...]]] = OrderedDict()

    def add(self, events: Mapping[str, Sequence[SessionEvent]], now_us: int) -> None:
        """Keep events of some users, accepted at a moment."""
        with self._turn:
            for user, fresh in events.items():
                _, before = self._of.pop(user, (0, ()))
                self._of[user] = (now_us, tuple(newest((*fresh, *before))))
            while len(self._of) > self.policy.recent_users:
                self._of.popitem(last=False)

    def of(self, user_id: str, now_us: int) -> tuple[SessionEvent, ...]:
        """Return a user's events of a moment ago that had happened by a moment, newest first."""
        held = self._of.get(user_id)
        if held is None or not 0 <= now_us - held[0] <= self.policy.recent_seconds * 1e6:
            return ()
        return held[1] if held[1][0].event_us < now_us else tuple(event for event in held[1] if event.event_us < now_us)
