"""Settings of the service: how long a stage may take, what a client may ask, what is kept for how long."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipelines.frozen import Frozen


class DeadlinePolicy(Frozen):
    """Milliseconds of wall clock from the start of a request; a stage that would begin later is skipped, and the rung says so."""

    request_ms: float = Field(default=100.0, gt=0)  # an answer of whatever rung is due by then
    store_ms: float = Field(default=30.0, gt=0)  # longest wait for the online store
    retrieve_by_ms: float = Field(default=50.0, gt=0)  # no source is begun after this; the others' candidates are what there is
    rank_by_ms: float = Field(default=60.0, gt=0)  # the ranker is not begun after this


class LimitPolicy(Frozen):
    """What one client, and all of them together, may cost. Bounds on k, ids and lengths are the API's own (`serving/schemas.py`)."""

    max_body_bytes: int = Field(default=64 << 10, ge=1)
    max_header_bytes: int = Field(default=16 << 10, ge=1024)
    slow_seconds: float = Field(default=5.0, gt=0)  # for headers to arrive, and again for the body; later the connection is closed
    requests_per_second: float = Field(default=200.0, gt=0)  # a client, and as many at once in a burst; a key may have its own
    max_waiting: int = Field(default=64, ge=1)  # requests in a process that wait for their turn; more are told to come back
    max_wait_ms: float = Field(default=40.0, gt=0)  # who would wait longer, by what answers take now, is told to come back
    max_late_ms: float = Field(default=100.0, gt=0)  # a process that reads what came so late tells who asks for a list to come back
    max_requests: int = Field(default=512, ge=1)  # in a process at once, bodies that are still read among them; more are told to come back
    max_connections: int = Field(default=4096, ge=1)  # open to a process; beyond, the one that was idle longest is closed


class LogPolicy(Frozen):
    """What is written of each request."""

    access: bool = True  # a line of JSON a request, to standard output
    users: bool = False  # with the user's id in clear; else users are not in the log
    remembered_bytes: int = Field(default=16 << 20, ge=1 << 16)  # of a process's last answers, for who asks how one came about


class CachePolicy(Frozen):
    """Lists that are remembered."""

    list_seconds: float = Field(default=30.0, ge=0)  # an answer is given again so long, unless an event came; 0 remembers none
    stale_seconds: float = Field(default=3600.0, ge=0)  # where better rungs fail, one of before is given so long, event or not
    entries: int = Field(default=20_000, ge=1)  # of a process
    max_bytes: int = Field(default=128 << 20, ge=1)  # of a process, as they are estimated
    wait_ms: float = Field(default=50.0, ge=0)  # for another thread that is computing the same list
    redis: str = ""  # redis://HOST:PORT/DB that processes share their lists in; empty: each has its own
    redis_ms: int = Field(default=20, ge=1)  # longest wait for it
    # Begins the keys of one shop and environment in a Redis that several use; empty: a word made of the path of the state folder.
    # Machines that share their lists from different paths need the same word.
    prefix: str = Field(default="", pattern="^[A-Za-z0-9_.-]{0,64}$")
    precomputed_days: float = Field(default=3.0, gt=0)  # a precomputed list older than this is none


class RolloutPolicy(Frozen):
    """How the service follows releases, and how a challenger comes to serve (docs/serving/releases.md).

    Bounds are on what a challenger's answers exceed the champion's by, measured in the same minutes; absolute where not said otherwise.
    """

    poll_seconds: float = Field(default=1.0, gt=0, le=60)  # the champion pointer is looked at so often
    retry_seconds: float = Field(default=30.0, gt=0)  # a release that was refused is tried again after so long
    warm_asks: int = Field(default=8, ge=0, le=256)  # requests of before that a release answers before it serves
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.01, 0.1, 0.5), min_length=1
    )  # of users, step by step; then all
    step_seconds: float = Field(default=300.0, ge=0)  # at least, at each share
    step_requests: int = Field(default=500, ge=1)  # at least, that the challenger answered at each share
    most_step_seconds: float = Field(default=21_600.0, gt=0)  # a step that has not enough by then ends the rollout
    look_seconds: float = Field(default=5.0, gt=0, le=30)  # the guard looks so often
    window_seconds: float = Field(default=60.0, ge=5, le=900)  # at so much of late, beside the whole step
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)  # of a rollout of an equal challenger, over all its looks, steps and bounds
    max_failed_increase: float = Field(default=0.01, ge=0, le=1)  # share of answers where the release raised, was late, or gave no list
    max_empty_increase: float = Field(default=0.01, ge=0, le=1)  # share without any item
    max_lower_increase: float = Field(default=0.05, ge=0, le=1)  # share on a lower rung than `full`
    max_same_increase: float = Field(default=0.2, ge=0, le=1)  # share that is the list which another user got just before
    max_latency_increase: float = Field(default=0.25, ge=0)  # relative, of the median, p90 and p99 of the engine's time
    max_latency_ms: float = Field(default=10.0, ge=0)  # and so many milliseconds on top
    max_score_psi: float = Field(default=2.0, ge=0)  # of scores standardised within their list
    max_click_loss: float = Field(default=0.05, ge=0, lt=1)  # relative: share of answers that somebody clicked, below the champion's
    click_answers: int = Field(default=2000, ge=1)  # of both sides at a share, before their clicks are looked at
    last_clicks: int = Field(default=3000, ge=0)  # answers of the challenger that were clicked, which the last share waits for
    click_seconds: float = Field(default=3600.0, ge=0)  # at most so long, and only where anybody clicks; 0: not at all
    watch_seconds: float = Field(default=1800.0, ge=0)  # a champion that was promoted at once is guarded so long against the one before it
    watch_slack: float = Field(default=2.0, ge=1)  # then bounds are so many times as wide: those were other minutes
    shadow_share: float = Field(default=0.05, gt=0, le=1)  # of requests that a shadow answers, too
    shadow_answers: int = Field(default=500, ge=1)  # at least, before a shadow becomes a canary
    shadow_waiting: int = Field(default=64, ge=1)  # requests that wait for the shadow; more are dropped
    shadow_seconds: float = Field(default=10.0, gt=0)  # for one answer; a shadow that takes longer is ended and started again
    shadow_megabytes: int = Field(default=4096, ge=256)  # of address space, beyond what it has when it begins to answer
    shadow_lives: int = Field(default=3, ge=1)  # a shadow that ended so often is given up, and the rollout with it

    @model_validator(mode="after")
    def _rises(self) -> Self:
        """Refuse shares that do not rise: users would be taken back and given again."""
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"rollout.shares are {list(self.shares)}, which do not rise")
        return self


class BreakerPolicy(Frozen):
    """When something in trouble (the online store, Redis, a release) is not asked any more, and when it is tried again."""

    failures: int = Field(default=3, ge=1)  # in a row
    trouble_seconds: float = Field(default=0.5, ge=0)  # or a failure so long after the first of a row, where few requests come
    open_seconds: float = Field(default=1.0, gt=0)  # until one request tries again; doubled after each try that failed
    most_seconds: float = Field(default=5.0, gt=0)


class EventPolicy(Frozen):
    """How events come to count (docs/serving/realtime.md)."""

    consume: bool = True  # one process of the service brings sessions up to date itself; off where `reloop stream` does
    recent_seconds: float = Field(default=600.0, ge=0)  # an event counts in this process at once, and until the store must have it
    recent_users: int = Field(default=10_000, ge=1)  # whose events of a moment ago a process keeps in mind


class BatchPolicy(Frozen):
    """Lists that are made beforehand, for when no better rung answers (docs/serving/batch.md)."""

    k: int = Field(default=50, ge=1, le=1000)  # items a user; more than is asked for, because filters will take some
    active_days: int = Field(default=28, ge=0)  # users with an event in so many days before; 0 is everybody who ever had one
    users_at_once: int = Field(default=4096, ge=1)  # of a block: bounds the memory, changes no list
    kept: int = Field(default=2, ge=1)  # newest batches on disk
    redis_keys_at_once: int = Field(default=1000, ge=1)


class LadderPolicy(Frozen):
    """What the best rungs may take before a lower one answers."""

    reserve_ms: float = Field(default=15.0, ge=0)  # of the deadline, kept for the lower rungs
    threads: int = Field(default=4, ge=1)  # that run the best rung in one process; one that hangs holds up no request for good
    waiting: int = Field(default=16, ge=0)  # requests that wait for such a thread; more are answered from a lower rung at once
    breaker: BreakerPolicy = BreakerPolicy()


class ServingSettings(Frozen):
    """The service."""

    deadline: DeadlinePolicy = DeadlinePolicy()
    limits: LimitPolicy = LimitPolicy()
    history_events: int = Field(default=2000, ge=1)  # newest events of a user that a request knows; only robots have more
    log: LogPolicy = LogPolicy()
    cache: CachePolicy = CachePolicy()
    ladder: LadderPolicy = LadderPolicy()
    events: EventPolicy = EventPolicy()
    batch: BatchPolicy = BatchPolicy()
    rollout: RolloutPolicy = RolloutPolicy()
