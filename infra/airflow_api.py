"""Airflow's REST API and health, as this installation's administrator."""

from __future__ import annotations

import json
import urllib.request
from typing import Any, Final

from reloop_environment import ADMIN, passwords

from pipelines.config import Home

PARTS: Final = {"api-server": "metadatabase", "scheduler": "scheduler", "dag-processor": "dag_processor", "triggerer": "triggerer"}
AIRFLOW: Final = tuple(PARTS)


class Api:
    """Airflow's REST API, as the user whose password lies in the state folder."""

    def __init__(self, url: str, home: Home) -> None:
        self.url = url
        password = json.loads(passwords(home).read_text(encoding="utf-8"))[ADMIN]
        self.token = request("POST", f"{url}/auth/token", {"username": ADMIN, "password": password})["access_token"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer of /api/v2 + `path`."""
        return request(method, f"{self.url}/api/v2{path}", body, {"Authorization": f"Bearer {self.token}"})


def request(method: str, url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Send JSON, return the JSON of the answer.

    Raises:
        urllib.error.HTTPError: the answer is not 2xx.
    """
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})}, method=method)  # noqa: S310 - our own address
    with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310
        text = answer.read()
    return json.loads(text) if text else None


def is_well(url: str, *services: str) -> bool:
    """Return whether Airflow says of these components (of all of them, if none is named) that they are healthy."""
    health = request("GET", f"{url}/api/v2/monitor/health")
    return all(health[PARTS[service]]["status"] == "healthy" for service in services or AIRFLOW)
