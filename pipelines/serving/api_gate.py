"""What every request passes before it is understood: its name, its host, its key, its rate, its size; and what is written of it.

Plain ASGI around the application. The order is by price: nothing is read of a body whose sender may not
send it, and a body is read whole, within its bound and its time, before anything is made of it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from pipelines.serving.api_errors import Refusal, busy, overloaded
from pipelines.serving.auth import Key, Keyring
from pipelines.serving.limits import Buckets, Lateness, Places, Turnstile
from pipelines.serving.logs import ACCESS, REQUEST
from pipelines.serving.metrics import Metrics
from pipelines.serving.request import Answer
from pipelines.serving.traces import Traces
from pipelines.serving_policies import LimitPolicy, LogPolicy

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TOKEN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
PREFERENCES: Final = re.compile(r"/v1/users/.*/preferences")
LISTS: Final = re.compile(  # ids may hold slashes
    r"/v1/(users/.*/(recommendations|because-you-viewed)|items/.*/(similar|bought-together|like)|trending|(baskets|sessions)/recommendations)"
)
OPEN: Final = frozenset({"/", "/healthz", "/readyz", "/openapi.json", "/shop.css", "/shop.js", "/favicon.ico"})
ALWAYS: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # answered whatever the rate
SECURE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


def needs(method: str, path: str) -> str | None:
    """Return the scope that a request needs, None where everybody may ask; what is not known, or not written plainly, needs `admin`."""
    if path in OPEN:
        return None
    if CONTROL.search(path):
        return "admin"
    if path == "/metrics":
        return "metrics"
    if path.startswith("/v1/requests/"):
        return "explain"
    if path == "/v1/events" or (method == "POST" and PREFERENCES.fullmatch(path)):
        return "events"
    return "recommend" if LISTS.fullmatch(path) else "admin"


@dataclass(frozen=True)
class Gate:
    """An application behind its gate.

    Attributes:
        turnstile: of the lists; who would not get through it is not let in at all.
        hosts: names that may stand in `Host`; empty allows any. On loopback it keeps other sites' pages out (DNS rebinding).
        traces: None where none are wanted.
        keyring: None where everybody may ask everything.
    """

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    limits: LimitPolicy
    log: LogPolicy
    metrics: Metrics
    buckets: Buckets
    turnstile: Turnstile
    keyring: Keyring | None = None
    hosts: frozenset[str] = frozenset()
    traces: Traces | None = None
    ticks: Callable[[], float] = field(default=time.monotonic)
    places: Places = field(init=False)
    lateness: Lateness = field(default_factory=Lateness)

    def __post_init__(self) -> None:
        """Count from nothing."""
        object.__setattr__(self, "places", Places(self.limits.max_requests))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        # Ours, always: who could choose it could choose arm and draws by it, and hide an answer behind another of the same name.
        request_id, theirs = secrets.token_hex(16), asked if TOKEN.fullmatch(asked) else ""
        token = REQUEST.set(request_id)
        state = scope.setdefault("state", {})
        state["request_id"], state["client_request_id"], state["begun"] = request_id, theirs, begun
        code = 500

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                own = list(message["headers"])
                if not any(name == b"content-security-policy" for name, _ in own):
                    own.append(POLICY)
                message["headers"] = [*own, *SECURE, (b"x-request-id", request_id.encode())]
                if theirs:
                    message["headers"].append((b"x-client-request-id", theirs.encode()))
            await send(message)

        self.metrics.inflight.inc()
        placed = scope["path"] in ALWAYS or self.places.enter()
        try:
            refusal = self._refusal(scope, headers) if placed else overloaded(1.0)
            body = await self._body(headers, receive) if refusal is None else refusal
            if isinstance(body, Refusal):
                await self._refuse(body, scope, receive, sending)
            else:
                await self.app(scope, _once(body, receive), sending)
        finally:
            self.metrics.inflight.dec()
            if placed and scope["path"] not in ALWAYS:
                self.places.leave()
            self._written(scope, state, code, begun)
            REQUEST.reset(token)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.refused.labels(refusal.error).inc()
        if refusal.code in {429, 503}:
            self.metrics.shed.labels(refusal.error).inc()
        response: Response = refusal.response()
        if refusal.code in {408, 413}:
            response.headers["connection"] = "close"
        await response(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        host = headers.get("host", "").rsplit(":", 1)[0] if not headers.get("host", "").endswith("]") else headers["host"]
        if self.hosts and host.lower() not in self.hosts:
            return Refusal(400, "host", host[:80], "a name this service answers to", "`reloop serve --allowed-host NAME`", "header.host")
        if CONTROL.search(
            scope["path"]
        ):  # routes end in `$`, which also stands before a last line end: what is read here might be another there
            return Refusal(422, "invalid", ascii(scope["path"])[1:81], "a path without control characters", "leave them out", "path")
        client = (scope.get("client") or ("unknown", 0))[0]
        key, refusal = self._key(scope, headers)
        scope["state"]["key"] = key.key_id if key is not None else ""
        if scope["path"] not in ALWAYS:
            rate = key.requests_per_second if key is not None and key.requests_per_second else self.limits.requests_per_second
            wait = self.buckets.take(f"key {key.key_id}" if key is not None else f"at {client}", rate, self.ticks())
            if wait > 0:
                return busy(wait, "rate", f"more than {rate:g} requests a second")
        # Told before anything is read or parsed: what cannot be answered should cost next to nothing.
        if refusal is None and needs(scope["method"], scope["path"]) == "recommend":
            if (wait_for := self.turnstile.wait()) is not None:
                return overloaded(wait_for)
            if (late := self.lateness.seconds()) * 1e3 > self.limits.max_late_ms:
                return overloaded(late)
        return refusal

    def _key(self, scope: Scope, headers: Headers) -> tuple[Key | None, Refusal | None]:
        """Return whose key it is, and the refusal where it is nobody's or does not cover what is asked."""
        needed = needs(scope["method"], scope["path"])
        if self.keyring is None or needed is None:
            return None, None
        text = headers.get("x-api-key", "") or headers.get("authorization", "").removeprefix("Bearer ")
        key = self.keyring.whose(text, self.ticks()) if text else None
        if key is None:
            found = "a key that is not valid" if text else "no key"
            challenge = (("WWW-Authenticate", 'Bearer realm="reloop"'),)
            return None, Refusal(401, "no_key", found, "a key in X-API-Key", "`reloop key create`", "header.x-api-key", challenge)
        if not key.may(needed):
            scopes = ", ".join(key.scopes)
            return key, Refusal(403, "scope", f"a key for {scopes}", f"the scope {needed}", "`reloop key create`", "header.x-api-key")
        return key, None

    async def _body(self, headers: Headers, receive: Receive) -> bytes | Refusal:
        """Return the body, or why it is not read; one that says it is too long is not begun."""
        most = self.limits.max_body_bytes
        long = Refusal(413, "too_long", f"more than {most} bytes", f"at most {most} bytes", "send several requests", "body")
        length = headers.get("content-length", "")
        if length.isdigit() and (len(length) > 12 or int(length) > most):
            return long
        if not length and "transfer-encoding" not in headers:
            return b""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.slow_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return Refusal(400, "gone", "the client went away", "a whole body", "send it again", "body")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        return long
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return Refusal(
                408, "slow", f"{size} bytes in {self.limits.slow_seconds:g} s", "a whole body in that time", "send it again", "body"
            )

    def _written(self, scope: Scope, state: dict[str, Any], code: int, begun: float) -> None:
        """Count and log a request that is over."""
        seconds = time.perf_counter() - begun
        route = getattr(scope.get("route"), "path_format", "none")
        answer: Answer | None = state.get("answer")
        rung, variant = (answer.rung, answer.assigned) if answer is not None else ("none", "")
        self.metrics.requests.labels(route, code, rung, self.metrics.arm(variant)).inc()
        self.metrics.http_seconds.labels(route).observe(seconds)
        if self.traces is not None and scope["path"] not in ALWAYS:
            about = {"method": scope["method"], "route": route, "code": code, **_named(state)}
            self.traces.told(Headers(scope=scope), about, seconds, answer)
        if not self.log.access or (scope["path"] in ALWAYS and code < 400):
            return
        said: dict[str, Any] = {
            "method": scope["method"],
            "route": route,
            "code": code,
            "ms": round(seconds * 1e3, 2),
            "key": state.get("key", ""),
            **_named(state),
        }
        if answer is not None:
            said |= {
                "rung": answer.rung,
                "variant": answer.variant,
                "version": answer.release.version,
                "items": len(answer.items),
                "degraded": list(answer.degraded),
                "stage_ms": {stage: round(value, 2) for stage, value in answer.stage_ms.items()},
            }
            if self.log.users:
                said["user_id"] = answer.ask.user_id
        ACCESS.info("", extra={"said": said})


def _named(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a request: ours, and the client's where it gave one."""
    theirs = {"client_request_id": state["client_request_id"]} if state["client_request_id"] else {}
    return {"request_id": state["request_id"], **theirs}


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, then whatever follows."""
    given = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
