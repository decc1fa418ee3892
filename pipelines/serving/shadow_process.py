"""The process in which a challenger answers silently: last in line for the processor, bounded in memory, with nothing to write to.

    python -m pipelines.serving.shadow_process HOME VERSION DIGEST MEGABYTES ENGINE

Reads a request a line from standard input, as JSON, and writes an answer a line. It ends with its input, or once nobody is its parent.
It binds an engine and calls it: no watcher, no journal, no bus, no cache, so nothing it does can be taken for something that was shown.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

from pipelines import config
from pipelines.config import Home
from pipelines.registry import choosing
from pipelines.registry.choosing import Serving
from pipelines.serving import engine
from pipelines.serving.holder import Engine
from pipelines.serving.knowledge import Knowledge
from pipelines.serving.request import Answer, Ask, Filters
from pipelines.streaming.session import SessionEvent

ENGINE: Final = "pipelines.serving.shadow_process:bound"
PATIENT_MS: Final = 60_000.0  # a deadline of its own would be missed for want of a processor, not of speed


def bound(home: Home, serving: Serving) -> Engine:
    """Return the engine of a release, with time to answer in full."""
    settings = config.load(home)
    made = engine.bound(Knowledge(home, settings.serving), serving)
    slow = dict.fromkeys(("request_ms", "retrieve_by_ms", "rank_by_ms"), PATIENT_MS)
    patient = settings.serving.deadline.model_copy(update=slow)
    return replace(made, settings=settings.model_copy(update={"serving": settings.serving.model_copy(update={"deadline": patient})}))


def written(ask: Ask) -> str:
    """Return a request as a line."""
    return json.dumps(asdict(ask) | {"as_of": ask.as_of.isoformat(), "events": [tuple(event) for event in ask.events]})


def read(line: str) -> Ask:
    """Return the request of a line that `written` made."""
    told: dict[str, Any] = json.loads(line)
    filters: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.pop("filters").items()}
    events = tuple(SessionEvent(*event) for event in told.pop("events"))
    told |= {name: tuple(told[name]) for name in ("item_ids", "changes")} | {"as_of": datetime.fromisoformat(told["as_of"])}
    return Ask(**told, filters=Filters(**filters), events=events)


def answered(made: Engine, ask: Ask) -> dict[str, Any]:
    """Return what is told of an answer."""
    begun, worked = time.perf_counter(), time.thread_time()
    try:
        answer: Answer = made.answer(ask)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a challenger that fails is what a shadow is for
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    return {
        "items": [shown.item_id for shown in answer.items],
        "scores": [shown.score for shown in answer.items],
        "rung": answer.rung,
        "degraded": list(answer.degraded),
        "ms": (time.perf_counter() - begun) * 1e3,
        "cpu_ms": (time.thread_time() - worked) * 1e3,
    }


def _yielding() -> None:
    """Run only when nobody else wants the processor; not sooner, for loading must end some time on a busy machine."""
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _bounded(megabytes: int) -> None:
    with Path("/proc/self/statm").open(encoding="ascii") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), now + (megabytes << 20)))


def _orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def main(arguments: list[str], asks: TextIO, answers: TextIO) -> None:
    """Load, say that it is ready, and answer until there is nothing more to read."""
    root, version, digest, megabytes, named = arguments
    os.nice(19)
    threading.Thread(target=_orphaned, args=(os.getppid(),), daemon=True).start()
    module, _, function = named.partition(":")
    bind: Callable[[Home, Serving], Engine] = getattr(importlib.import_module(module), function)
    home = Home(Path(root))
    made = bind(home, choosing.loaded(home, int(version), digest))
    _bounded(int(megabytes))
    _yielding()
    answers.write(json.dumps({"ready": int(version)}) + "\n")
    answers.flush()
    for line in asks:
        answers.write(json.dumps(answered(made, read(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints does not speak for the challenger
    main(sys.argv[1:], sys.stdin, said)
