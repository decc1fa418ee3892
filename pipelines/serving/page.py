"""The shop window: one page, its style and its script, served from memory under a policy that lets nothing else in."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

FOLDER: Final = Path(__file__).parent / "window"
FILES: Final = {"/": ("index.html", "text/html"), "/shop.css": ("shop.css", "text/css"), "/shop.js": ("shop.js", "text/javascript")}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _held(name: str) -> tuple[bytes, str]:
    """Return a file and its digest."""
    content = (FOLDER / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def routes() -> APIRouter:
    """Return the routes of the page; they are no part of the API."""
    router = APIRouter(include_in_schema=False)

    async def served(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        content, tag = _held(name)
        headers = {"Content-Security-Policy": POLICY, "ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    for path in FILES:
        router.add_api_route(path, served)
    return router
