"""A process of the service that listens: uvicorn in a thread, on a free port of loopback, with everything `reloop serve` puts around it."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import uvicorn

from pipelines.config import Home
from pipelines.serving import api_protocol, assembly, server
from pipelines.serving_policies import LimitPolicy


@dataclass(frozen=True)
class Running:
    """Where it listens, and what it is."""

    address: str
    made: assembly.House

    def get(self, path: str) -> tuple[int, Any]:
        """Return the code and the JSON of an answer."""
        with urllib.request.urlopen(self.address + path, timeout=20) as answer:
            return answer.status, json.load(answer)

    def traffic(self) -> None:
        """Ask some lists and send an event, as visitors do."""
        for user in ("u00000001", "u00000002", "u00000001"):
            self.get(f"/v1/users/{user}/recommendations?k=5")
        self.get("/v1/trending")
        event = {"user_id": "u00000001", "item_id": "i00000004", "event_type": "view"}
        body = json.dumps({"events": [event]}).encode()
        urllib.request.urlopen(
            urllib.request.Request(f"{self.address}/v1/events", body, {"content-type": "application/json"}), timeout=20
        ).close()


@contextmanager
def running(
    made: assembly.House, home: Home, limits: LimitPolicy | None = None, *, limits_of_gate: dict[str, Any] | None = None, **gate: Any
) -> Iterator[Running]:
    """Yield a service that listens.

    Args:
        limits: of connections; limits_of_gate: of requests, where they are not the settings'.
    """
    listening = server.bound("127.0.0.1", 0)
    app = assembly.gated(made, home, **gate)
    if limits_of_gate:
        app = replace(app, limits=app.limits.model_copy(update=limits_of_gate))
    options = api_protocol.options(limits or app.limits, 1.0)
    serving = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", made)
    finally:
        serving.should_exit = True
        thread.join(20)
        listening.close()
