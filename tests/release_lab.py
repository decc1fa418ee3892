"""A process to kill anywhere between a finished training and a release: bundle, register, decide, flip, tell MLflow.

    python release_lab.py TRAINED ROOT spread CELLS | AT...

Imports the library once and forks for every cell. A boundary is any step by which something becomes
visible to others: a rename, link or removal below the state folder, and a commit of a database, counted
before and after. What runs is the product's own code; only audit hooks and SQLAlchemy's events count.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect
from trained_shop import FIRST

from pipelines import publish
from pipelines.config import Home
from pipelines.registry import bundle, bundle_folder, ledger, promotion, releases, tracking

STEPS = {"os.rename", "os.remove", "os.link", "shutil.rmtree"}


class Counter:
    """Counts boundaries and ends the process by SIGKILL at one of them."""

    def __init__(self, root: Path, at: int | None) -> None:
        self.root, self.at, self.seen, self.names = str(root), at, 0, list[str]()

    def step(self, name: str) -> None:
        if self.at is not None and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1
        self.names.append(name)

    def install(self) -> None:
        """Count renames, links and removals of what has a visible name, and commits that have written something, before and after."""
        wrote = set[int]()

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in STEPS or not isinstance(arguments[0], str | Path) or not str(arguments[0]).startswith(self.root + os.sep):
                return
            target = Path(str(arguments[1] if event in {"os.rename", "os.link"} else arguments[0]))
            place = target.relative_to(self.root) if target.is_relative_to(self.root) else target
            hidden = [part for part in place.parts if part.startswith(".") and part.endswith(".tmp")]
            if place.parts[0] != "tmp" and not hidden:  # a reader's own links to the lake, and what is not yet to be seen
                self.step(f"{event} {target.name}")

        @sa.event.listens_for(sa.engine.Engine, "before_cursor_execute")
        def execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if statement.lstrip()[:6].upper() in {"INSERT", "UPDATE", "DELETE"}:
                wrote.add(id(connection.connection.dbapi_connection))

        commit = DefaultDialect.do_commit

        def committing(dialect: Any, connection: Any) -> None:
            writes = id(connection.dbapi_connection) in wrote
            wrote.discard(id(connection.dbapi_connection))
            if writes:
                self.step("before commit")
            commit(dialect, connection)
            if writes:
                self.step("after commit")

        sys.addaudithook(audit)
        DefaultDialect.do_commit = committing  # type: ignore[method-assign]


def released(home: Home) -> None:
    """Do everything that follows a training: bundle, rehearse, register, judge, flip, tell MLflow."""
    os.environ["RELOOP_HOME"] = str(home.root)
    bundle.build(home, FIRST)
    promotion.decide(home, FIRST)


def forked(action: Callable[[], Any]) -> tuple[int, str]:
    """Run an action in a child; return how it ended and what it wrote last."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            said = action()
            os.write(writer, json.dumps(said).encode()[:60_000] if said is not None else b"")
        except BaseException as error:  # noqa: BLE001 - the child must not return into the parent's loop
            os.write(writer, repr(error).encode()[:60_000])
            os._exit(4)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        message = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), message


def counted(root: Path, at: int | None) -> list[str]:
    """Release with a kill at a boundary; return the boundaries that were passed."""
    counter = Counter(root, at)
    counter.install()
    released(Home(root))
    return counter.names


def state(root: Path) -> dict[str, Any]:
    """Return everything a reader can meet: pointer, ledger, registry, bundles with their digests; every alias leads to whole artifacts."""
    home = Home(root)
    os.environ["RELOOP_HOME"] = str(root)
    books = tracking.client(home)
    model = books.get_registered_model(tracking.MODEL)
    versions = books.search_model_versions(f"name = '{tracking.MODEL}'")
    for one in versions:
        logged = Path(books.get_logged_model(one.source.removeprefix("models:/")).artifact_location.removeprefix("file://"))
        copies = [path.parent for path in logged.rglob(bundle_folder.FACTS_FILE)]
        assert len(copies) == 1, f"version {one.version} has {len(copies)} bundles"
        bundle_folder.checked_folder(home, copies[0], one.tags["digest"])
    for alias, version in model.aliases.items():
        assert str(version) in {str(one.version) for one in versions}, f"{alias} leads to no version"
    found = {path.name: bundle_folder.checked(home, path.name) for path in home.bundles.glob("?" * 64)}
    now = releases.pointer(home)
    assert releases.verify(home) == len(releases.history(home))
    run_ids = {one.run_id for one in versions}
    pages = {f"{one.version}/{entry.path}" for one in versions for entry in books.list_artifacts(one.run_id, f"version-{one.version}")}
    return {
        "pointer": [now.version, now.digest, now.as_of, now.previous_version, now.fence],
        "ledger": [[entry["kind"], entry["key"], entry["champion_after"]] for entry in ledger.history(home)],
        "aliases": {name: str(version) for name, version in sorted(model.aliases.items())},
        "versions": sorted(
            [int(one.version), one.tags["digest"], one.tags.get("gate.verdict", ""), bool(one.description)] for one in versions
        ),
        "bundles": {name: sorted(publish.manifest(path).files) for name, path in found.items()},
        "pages": sorted(pages),
        "runs": len(run_ids),
        "litter": sorted(
            path.name for path in home.bundles.iterdir() if path.is_dir() and len(path.name) != 64 and path.name != "building"
        ),
    }


def template(trained: Path, root: Path) -> None:
    """Make a state folder in which a training has just ended: no bundle, no MLflow, no ledger; the rehearsal is remembered."""
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("tmp", "mlflow", "bundles", "warehouse", "feast.lock"))
    home = Home(root)
    for record in (home.reports / "cycles").rglob("bundle.json"):
        record.unlink()
    assert forked(lambda: tracking.ensure_model(home))[0] == 0  # MLflow's own migrations are not ours to break


def between(root: Path) -> None:
    """Look as a reader does while nothing is promised yet: whatever an alias or the pointer names must be whole."""
    home = Home(root)
    os.environ["RELOOP_HOME"] = str(root)
    now = releases.pointer(home)
    if now.digest is not None:
        bundle_folder.checked(home, now.digest)
    for path in home.bundles.glob("?" * 64):
        bundle_folder.checked(home, path.name)
    if (home.mlflow / "mlflow.db").is_file() and tracking.client(home).search_registered_models():
        for version in tracking.client(home).get_registered_model(tracking.MODEL).aliases.values():
            tracking.client(home).get_model_version(tracking.MODEL, version)
    releases.verify(home)


def matrix(trained: Path, root: Path, wanted: Callable[[int], list[int]]) -> dict[str, Any]:
    """Kill at the wanted boundaries, look, run again, and compare with an undisturbed run."""
    start = root / "template"
    template(trained, start)
    golden = root / "golden"
    shutil.copytree(start, golden)
    ended, said = forked(lambda: counted(golden, None))
    assert ended == 0, said
    names: list[str] = json.loads(said)
    print(len(names), names, file=sys.stderr, flush=True)
    expected = forked(lambda: state(golden))
    assert expected[0] == 0, expected[1]
    shutil.copytree(golden / "cache", start / "cache", dirs_exist_ok=True)  # the rehearsal, which starts a process, once for all
    cells = []
    for at in wanted(len(names)):
        cell = root / f"cell-{at}"
        shutil.copytree(start, cell)
        killed = forked(lambda cell=cell, at=at: counted(cell, at))[0]
        looked = forked(lambda cell=cell: between(cell))
        again = forked(lambda cell=cell: released(Home(cell)))
        after = forked(lambda cell=cell: state(cell))
        same = after == expected
        print(at, names[at], killed, looked, again, same, file=sys.stderr, flush=True)
        cells.append(
            {"at": at, "step": names[at], "killed": killed, "looked": looked, "again": again, "same": same}
            | ({} if same else {"after": after[1], "expected": expected[1]})
        )
        shutil.rmtree(cell)
    return {"boundaries": len(names), "names": names, "cells": cells}


def _spread(cells: int) -> Callable[[int], list[int]]:
    """Return what picks so many of n boundaries, evenly; all of them where there are no more."""
    return lambda n: sorted({round(at * (n - 1) / max(min(cells, n) - 1, 1)) for at in range(min(cells, n))})


def _named(asked: list[str]) -> Callable[[int], list[int]]:
    return lambda n: [int(one) for one in asked if int(one) < n]


if __name__ == "__main__":
    trained, root, *asked = sys.argv[1:]
    print(json.dumps(matrix(Path(trained), Path(root), _spread(int(asked[1])) if asked[0] == "spread" else _named(asked))))
