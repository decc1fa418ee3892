"""What each release gives each user where nothing changes, and the look whether an answer over HTTP is all of one release."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import served_shop

from pipelines import config
from pipelines.config import Home
from pipelines.registry import choosing
from pipelines.serving import clock, engine
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Ask


class Quiet:
    """Releases that answer in this process, where nothing changes."""

    def __init__(self, home: Home, digests: dict[int, str], users: Sequence[str]) -> None:
        self.digests, self._home, self._turn = digests, home, threading.Lock()
        with served_shop.environment(home):
            knowledge, starting = Knowledge(home, config.load(home).serving), clock.starting(home, "data")
            assert starting is not None
            self._engines = {
                version: engine.bound(knowledge, choosing.loaded(home, version, digest, rehearse=False))
                for version, digest in digests.items()
            }
            self.lists = {(version, user): self.asked(version, user, starting.moment) for version in digests for user in users}

    def asked(self, version: int, user: str, as_of: datetime) -> list[str]:
        """Return what a release gives a user at a moment."""
        with self._turn:
            return [shown.item_id for shown in self._engines[version].answer(Ask("home", "quiet", as_of, 10, user)).items]


class Whole:
    """Looks whether all of an answer is one bundle's: its name, and the very list that this bundle gives this user."""

    def __init__(self, quiet: Quiet) -> None:
        self.quiet = quiet

    def __call__(self, user: str, body: dict[str, Any]) -> str | None:
        version = int((body["model"]["version"]) or 0)
        if body["model"]["bundle"] != self.quiet.digests.get(version):
            return f"version {version} with bundle {body['model']['bundle']}"
        if body["rung"] != "full" or body["degraded"]:
            return f"rung {body['rung']}: {body['degraded']}"
        shown = [item["item_id"] for item in body["items"]]
        if shown == self.quiet.lists[version, user]:
            return None
        # Lists may change as time goes by: what counts is what the release says at the moment of the answer.
        now = self.quiet.asked(version, user, datetime.fromisoformat(body["as_of"]))
        return None if shown == now else f"version {version} gave {user} {shown}, and not {now}"
