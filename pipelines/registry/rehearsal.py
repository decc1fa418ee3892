"""The first load of a bundle, in a process that may crash or hang: what no digest can tell is met there.

    python -m pipelines.registry.rehearsal FOLDER TOLERANCE

A damaged LightGBM or FAISS file aborts its parser, makes it hang, or loads and scores wrongly. Digests
keep damaged files from the parsers; this process is for the rest: a file that was damaged before it
was digested, and libraries that read it otherwise. What passed here is remembered by digest, machine
and versions, so a bundle is rehearsed once where it is to serve.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from pipelines import config, publish
from pipelines.config import REPOSITORY, Home
from pipelines.errors import StateError
from pipelines.registry import bundle_folder, libraries
from pipelines.registry.bundle_folder import MODEL_FOLDER

GOLDEN_FOLDER: Final = "golden"


def memo(home: Home, digest: str) -> Path:
    """Return the file that remembers a rehearsal."""
    return home.cache / "rehearsed" / f"{digest}.json"


def rehearse(home: Home, digest: str) -> dict[str, Any]:
    """Load a bundle in a process of its own and ask it what it was asked when it was built; once a machine.

    Returns:
        {"difference": the largest distance of a score, "machine", "libraries"}.

    Raises:
        StateError: a byte is wrong, it was built for other libraries, or the process died, hung, or answered otherwise.
    """
    path = bundle_folder.checked(home, digest)
    libraries.check(home, path, digest)
    here = {"machine": platform.node(), "libraries": libraries.installed()}
    file = memo(home, digest)
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known and known | here == known:
        return known
    policy = config.load(home).bundle
    with publish.locked(file.parent / ".lock"):  # processes that are to serve it ask all at once, and each asking costs half a gigabyte
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if known and known | here == known:
            return known
        found = {**here, **in_a_process(path, policy.golden_tolerance, policy.rehearsal_seconds)}
        publish.write_json(file, found)
    return found


def in_a_process(path: Path, tolerance: float, seconds: float) -> dict[str, Any]:
    """Load a bundle whose bytes were checked in a process of its own, and return what it says.

    Raises:
        StateError: the process died, hung, or answered otherwise than when the bundle was built.
    """
    command = [sys.executable, "-m", "pipelines.registry.rehearsal", str(path), str(tolerance)]
    thing = f"first load of bundle {path.name[:12]}"
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise StateError(thing, found=f"no answer in {seconds:g} s", allowed="an answer in bundle.rehearsal_seconds") from error
    if ended.returncode < 0:
        raise StateError(
            thing, found=f"the process was ended by signal {-ended.returncode}", allowed="a process that answers", hint="train again"
        )
    try:
        answer = dict(json.loads(ended.stdout.splitlines()[-1]))
    except (IndexError, ValueError) as error:
        last = (ended.stderr.strip().splitlines() or ["nothing"])[-1]
        raise StateError(
            thing, found=f"exit {ended.returncode}: {last[:300]}", allowed="a process that answers", hint="train again"
        ) from error
    if refusal := answer.get("refused"):
        raise StateError(thing, found=str(refusal), allowed="what it answered when it was built")
    return answer


def main(path: Path, tolerance: float) -> None:
    """Load and ask; print one line of JSON."""
    from pipelines.registry import golden

    try:
        answer: dict[str, Any] = {"difference": golden.check(path / GOLDEN_FOLDER, golden.Parts.load(path / MODEL_FOLDER), tolerance)}
    except StateError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer))  # noqa: T201 - the answer to the process that asked


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
