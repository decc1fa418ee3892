"""One source in a process of its own, so that its peak memory is its own and its crash costs one line.

The process writes `<folder>/<n>.npz` (item, score; a file a run), `trial.json` and what it said to `said`.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from pipelines import columns as c
from pipelines import config, publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.datasets.interactions import Interactions, histories
from pipelines.errors import ReloopError
from pipelines.retrieval import lineup
from pipelines.retrieval.biased_mf import BiasedMf
from pipelines.retrieval.content import Content
from pipelines.retrieval.neural.training import Training
from pipelines.retrieval.popular_by_segment import PopularBySegment
from pipelines.retrieval.protocol import Candidates, Demanding, Retriever
from pipelines.retrieval.svdpp import SvdPp
from pipelines.retrieval.together import Together
from pipelines.window import utc

Status: TypeAlias = Literal["ok", "skipped", "failed"]
KEPT_OF_LAST_WORDS: Final = 300  # characters of a crash that its line shows
GRID_SECONDS: Final = 40.0  # of the processor, after which no further knobs of a grid are tried
DESCRIPTIONS: Final = (c.TITLE, c.CATEGORY, c.BRAND, c.ATTRIBUTES)


@dataclass(frozen=True)
class Costs:
    """What one run of a source took.

    Attributes:
        fit_seconds, retrieve_seconds: wall clock.
        fit_cpu_seconds: of all threads; unlike the wall clock's, it does not grow on a busy machine.
        peak_mb: the largest resident memory while fitting and answering, above what was resident with the data loaded.
    """

    fit_seconds: float
    fit_cpu_seconds: float
    retrieve_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Run:
    """One fit on one fold with some knobs, and what it proposed to the fold's users, row by row."""

    knobs: dict[str, Any]
    costs: Costs
    found: Candidates


@dataclass(frozen=True)
class Trial:
    """What became of a source: `ok` with its runs, or why there is none."""

    status: Status
    reason: str
    runs: tuple[Run, ...] = ()


def attempt(
    home: Home,
    as_of: datetime,
    fold: str,
    source: str,
    knobs: Sequence[dict[str, Any]],
    *,
    k: int,
    scratch: Path,
    timeout: float | None = None,
) -> Trial:
    """Fit a source on a fold once for each set of knobs, in a new process, and return what it proposed.

    Once `GRID_SECONDS` were spent on fitting, the knobs that are left are not tried.

    Args:
        knobs: at least one; laid over the source's own defaults.
        scratch: a folder for its files.
        timeout: seconds after which the process is killed; None waits.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    told = scratch / "trial.json"
    told.unlink(missing_ok=True)
    job = {"home": str(home.root), "as_of": utc(as_of).isoformat(), "fold": fold, "source": source, "knobs": list(knobs), "k": k}
    # Children of a server that has imported everything and started no thread: a start costs milliseconds, not seconds of imports.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["pipelines.retrieval.leaderboard.trial"])
    process = processes.Process(target=_work, args=(job, scratch))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
        return Trial("failed", f"killed after {timeout:g} s")
    if process.exitcode or not told.is_file():
        return Trial("failed", _death(process.exitcode or 0, (scratch / "said").read_text(encoding="utf-8", errors="replace")))
    answer = json.loads(told.read_text(encoding="utf-8"))
    return Trial(answer["status"], answer["reason"], tuple(_read(scratch / f"{n}.npz", run) for n, run in enumerate(answer["runs"])))


def _death(code: int, said: str) -> str:
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    last = [line for line in said.splitlines() if line.strip()]
    return f"exit code {code}: {last[-1][-KEPT_OF_LAST_WORDS:] if last else 'no word'}"


def _read(path: Path, run: dict[str, Any]) -> Run:
    with np.load(path, allow_pickle=False) as arrays:
        return Run(run["knobs"], Costs(**run["costs"]), Candidates(arrays["item"], arrays["score"]))


def unfed(retriever: Retriever, known: Interactions) -> str | None:
    """Return what the data or this installation lacks that a source cannot do without; None where nothing."""
    if isinstance(retriever, Demanding):
        try:
            retriever.require()
        except ReloopError as error:
            return str(error)
    if isinstance(retriever, BiasedMf | SvdPp) and not ((known.event_type == c.EVENT_TYPES.index(c.RATING)) & ~np.isnan(known.value)).any():
        return "no event is a rating"
    if isinstance(retriever, Together) and not (known.event_type == c.EVENT_TYPES.index(retriever.event_type)).any():
        return f"no event is a {retriever.event_type}"
    if isinstance(retriever, Content) and not _filled(known.items, DESCRIPTIONS):
        return f"no item has a {', '.join(DESCRIPTIONS[:-1])} or {DESCRIPTIONS[-1]}"
    if isinstance(retriever, PopularBySegment) and not _filled(known.users, (retriever.segment,)):
        return f"no user has a {retriever.segment}"
    return None


def _filled(table: pa.Table | None, names: tuple[str, ...]) -> bool:
    """Tell whether any of some columns says anything of anyone; an empty map says nothing."""
    columns = [] if table is None else [table[name] for name in names if name in table.column_names]
    return any(value for column in columns for value in column.drop_null().to_pylist())


def _measured(retriever: Retriever, world: universe.Universe, fold: str, home: Home, k: int) -> tuple[Costs, Candidates, str | None]:
    """Fit on what was known before the fold's cutoff and answer its users; and what is missing, where something is."""
    settings = config.load(home).training
    known, asked = world.interactions(world.fold(fold).cutoff, settings), world.labels(fold).user_ids
    users = histories(known, asked)
    gc.collect()
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = _status_mb("VmRSS")
    missing = unfed(retriever, known)
    if missing:
        return Costs(0, 0, 0, 0), Candidates(np.empty((0, k), np.int32), np.empty((0, k), np.float32)), missing
    began, worked = time.perf_counter(), time.process_time()
    fitted = retriever.fit(known)
    answered, worked = time.perf_counter(), time.process_time() - worked
    found = fitted.retrieve(users, k, exclude_seen=settings.exclude_seen)
    ended = time.perf_counter()
    costs = Costs(answered - began, worked, ended - answered, max(_status_mb("VmHWM") - before, 0.0))
    nothing = f"it proposes nothing to any of {len(asked)} users" if len(asked) and not (found.item >= 0).any() else None
    return costs, found, nothing


def _status_mb(name: str) -> float:
    """Return a figure of this process' memory in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _work(job: dict[str, Any], folder: Path) -> None:
    """Do a job in the child; what a person can act on becomes the trial's reason, anything else ends the process."""
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(said, stream)
    told: dict[str, Any] = {"status": "ok", "reason": "", "runs": []}
    home = Home(Path(job["home"]))
    try:
        world = universe.load(home, utc(job["as_of"]))
        for n, knobs in enumerate(job["knobs"]):
            costs, found, missing = _measured(lineup.make(job["source"], knobs), world, job["fold"], home, job["k"])
            if missing:
                told = {"status": "skipped", "reason": missing, "runs": []}
                break
            with publish.replacing(folder / f"{n}.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, item=found.item, score=found.score)
            told["runs"].append({"knobs": knobs, "costs": asdict(costs)})
            if sum(run["costs"]["fit_cpu_seconds"] for run in told["runs"]) > GRID_SECONDS:
                break  # what is dear to fit is taken as it is
    except ReloopError as error:
        told = {"status": "failed", "reason": str(error), "runs": []}
    publish.write_json(folder / "trial.json", told)


def within(retriever: Retriever, seconds: float) -> dict[str, Any]:
    """Return the knobs that hold a source to a budget of training seconds; none where it has no budget."""
    return {"seconds": seconds} if isinstance(retriever, Training) and seconds > 0 else {}
