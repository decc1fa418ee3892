"""HTTP on the wire with an end to patience: uvicorn's own protocol waits for headers for ever, and for as many as are sent.

Its `limit_concurrency` counts connections that are open and ask nothing, so that a thousand idle ones would shut everybody out. Here what
is counted is requests (`api_gate`); of connections, too many close the one that was idle longest, which its client opens again.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipelines.serving.api_errors import Refusal
from pipelines.serving_policies import LimitPolicy


class Impatient(HttpToolsProtocol):
    """One connection that hangs up on headers that come too slowly, or are too long."""

    policy: LimitPolicy

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for headers."""
        super().connection_made(transport)
        self._rested = time.monotonic()  # a turn of the loop may hold many
        if len(self.connections) > self.policy.max_connections:
            self._make_room()
        self._head_bytes = 0
        self._in_head = True
        self._due: asyncio.TimerHandle | None = self.loop.call_later(self.policy.slow_seconds, self._hang_up)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is too much."""
        if self._in_head:
            self._head_bytes += len(data)
            # A body may follow its headers in one piece, so only what cannot be both is too long.
            if self._head_bytes > self.policy.max_header_bytes + self.policy.max_body_bytes:
                self._hang_up()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin to wait for headers, on a connection that stayed open, too."""
        super().on_message_begin()
        self._in_head = True
        self._url_and_headers = 0
        if self._due is None:
            self._due = self.loop.call_later(self.policy.slow_seconds, self._hang_up)

    def on_url(self, url: bytes) -> None:
        """Count what the line brought."""
        super().on_url(url)
        self._counted(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        super().on_header(name, value)
        self._counted(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Wait no longer, and refuse what is too long."""
        self._rest()
        if self._url_and_headers > self.policy.max_header_bytes:
            self.send_431()
            return
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._rest()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Be idle from now on."""
        self._rested = time.monotonic()  # a turn of the loop may hold many
        super().on_response_complete()

    def _make_room(self) -> None:
        """Hang up on whoever was idle longest; on this connection where all of them are at work."""
        idle = [one for one in self.connections if isinstance(one, Impatient) and one is not self and one.idle()]
        (min(idle, key=lambda one: one._rested) if idle else self)._hang_up()

    def idle(self) -> bool:
        """Return whether nothing is asked here now."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def send_431(self) -> None:
        """Refuse a line and headers that are too long, and close."""
        most = f"{self.policy.max_header_bytes} bytes"
        refusal = Refusal(431, "too_long", f"more than {most}", f"at most {most} of URL and headers", "ask with a body", "header")
        answer = refusal.response()
        lines = [f"{name}: {value}" for name, value in answer.headers.items()]
        head = "\r\n".join(["HTTP/1.1 431 Request Header Fields Too Large", *lines, "connection: close", "", ""])
        self.transport.write(head.encode("latin-1") + bytes(answer.body))
        self.transport.close()

    def _counted(self, size: int) -> None:
        self._url_and_headers += size

    def _rest(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _hang_up(self) -> None:
        self._due = None
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def impatient(policy: LimitPolicy) -> type[Impatient]:
    """Return the protocol of a policy; uvicorn makes its objects itself."""
    return type("Impatient", (Impatient,), {"policy": policy})


def options(policy: LimitPolicy, graceful_seconds: float) -> dict[str, Any]:
    """Return how uvicorn is set up."""
    return {
        "http": impatient(policy),
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": int(graceful_seconds),
    }
