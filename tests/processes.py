"""Processes to race and to kill, from a fork server that has imported the library and runs no thread.

A fork of the test process would inherit whatever locks its threads hold at that moment (those of a service
that an earlier test asked, of SQLite, of native libraries), and the child would wait for them for ever.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any, Final

import cloudpickle

SERVER: Final = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["mlflow", "pipelines.registry.runs", "pipelines.registry.retention", "pipelines.serving.collecting"])
PATIENCE: Final = 120.0


def process(target: Callable[..., Any], *arguments: Any, **named: Any) -> BaseProcess:
    """Return a process, not started yet, that calls a function of a module in the environment of now."""
    return SERVER.Process(target=_called, args=(dict(os.environ), target, arguments, named))


def _called(environment: dict[str, str], target: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments, **named)


def ended(processes: list[BaseProcess], patience: float = PATIENCE) -> list[int]:
    """Start processes together and wait for all; return how each ended: 0, its status, or minus the signal.

    Raises:
        AssertionError: when one has not ended in that many seconds; it is killed.
    """
    for one in processes:
        one.start()
    for one in processes:
        one.join(patience)
    hanging = [one for one in processes if one.is_alive()]
    for one in hanging:
        one.kill()
    assert not hanging, f"{len(hanging)} of {len(processes)} processes did not end in {patience:g} s"
    return [one.exitcode or 0 for one in processes]


def in_child(action: Callable[[], Any]) -> int:
    """Do something, closures too, in a process of its own; return how it ended.

    What a test has patched in its own process is not patched there: let the action do it.
    """
    return ended([process(_undone, cloudpickle.dumps(action))])[0]


def _undone(pickled: bytes) -> None:
    cloudpickle.loads(pickled)()
