"""What is kept of earlier releases, and the taking away of the rest without ever breaking a pointer.

Kept are the champion and the one before it, what is being rolled out, what an experiment answers from (every version that
`experiments.toml` names; a file that cannot be read keeps all), what waits for a person's word or for the gate, the first `keep_last` releases that a rollback would choose, and the `keep_last` newest bundles. The rest is taken:

    bundles/<digest>/                    leaves a tombstone, bundles/collected/<digest>.json, that says what it was
    MLflow's copy of it                  its files, where they lie in the state folder; the version stays, tagged `collected`
    training/<as_of>/                    of finished cycles beyond the `keep_runs` newest
    stream/collected/*.parquet           what the bus brought, `collected_days` after its window has landed
    what dead builders left behind, and dead processes of the service (empty segments of the impression log)

The ledger is never touched. Each bundle is taken inside the transaction that moves the pointer: the
pointer is read again, the tombstone written, the folder renamed away, and only then is anything
deleted. A flip reads the tombstone in its own transaction, so of a collection and a promotion at the
same moment one sees the other. Killed anywhere, the next run finishes, or drops the tombstone of a bundle that is still there.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import sqlalchemy as sa

from pipelines import config, cycle, publish
from pipelines.config import Home
from pipelines.decision_policies import RetentionPolicy
from pipelines.lake import segments
from pipelines.registry import bundle_folder, choosing, ledger, lineage, rehearsal, releases, review, rollback, rollouts
from pipelines.registry.bundle_folder import COLLECTED
from pipelines.registry.release_database import NAME, POINTER
from pipelines.sources import collected, plan
from pipelines.window import stamped, utc

DOOMED: Final = ".doomed."
TAG: Final = "collected"
MODEL_URI: Final = "models:/"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as far as retention asks.

    Attributes:
        order: rises with the moment it was built.
        decided: whether the ledger has an entry about it.
    """

    digest: str
    version: int | None
    as_of: str
    order: int
    decided: bool


def kept(
    bundles: Iterable[Bundle],
    pointer: releases.Pointer,
    history: list[dict[str, Any]],
    policy: RetentionPolicy,
    tried: Mapping[int, str] | None,
) -> dict[str, str]:
    """Return why each bundle that stays does, by digest; pure.

    Args:
        history: of the ledger, oldest first.
        tried: version -> the experiment that answers from it; None where nobody can tell, and everything stays.
    """
    there = sorted(bundles, key=lambda one: -one.order)
    reasons: dict[str, str] = {}

    def keep(digest: str | None, reason: str) -> None:
        if digest is not None:
            reasons.setdefault(digest, reason)

    keep(pointer.digest, "champion")
    keep(pointer.previous_digest, "previous champion")
    answered = {entry.get("answers") for entry in history}
    for entry in history:
        if entry["kind"] == ledger.WAITING and entry["key"] not in answered:
            keep(entry.get("challenger_digest"), "waits for a person's word")
    keep(_rolled_out(history), "is being rolled out")
    for digest, experiment in _tried(there, history, tried):
        keep(digest, experiment)
    for entry in rollback.candidates(history, pointer.version)[: policy.keep_last]:
        keep(entry["digest"], f"one of the {policy.keep_last} releases to go back to")
    for one in there[: policy.keep_last]:
        keep(one.digest, f"one of the {policy.keep_last} newest bundles")
    for one in there:
        if not one.decided and (pointer.as_of is None or utc(one.as_of) > utc(pointer.as_of)):
            keep(one.digest, "waits for the gate")
    return {one.digest: reasons[one.digest] for one in there if one.digest in reasons}


def _rolled_out(history: list[dict[str, Any]]) -> str | None:
    """Return the bundle of the rollout that runs, if one does."""
    newest = next((one for one in reversed(history) if one["kind"] in {*rollouts.RUNNING, ledger.ENDED}), None)
    return None if newest is None or newest["kind"] == ledger.ENDED else newest["challenger_digest"]


def _tried(there: Iterable[Bundle], history: list[dict[str, Any]], tried: Mapping[int, str] | None) -> list[tuple[str | None, str]]:
    """Return which bundles experiments answer from, with the reason to keep each."""
    if tried is None:
        return [(one.digest, "experiments.toml cannot be read") for one in there]
    digests = choosing.digests_in(history)
    return [(digests.get(version), f"experiment {name} answers from it") for version, name in tried.items()]


def tried(home: Home) -> dict[int, str] | None:
    """Return the versions that experiments answer from, each with the experiment's name; None where what is declared cannot be read.

    An experiment counts as long as it is declared, ended or not: whoever takes its table out lets its bundles go.
    """
    if not home.experiments.is_file():
        return {}
    try:
        declared = tomllib.loads(home.experiments.read_text(encoding="utf-8"))
        arms = [(name, arm) for name, table in declared.items() for arm in table["arms"].values()]
        return {int(arm["version"]): name for name, arm in arms if "version" in arm}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def on_disk(home: Home) -> list[Bundle]:
    """Return every bundle of a state folder, damaged ones included."""
    numbers = {digest: version for version, digest in sorted(lineage.versions(home).items(), reverse=True)}
    decided = {entry[name] for entry in ledger.history(home) for name in ("challenger_digest", "digest") if entry.get(name)}
    found = []
    for path in sorted(home.bundles.glob("?" * 64)):
        file = path / bundle_folder.FACTS_FILE
        try:
            as_of = str(json.loads(file.read_text(encoding="utf-8"))["as_of"])
        except (OSError, ValueError, KeyError, TypeError):
            as_of = "1970-01-01"  # damaged: nothing to be proud of, and nothing that a pointer's own keeping does not cover
        found.append(Bundle(path.name, numbers.get(path.name), as_of, path.stat().st_mtime_ns, path.name in decided))
    return found


def collect(home: Home, *, dry_run: bool = False) -> dict[str, Any]:
    """Take away what the policy does not keep; return what was kept and why, and what was taken.

    Returns:
        {"kept": {digest: reason}, "collected": [{"digest", "version", "as_of"}], "runs": [as_of], "segments": [name], "bytes", "mlflow": how
        many versions were marked, or why none, "dry_run"}.
    """
    policy = config.load(home).retention
    with publish.locked(home.bundles / ".lock"):  # nobody builds meanwhile
        if not dry_run:
            _exhume(home)
        there = on_disk(home)
        stays = kept(there, releases.pointer(home), ledger.history(home), policy, tried(home))
        goes = [one for one in sorted(there, key=lambda one: one.order) if one.digest not in stays]
        runs = _runs(home, policy, there)
        litter = [] if dry_run else _litter(home)
        size = sum(bundle_folder.size(path) for path in [*(home.bundles / one.digest for one in goes), *runs, *litter])
        taken = goes if dry_run else [one for one in goes if _take(home, one)]
        if not dry_run:
            for path in litter:
                shutil.rmtree(path, ignore_errors=True)
            for path in runs:
                _remove(path)
    parts = _segments(home, policy, dry_run=dry_run)
    marked: int | str = 0 if dry_run else _mark(home)
    return {
        "kept": stays,
        "collected": [{name: value for name, value in asdict(one).items() if name in {"digest", "version", "as_of"}} for one in taken],
        "runs": [path.name for path in runs],
        "segments": [path.name for path, _ in parts],
        "bytes": size + sum(length for _, length in parts),
        "mlflow": marked,
        "dry_run": dry_run,
    }


def _take(home: Home, one: Bundle) -> bool:
    """Take one bundle away, unless the pointer or a review has come to need it since."""
    path = home.bundles / one.digest
    doomed = path.with_name(f"{DOOMED}{one.digest}")
    with ledger.recording(home) as connection:  # holds the pointer's row: no flip between the question and the renaming
        row = connection.execute(sa.select(POINTER).where(POINTER.c.name == NAME)).one()
        if (
            rollouts.runs(connection, one.digest)
            or (declared := tried(home)) is None
            or one.digest in {digest for version, digest in choosing.digests(home).items() if version in declared}
            or one.digest in {row.digest, row.previous_digest}
            or one.digest in {entry["challenger_digest"] for entry in review.waiting(home)}
        ):
            return False
        publish.write_json(bundle_folder.tombstone(home, one.digest), {"digest": one.digest, "version": one.version, "as_of": one.as_of})
        path.rename(doomed)
    shutil.rmtree(doomed)
    rehearsal.memo(home, one.digest).unlink(missing_ok=True)
    return True


def _exhume(home: Home) -> None:
    """Drop the tombstones of bundles that are there: whoever wrote them was killed before the renaming, and the policy may have changed."""
    for grave in (home.bundles / COLLECTED).glob("*.json"):
        if (home.bundles / grave.stem).is_dir():
            grave.unlink()


def _litter(home: Home) -> list[Path]:
    """Return what a builder or a collection that was killed left behind; the caller holds the lock that both take."""
    hidden = [*home.bundles.glob(".*"), home.bundles / "building", *home.training.glob(f"{DOOMED}*")]
    return [path for path in hidden if path.is_dir()]


def _runs(home: Home, policy: RetentionPolicy, bundles: Iterable[Bundle]) -> list[Path]:
    """Return the training runs to take: finished cycles, beyond the newest, on whose bundle the gate has spoken."""
    undecided = {utc(one.as_of) for one in bundles if not one.decided}
    finished = []
    for path in sorted(home.training.glob("*-*-*T*")):
        as_of = stamped(path.name)
        if as_of is not None and as_of not in undecided and any(one["state"] == "done" for one in cycle.records(home, as_of, "bundle")):
            finished.append(path)
    return finished[: max(len(finished) - policy.keep_runs, 0)]


def _segments(home: Home, policy: RetentionPolicy, *, dry_run: bool) -> list[tuple[Path, int]]:
    """Take the segments that lie in the lake and no reader needs; return each with its bytes."""
    if not (collected.folder(home).is_dir() or segments.folder(home).is_dir()):
        return []
    with publish.locked(collected.folder(home) / ".lock"):  # nobody collects meanwhile
        goes = [*collected.outlived(home, plan.landed_until(home), policy.collected_days), *segments.abandoned(home)]
        found = [(path, path.stat().st_size) for path in goes]
        if not dry_run:
            for path in goes:
                path.unlink(missing_ok=True)
    return found


def _remove(path: Path) -> None:
    """Delete a folder in a way that a kill leaves it whole or under a hidden name; called again, it finishes."""
    doomed = path.with_name(f"{DOOMED}{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    if path.is_dir():
        path.rename(doomed)
        shutil.rmtree(doomed)


def _mark(home: Home) -> int | str:
    """Tell MLflow which versions have no bundle any more, and delete its copies that lie in the state folder; return how many."""
    graves = {path.stem for path in (home.bundles / COLLECTED).glob("*.json")}
    if not graves:
        return 0
    from mlflow.exceptions import MlflowException

    from pipelines.registry import tracking

    marked = 0
    try:
        books = tracking.client(home)
        for one in books.search_model_versions(f"name = '{tracking.MODEL}'"):
            if one.tags.get("digest") in graves and TAG not in one.tags:
                if one.source.startswith(MODEL_URI):
                    _delete_copy(home, books.get_logged_model(one.source.removeprefix(MODEL_URI)).artifact_location)
                books.set_model_version_tag(tracking.MODEL, one.version, TAG, "by retention; train again as of its cycle to have it back")
                marked += 1
    except MlflowException as error:
        return f"MLflow was not reached, the next collection tells it: {error}"[:300]
    return marked


def _delete_copy(home: Home, location: str) -> None:
    """Delete the files of a logged model that lie in the state folder; those of an artifact store are its own to expire."""
    place = urlparse(location)
    path = Path(place.path)
    if place.scheme in {"", "file"} and path.resolve().is_relative_to(home.mlflow.resolve()):
        _remove(path)


def say(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `collect` found in words, for people."""
    would = "would be taken" if found["dry_run"] else "taken"
    return {
        "kept": [f"{digest[:12]}  {reason}" for digest, reason in found["kept"].items()] or ["nothing"],
        f"bundles {would}": [
            f"{one['digest'][:12]}  version {one['version'] or '-'}, as of {one['as_of'][:10]}" for one in found["collected"]
        ]
        or ["none"],
        f"training runs {would}": found["runs"] or ["none"],
        f"segments {would}": len(found["segments"]),
        "megabytes": round(found["bytes"] / 1e6, 1),
        "versions marked in MLflow": found["mlflow"],
    }
