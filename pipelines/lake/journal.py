"""How several files become visible in one step: staged aside, journalled, renamed; a kill is rolled forward.

The journal is the point of no return. Before it exists nothing has changed and the staged files are
litter; once it exists every step left is a rename or a removal, which any process can finish.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from pipelines import publish
from pipelines.config import Home

JOURNAL: Final = "_journal.json"
STAGING: Final = "_staging"


def locked(home: Home, name: str, *, shared: bool = False) -> AbstractContextManager[None]:
    """Hold one of the lake's locks."""
    return publish.locked(home.lake / f"_{name}.lock", shared=shared)


@contextmanager
def writing(home: Home) -> Iterator[Path]:
    """Be the single writer: yield an empty staging folder, with what a dead writer left finished or swept."""
    with locked(home, "writer"):
        recover(home)
        staging = home.lake / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            if not (home.lake / JOURNAL).is_file():  # else the staged files are still needed to roll forward
                shutil.rmtree(staging, ignore_errors=True)


def commit(home: Home, staging: Path, *, removed: list[str]) -> None:
    """Move every staged file to the same place in the lake, and remove some, as one step.

    Args:
        removed: paths relative to the lake that must no longer exist afterwards.
    """
    staged = sorted(str(file.relative_to(staging)) for file in staging.rglob("*") if file.is_file())
    for name in staged:
        publish.fsync(staging / name)
    with locked(home, "commit"):
        publish.write_json(home.lake / JOURNAL, {"moved": staged, "removed": sorted(removed)})
        _roll_forward(home)


def recover(home: Home) -> None:
    """Finish a landing that was killed after its point of no return; every reader and writer calls it first."""
    if (home.lake / JOURNAL).is_file():
        with locked(home, "commit"):
            _roll_forward(home)


def _roll_forward(home: Home) -> None:
    """Do what is left of the journal, in any state of completion; the caller holds the commit lock."""
    journal = home.lake / JOURNAL
    if not journal.is_file():
        return
    steps = json.loads(journal.read_text(encoding="utf-8"))
    folders = {home.lake}
    for name in steps["moved"]:
        source, target = home.lake / STAGING / name, home.lake / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_file():
            source.rename(target)
        folders |= {target.parent, target.parent.parent}
    for name in steps["removed"]:
        (home.lake / name).unlink(missing_ok=True)
        folders.add((home.lake / name).parent)
    for folder in sorted(folders):
        if folder.is_dir():
            publish.fsync(folder)
    journal.unlink()
    publish.fsync(home.lake)
