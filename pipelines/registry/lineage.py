"""Where a release comes from, in one answer: decisions, bundle, training run, data partitions, code, Airflow run.

Everything but the version's number is read from the bundle's own signed manifest, so it needs neither
MLflow nor the training run, which retention may have taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from pipelines import publish
from pipelines.config import Home
from pipelines.datasets import universe
from pipelines.errors import StateError
from pipelines.registry import bundle_folder, ledger, releases
from pipelines.registry.bundle_folder import FACTS_FILE
from pipelines.window import utc

LEAST_DIGITS: Final = 7  # of a digest that is named by its beginning


def trace(home: Home, what: str) -> dict[str, Any]:
    """Return the lineage of a release.

    Args:
        what: `champion`, `previous`, a model version, or a digest or its first digits.

    Returns:
        {"version", "digest", "decisions": [...], "bundle": {...}, "run": {...}, "data": {...}, "git_commit", "libraries", "airflow",
        "environment"}; `run.trained_on` and `data.partitions` say of each digest whether it is still what lies there.

    Raises:
        StateError: there is no such release, or its bundle was collected or damaged.
    """
    version, digest = resolve(home, what)
    bundle_folder.checked(home, digest)
    found = of_bundle(home, digest)
    return {"version": version, **found, "decisions": decisions(home, digest, version)} | _still(home, found)


def resolve(home: Home, what: str) -> tuple[int | None, str]:
    """Return version and digest of a release by any of its names.

    Raises:
        StateError: there is none, or several.
    """
    now = releases.pointer(home)
    named = {"champion": (now.version, now.digest), "previous": (now.previous_version, now.previous_digest)}
    if what in named:
        version, digest = named[what]
        if digest is None:
            raise StateError(what, found="nothing was released yet", allowed="a release", hint="reloop promote")
        return version, digest
    known = versions(home)
    if what.isdigit() and len(what) < LEAST_DIGITS:
        if (digest := known.get(int(what))) is None:
            raise StateError(f"version {what}", found="unknown", allowed=f"one of {sorted(known)}")
        return int(what), digest
    there = {path.name for path in home.bundles.glob("?" * 64)} | set(known.values())
    matching = sorted(digest for digest in there if digest.startswith(what)) if len(what) >= LEAST_DIGITS else []
    if len(matching) != 1:
        raise StateError(
            f"release {what!r}",
            found=f"{len(matching)} bundles of that name",
            allowed="champion, previous, a version, or a digest",
            hint="reloop releases",
        )
    number = next((version for version, digest in sorted(known.items()) if digest == matching[0]), None)
    return number, matching[0]


def versions(home: Home) -> dict[int, str]:
    """Return the digest of every version that the ledger or MLflow knows; MLflow is asked only for what the ledger lacks."""
    found: dict[int, str] = {}
    for entry in ledger.history(home):
        for number, digest in (("challenger", "challenger_digest"), ("version", "digest")):
            if entry.get(number) is not None and entry.get(digest):
                found[int(entry[number])] = str(entry[digest])
    if {path.name for path in home.bundles.glob("?" * 64)} - set(found.values()):
        from pipelines.registry import tracking

        for one in tracking.client(home).search_model_versions(f"name = '{tracking.MODEL}'"):
            if digest := one.tags.get("digest"):
                found.setdefault(int(one.version), str(digest))
    return found


def decisions(home: Home, digest: str, version: int | None) -> list[dict[str, Any]]:
    """Return what the ledger says of a release, oldest first: kind, when, by whom, why, and the entry's own digest."""
    names = ("seq", "kind", "recorded_at", "key", "hash", "author", "champion_before", "champion_after", "reasons", "trigger", "fence")
    return [
        {name: entry[name] for name in names if entry.get(name) is not None}
        for entry in ledger.history(home)
        if digest in (entry.get("challenger_digest"), entry.get("digest")) or (version is not None and entry.get("challenger") == version)
    ]


def of_bundle(home: Home, digest: str) -> dict[str, Any]:
    """Return what a bundle's signed manifest says of where it comes from.

    Raises:
        StateError: there is no such bundle, or its manifest or document was changed.
    """
    path = bundle_folder.folder(home, digest)
    manifest = bundle_folder.manifest(home, path, digest)
    said, outside = bundle_folder.document(home, digest, FACTS_FILE), manifest.facts
    data = outside.get("data", {"lake": None, "partitions": {}})
    return {
        "digest": digest,
        "bundle": {
            "path": str(path),
            "files": len(manifest.files),
            "bytes": sum(entry["bytes"] for entry in manifest.files.values()),
            "parts": said.get("parts", {}),
        },
        "run": {
            "as_of": said["as_of"],
            "cutoff": said.get("cutoff"),
            "folder": str(universe.run_folder(home, utc(said["as_of"]))),
            "trained_on": said["trained_on"],
        },
        "data": {**data, "digest": _digest(data["partitions"])},
        "git_commit": outside.get("git_commit", "unknown"),
        "libraries": outside.get("libraries", {}),
        "environment": outside.get("environment", "local"),
        "airflow": outside.get("airflow", {}),
    }


def _digest(partitions: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(partitions, sort_keys=True).encode()).hexdigest()


def _still(home: Home, found: dict[str, Any]) -> dict[str, Any]:
    """Return run and data with, of each digest, whether it is what lies there now: `same`, `changed` or `gone`."""
    run, data = found["run"], found["data"]
    folder = universe.run_folder(home, utc(run["as_of"]))
    trained = {}
    for name, digest in run["trained_on"].items():
        there = (folder / name / publish.MANIFEST).is_file()
        now = publish.manifest(folder / name).digest if there else None
        trained[name] = {"digest": digest, "now": "gone" if now is None else "same" if now == digest else "changed"}
    partitions = {}
    for name, digest in data["partitions"].items():
        file = home.lake / name
        now = publish.digest(file) if file.is_file() else None
        partitions[name] = {"sha256": digest, "now": "gone" if now is None else "same" if now == digest else "changed"}
    return {"run": {**run, "trained_on": trained}, "data": {**data, "partitions": partitions}}


def say(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `trace` found in words, for people: the chain from the decision to the data."""
    run, data, airflow = found["run"], found["data"], found["airflow"]
    days = sorted(name for name in data["partitions"] if "event_date=" in name)
    span = f", {days[0].split('=')[1].split('/')[0]} to {days[-1].split('=')[1].split('/')[0]}" if days else ""
    changed = [name for name, one in data["partitions"].items() if one["now"] != "same"]
    return {
        "release": f"version {found['version'] or '-'}, as of {run['as_of'][:10]}",
        "decisions": [
            f"entry {one['seq']} ({one.get('recorded_at') or '-'}): {one['kind']}" + (f" by {one['author']}" if one.get("author") else "")
            for one in found["decisions"]
        ]
        or ["not decided on yet"],
        "bundle": f"{found['digest']}, {found['bundle']['files']} files, {found['bundle']['bytes']:,} bytes, environment {found['environment']}",
        "training run": [f"{name}  {one['digest'][:12]}  {one['now']}" for name, one in run["trained_on"].items()],
        "data": f"{len(days)} days of events{span}, digest {data['digest'][:12]}, landing {data['lake']}",
        "changed since": changed or ["nothing"],
        "code": found["git_commit"],
        "libraries": " ".join(f"{name}=={one}" for name, one in sorted(found["libraries"].items())),
        "Airflow run": f"{airflow.get('dag')} / {airflow.get('run')} {airflow.get('url', '')}"
        if airflow
        else "none: trained from the command line",
    }
