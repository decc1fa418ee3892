"""`reloop run`: the whole loop, cycle after cycle, through the Dags that Airflow's scheduler also runs.

The library never imports Airflow: the Dags run headless in a process of their own
(`dags/headless.py`), which this one starts, watches, and reads the records of.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipelines import cycle, publish, summary
from pipelines.config import REPOSITORY, Home, Settings
from pipelines.errors import ReloopError, StateError
from pipelines.sources.request import Request
from pipelines.summary import Figures
from pipelines.window import Window

MAX_CYCLES = 60  # a source of twenty years would else be trained on a thousand times, mostly on nobody
STAGES_ONCE = 14  # stages of a cycle beside the batches and the retrievers: what the bar counts to


class RunFailed(ReloopError):
    """A Dag of the run failed."""


@dataclass(frozen=True)
class Plan:
    """The cycles of a run.

    Attributes:
        request: what is read.
        windows: one a cycle; the first also holds the history that the first training needs.
        batch_days: days that one batch is validated and landed in.
    """

    request: Request
    windows: Sequence[Window]
    batch_days: int

    def configurations(self) -> list[dict[str, Any]]:
        """Return the form of the ingest Dag, filled in, for each cycle."""
        world = self.request.world
        asked = {
            "source": str(self.request.source),
            "path": str(self.request.path) if self.request.path else None,
            "mapping": str(self.request.mapping) if self.request.mapping else None,
            "batch_days": self.batch_days,
            "seed": world.seed,
            "users": world.users,
            "items": world.items,
            "events_per_day": world.events_per_day,
            "faults": list(world.faults),
            "shifts": list(world.shifts),
        }
        return [{**asked, "from": w.start.isoformat(), "to": w.end.isoformat(), "as_of": w.end.isoformat()} for w in self.windows]


def plan(request: Request, span: Window, settings: Settings, *, step_days: int, warmup_days: int | None, batch_days: int) -> Plan:
    """Cut a span into the cycles of a run: a warm-up that the first training needs, then a cycle every `step_days`.

    Without `warmup_days` the warm-up is what training needs, and all but the last `MAX_CYCLES`
    steps where the span is longer than those.

    Raises:
        ReloopError: the span is shorter than the warm-up.
    """
    training = settings.training
    needed = training.min_history_days + (training.ranker_windows + 1) * training.horizon_days + training.label_gap_days
    long = (span.end - span.start).days - MAX_CYCLES * step_days
    warmup = timedelta(days=max(needed, long) if warmup_days is None else warmup_days)
    first = span.start + warmup
    if first > span.end:
        raise ReloopError(
            "--from/--to",
            found=f"{len(span.days())} days, {span}",
            allowed=f"at least the {warmup.days} days that the first training needs",
            hint="widen the range, or pass --warmup-days to train on less",
        )
    windows = [Window(span.start, first)]
    windows += list(Window(first, span.end).split(step_days)) if first < span.end else []
    return Plan(request, windows, batch_days)


def _environment(home: Home, progress: Path) -> dict[str, str]:
    return {**os.environ, "RELOOP_HOME": str(home.root), "RELOOP_PROGRESS": str(progress), "RELOOP_RETRIES": "0"}


def _lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """Return the whole JSON lines of a growing file from `position` on, and where the next read begins."""
    with path.open("rb") as file:
        file.seek(position)
        chunk = file.read()
    end = chunk.rfind(b"\n") + 1
    return [json.loads(line) for line in chunk[:end].splitlines()], position + end


def _follow(process: subprocess.Popen[bytes], progress: Path, dag_runs: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("stage", line) and ("dag", line) as they are written, until the process has ended and all is read."""
    positions = {progress: 0, dag_runs: 0}
    while True:
        ended = process.poll() is not None
        for path, kind in ((progress, "stage"), (dag_runs, "dag")):
            lines, positions[path] = _lines(path, positions[path])
            for line in lines:
                yield kind, line
        if ended:
            return
        time.sleep(0.2)


def execute(home: Home, run_plan: Plan, settings: Settings, console: Console) -> list[Figures]:
    """Run every cycle of the plan and return their figures; those of finished cycles are kept when one fails.

    Raises:
        RunFailed: a Dag failed; the message names it, its task, its error and the log.
    """
    headless = REPOSITORY / "dags" / "headless.py"
    if not headless.is_file():
        raise StateError("dags/headless.py", found="missing", allowed="a checkout of the repository", hint="run from a clone: `make run`")
    scratch = home.root / "run"
    scratch.mkdir(parents=True, exist_ok=True)
    plan_file, progress, dag_runs, log = (scratch / name for name in ("plan.json", "progress.jsonl", "dags.jsonl", "headless.log"))
    publish.write_json(plan_file, run_plan.configurations())
    for file in (progress, dag_runs):
        file.write_bytes(b"")
    stages = sum(2 * len(list(w.split(run_plan.batch_days))) + STAGES_ONCE + len(settings.retrieval.sources) for w in run_plan.windows)
    failure: dict[str, Any] | None = None
    with (
        log.open("wb") as log_file,
        dag_runs.open("ab") as dag_file,
        subprocess.Popen(
            [sys.executable, str(headless), "--plan", str(plan_file)],
            stdout=dag_file,
            stderr=log_file,
            env=_environment(home, progress),
            cwd=REPOSITORY,
            start_new_session=True,
        ) as process,
        _bar(console) as bar,
    ):
        task = bar.add_task("starting Airflow", total=stages)
        try:
            for kind, line in _follow(process, progress, dag_runs):
                if kind == "stage":
                    _advance(bar, task, console, line)
                elif line["state"] != "success":
                    failure = line
        except BaseException:
            # Airflow answers SIGTERM by failing the task at hand and going on with the plan, so it is
            # not asked. Nothing is lost: every stage survives a kill, and a rerun continues.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        bar.update(task, completed=stages, description="done" if process.returncode == 0 else "failed")
    _record_walls(home, dag_runs)
    finished = [w.end for w in run_plan.windows if cycle.records(home, w.end, "ingest") and cycle.records(home, w.end, "walk")]
    results = [summary.figures(home, as_of) for as_of in finished]
    summary.write(home, results)
    if process.returncode != 0 or failure:
        raise _failed(failure, log)
    return results


def _bar(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("stages"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _advance(bar: Progress, task: Any, console: Console, line: dict[str, Any]) -> None:
    """Move the bar; where the output is no terminal, print a line a stage instead."""
    label = f"{line['as_of'][:10]} {line['stage']}"
    if line["state"] == "running":
        bar.update(task, description=label)
        return
    bar.advance(task)
    if not console.is_terminal:
        console.print(f"{label} {line['state']} {line['seconds']:.1f} s", highlight=False)


def _record_walls(home: Home, dag_runs: Path) -> None:
    """Record beside the stages what each Dag of a cycle took, so that the total is the wall's, not the stages'."""
    lines, _ = _lines(dag_runs, 0)
    walks: dict[str, dict[str, float]] = {}
    for line in lines:
        if "as_of" in line:
            dags = walks.setdefault(line["as_of"], {})
            dags[line["dag_id"]] = dags.get(line["dag_id"], 0.0) + line["seconds"]
    for as_of, dags in walks.items():
        record = {"stage": "walk", "key": None, "state": "done", "dags": dags, "wall_seconds": round(sum(dags.values()), 3), "seconds": 0.0}
        publish.write_json(cycle.folder(home, datetime.fromisoformat(as_of)) / "walk.json", record)


def _failed(failure: dict[str, Any] | None, log: Path) -> RunFailed:
    if failure is None:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return RunFailed("reloop run", found="Airflow did not finish: " + " | ".join(tail), hint=f"read {log}")
    return RunFailed(
        f"Dag {failure['dag_id']}",
        found=f"task {failure.get('failed_task', '?')} failed: {failure.get('error', 'no message')}",
        hint=f"a rerun is safe and continues where this one stopped; log: {log}",
    )
