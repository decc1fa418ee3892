"""What state the pipeline is in, and whether the installation is sound: `reloop status` and `reloop doctor`."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pipelines import config, cycle, lake, publish
from pipelines.config import REPOSITORY, Home
from pipelines.errors import ReloopError
from pipelines.registry import bundle_folder, ledger, releases, review

EVERYWHERE: Final = frozenset({"python", "packages", "state folder"})  # checks that need no state
MIN_FREE_BYTES: Final = 5 << 30
STAGES: Final = (
    "validation", "ingest", "features", "feature_validation", "materialize", "parity", "trigger", "retrieval", "blend",
    "training_set", "ranker", "ranking", "bundle", "gate", "drift",
)  # fmt: skip


def status(home: Home) -> dict[str, Any]:
    """Return how far every stage has come: the newest record of each, the days in the lake, and the champion."""
    days = lake.days(home)
    newest: dict[str, str] = dict.fromkeys(STAGES, "never ran")
    materialized: dict[str, Any] = {}
    for folder in sorted((home.reports / "cycles").glob("*")):
        for path in sorted(folder.glob("*.json")):
            record = cycle.read(path)
            if record["stage"] == "materialize" and record["state"] == "done":
                materialized = record
            if record["stage"] in newest:
                newest[record["stage"]] = f"{folder.name[:10]} {record['state']}" + (f": {record['error']}" if record["error"] else "")
    return {
        "state folder": str(home.root),
        "days in the lake": f"{days[0]} to {days[-1]}, {len(days)} days" if days else "none",
        **newest,
        "online features": _online(materialized),
        "champion": releases.describe(home),
        "waiting for review": _waiting(home),
    }


def _waiting(home: Home) -> str:
    """Return which challengers wait for a person's word."""
    open_ones = [f"version {entry['challenger']}, as of {entry['as_of'][:10]}" for entry in review.waiting(home)]
    return f"{'; '.join(open_ones)}: `reloop review`" if open_ones else "none"


def _online(record: dict[str, Any]) -> str:
    """Return which view served online is the first to grow too old, and when."""
    if not (views := record.get("answers_until")):
        return "none materialized"
    name, until = min(views.items(), key=lambda view: (view[1], view[0]))
    return f"{len(views)} views; the first to grow too old is {name}, after {until[:16].replace('T', ' ')} UTC"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check, in words, with what to do where it is not ok.

    Attributes:
        warning: nothing is wrong, but it may not be what was meant.
    """

    name: str
    ok: bool
    text: str
    warning: bool = False

    def __str__(self) -> str:
        return f"{'warning' if self.ok and self.warning else 'ok' if self.ok else 'WRONG'}: {self.text}"


def _normal(name: str) -> str:
    """Return a distribution's name as the packaging standard compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _packages() -> Finding:
    """Compare what is installed with the lock, where there is one (a clone, not an installed wheel)."""
    lock = REPOSITORY / "requirements.lock"
    if not lock.is_file():
        return Finding("packages", ok=True, text="no requirements.lock beside the package; nothing to compare with")
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    installed = {_normal(distribution.name): distribution.version for distribution in metadata.distributions()}
    wrong = [
        f"{name} {installed.get(_normal(name), 'missing')} instead of {version}"
        for name, version in pinned
        if installed.get(_normal(name)) != version
    ]
    return Finding("packages", not wrong, f"{len(pinned)} as locked" if not wrong else "; ".join(wrong[:5]) + ". Run `make .venv/ready`")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info[:2] == (3, 11), f"{version} (3.11 is what the lock was resolved for)")


def _folder(home: Home) -> Finding:
    if not home.root.is_dir():
        text = f"{home.root} does not exist; the first run makes it. Is it what --home or RELOOP_HOME should say?"
        return Finding("state folder", ok=True, text=text, warning=True)
    free = shutil.disk_usage(home.root).free
    writable, scarce = os.access(home.root, os.W_OK), free < MIN_FREE_BYTES
    text = f"{home.root}, {free >> 30} GiB free"
    if not writable:
        text += ", not writable: choose another with RELOOP_HOME"
    elif scarce:
        text += f", less than the {MIN_FREE_BYTES >> 30} GiB to keep free: see what `reloop gc` would collect, or choose another disk with RELOOP_HOME"
    return Finding("state folder", writable, text, warning=scarce)


def _lake(home: Home) -> Finding:
    lake.recover(home)
    days, files = lake.days(home), lake.event_files(home)
    return Finding("lake", len(days) == len(files), f"{len(files)} files for {len(days)} days")


def _settings(home: Home) -> Finding:
    from pipelines.ranking import rankers
    from pipelines.registry import gate_incumbents

    settings = config.load(home)
    rankers.chosen(settings.ranking)
    gate_incumbents.check(settings.gate, settings.retrieval.sources)
    return Finding("settings", ok=True, text="every section and knob is known")


def _sources(home: Home) -> Finding:
    """Check that every source of the line-up can be fitted here."""
    from pipelines.retrieval import lineup
    from pipelines.retrieval.protocol import Demanding

    settings = config.load(home).retrieval
    wrong: list[str] = []
    for name in dict.fromkeys((*settings.sources, *settings.parameters)):
        try:
            retriever = lineup.make(name, settings.parameters.get(name))
            if name in settings.sources and isinstance(retriever, Demanding):
                retriever.require()
        except ReloopError as error:
            wrong.append(str(error))
    return Finding("retrieval sources", not wrong, "; ".join(wrong) or f"{len(settings.sources)} that can be fitted here")


def _champion(home: Home) -> Finding:
    ledger.check_anchor(home)
    champion = releases.champion(home)
    if champion is None:
        return Finding("champion", ok=True, text="none yet")
    path = bundle_folder.checked_folder(home, home.bundles / champion.digest, champion.digest)
    signed = "signed here" if config.load(home).bundle.require_signature else "signature not asked for (bundle.require_signature)"
    return Finding(
        "champion", ok=True, text=f"version {champion.version}, {len(publish.manifest(path).files)} files as their digests say, {signed}"
    )


def _previous(home: Home) -> Finding:
    """Check the bundle that a rollback would go back to: it must not be found damaged, or refused, when it is needed."""
    now = releases.pointer(home)
    if now.previous_digest is None:
        return Finding("previous release", ok=True, text="none yet")
    if bundle_folder.tombstone(home, now.previous_digest).is_file():
        return Finding("previous release", ok=True, text=f"version {now.previous_version} was collected; no rollback to it", warning=True)
    bundle_folder.checked_folder(home, home.bundles / now.previous_digest, now.previous_digest)
    return Finding("previous release", ok=True, text=f"version {now.previous_version}, whole; a rollback can go back to it")


def _litter(home: Home) -> Finding:
    """Look for what killed writers left; the next writer of the same file sweeps it."""
    left: list[Path] = [path for path in home.root.rglob(".*.tmp") if not Path(f"/proc/{path.name.rsplit('.', 2)[1]}").exists()]
    return Finding("temporary files", ok=True, text=f"{len(left)} left by killed writers; the next write of each file removes its own")


def examine(home: Home) -> Iterator[Finding]:
    """Yield a finding for each check; a check that cannot be made is a finding, too. Of no folder there is nothing else to check."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "state folder": lambda: _folder(home),
        "settings": lambda: _settings(home),
        "retrieval sources": lambda: _sources(home),
        "lake": lambda: _lake(home),
        "champion": lambda: _champion(home),
        "previous release": lambda: _previous(home),
        "temporary files": lambda: _litter(home),
    }
    for name, check in checks.items():
        if name not in EVERYWHERE and not home.root.is_dir():
            continue
        try:
            yield check()
        except (ReloopError, OSError) as error:
            yield Finding(name, ok=False, text=str(error))
