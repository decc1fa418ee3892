"""Trainings to break: every stage from the first fit to the evaluation, killed and run again.

    python training_crash_lab.py ROOT missing|there KILLS

Each stage is killed KILLS times, where its result is missing yet or where it is there already, always
before one of its own file-system calls: the first, the last, and seeded ones between; KILLS of 1 is
the one in the middle. Prints one JSON object. See `crash_lab`.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import feast  # noqa: F401 - imported once here, not in every fork
import lightgbm  # noqa: F401
from crash_lab import STEPS, forked, killed_at, litter
from ranking_world import AS_OF, SOURCES, stock

from pipelines import publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.ranking import judging, training, training_set
from pipelines.retrieval import blend, fitting

STAGES: dict[str, Callable[[Home], None]] = {
    **{f"fit {source}": lambda home, source=source: fitting.fit(home, AS_OF, source) for source in SOURCES},
    "blend": lambda home: blend.blend(home, AS_OF),
    "training_set": lambda home: training_set.build(home, AS_OF),
    "rank": lambda home: training.train(home, AS_OF),
    "evaluate": lambda home: judging.evaluate(home, AS_OF),
}


def published(home: Home) -> dict[str, str]:
    """Return the digest of every folder that a reader of the run can meet, every byte of it checked."""
    run = universe.run_folder(home, AS_OF)
    folders = [file.parent for file in sorted(run.rglob(publish.MANIFEST))]
    return {
        str(folder.relative_to(run)): publish.manifest(folder, verify=True).digest
        for folder in folders
        if not any(part.startswith(".") for part in folder.relative_to(run).parts)
    }


def counted(home: Home, action: Callable[[Home], None], file: Path) -> None:
    """Run an action and leave in a file how many of its file-system calls a kill can come before."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        seen += event in STEPS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(home.root))

    sys.addaudithook(count)
    action(home)
    calls = seen
    file.write_text(str(calls), encoding="utf-8")


def succeed(action: Callable[[], None]) -> None:
    """Run an action in a fork.

    Raises:
        AssertionError: it failed.
    """
    if (ended := forked(action)) != (0, ""):
        raise AssertionError(f"an undisturbed stage failed: {ended}")


def kills(root: Path, state: str, n: int) -> dict[str, Any]:
    """Kill every stage, look at what a reader would find, run the stage again, compare with an undisturbed training."""
    rng, outcomes = random.Random(n), []
    golden = Home(root / "golden")
    succeed(partial(stock, golden))
    for name, stage in STAGES.items():
        template, trial = Home(root / "template"), Home(root / "trial")
        shutil.copytree(golden.root, template.root)
        old = published(golden)
        succeed(partial(counted, golden, stage, root / "calls"))
        new = published(golden)
        if state == "there":
            succeed(partial(stage, template))
            succeed(partial(counted, template, stage, root / "calls"))
            old = {path: digest for path, digest in new.items() if path in old}
        calls = int((root / "calls").read_text(encoding="utf-8"))
        for step in [calls // 2] if n == 1 else sorted({0, calls - 1, *rng.sample(range(1, calls - 1), n - 2)}):
            shutil.copytree(template.root, trial.root)
            ended, _ = forked(killed_at(trial, step, partial(stage, trial)))
            met = published(trial)
            again = forked(partial(stage, trial))
            outcomes.append(
                {
                    "where": f"{name}, result {state}, before call {step + 1} of {calls}",
                    "ended": ended,
                    "lost": sorted(old.keys() - met.keys()),
                    "torn": sorted(path for path, digest in met.items() if digest != new[path]),
                    "again": again,
                    "same": published(trial) == new,
                    "litter": litter(trial),
                }
            )
            shutil.rmtree(trial.root)
        shutil.rmtree(template.root)
    return {"folders": sorted(new), "outcomes": outcomes}


if __name__ == "__main__":
    print(json.dumps(kills(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
