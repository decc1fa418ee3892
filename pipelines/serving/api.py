"""HTTP, and nothing else: from a URL to an `Ask`, from an `Answer` to JSON."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from fastapi import FastAPI

from pipelines.serving.request import Answer, Ask, Clock
from pipelines.serving.service import Service


def app(service: Service, clock: Clock) -> FastAPI:
    """Return the web application of a service."""
    api = FastAPI(title="Reloop", version="1")

    @api.get("/v1/users/{user_id}/recommendations")
    def recommendations(user_id: str, k: int = 10) -> dict[str, Any]:
        return told(service.answer(Ask("home", uuid.uuid4().hex, clock(), k, user_id)))

    return api


def told(answer: Answer) -> dict[str, Any]:
    """Return an answer as clients read it."""
    return {
        "request_id": answer.ask.request_id,
        "rung": answer.rung,
        "degraded": list(answer.degraded),
        "model_version": answer.release.version,
        "variant": answer.variant,
        "items": [dataclasses.asdict(item) for item in answer.items],
    }
