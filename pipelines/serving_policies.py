"""Settings of the service: how long a stage may take, what a client may ask, what is kept for how long."""

from __future__ import annotations

from pydantic import Field

from pipelines.frozen import Frozen


class DeadlinePolicy(Frozen):
    """Milliseconds of wall clock from the start of a request; a stage that would begin later is skipped, and the rung says so."""

    request_ms: float = Field(default=100.0, gt=0)  # an answer of whatever rung is due by then
    store_ms: float = Field(default=30.0, gt=0)  # longest wait for the online store
    rank_by_ms: float = Field(default=60.0, gt=0)  # the ranker is not begun after this


class LimitPolicy(Frozen):
    """What one request, and one client, may cost."""

    max_k: int = Field(default=200, ge=1)
    max_ids: int = Field(default=500, ge=1)  # items or events in one body
    max_id_bytes: int = Field(default=256, ge=1)
    max_body_bytes: int = Field(default=64 << 10, ge=1)
    requests_per_second: float = Field(default=200.0, gt=0)  # a client, and as many at once in a burst
    max_waiting: int = Field(default=64, ge=1)  # requests in a process that wait for their turn; more are told to come back


class CachePolicy(Frozen):
    """Lists that are remembered."""

    list_seconds: float = Field(default=30.0, ge=0)  # an answer is given again so long, unless an event came; 0 remembers none
    entries: int = Field(default=20_000, ge=1)  # of a process
    precomputed_days: float = Field(default=3.0, gt=0)  # a precomputed list older than this is none


class ServingSettings(Frozen):
    """The service."""

    deadline: DeadlinePolicy = DeadlinePolicy()
    limits: LimitPolicy = LimitPolicy()
    cache: CachePolicy = CachePolicy()
