"""Back to an earlier champion: one pointer flip, in seconds, with neither MLflow nor Airflow nor Redis up.

What is put back has been released before, and its bundle is checked byte by byte against the digest in the
ledger first. MLflow's aliases follow with the next `projection.sync`.
"""

from __future__ import annotations

from typing import Any, Final

from pipelines.config import Home
from pipelines.errors import StaleFence, StateError
from pipelines.registry import bundle_folder, ledger, releases

MACHINE: Final = "reloop"  # the author of what no person did
SAID: Final = ("reasons", "author", "as_of", "champion_before", "champion_after", "digest", "fence")


def candidates(history: list[dict[str, Any]], serving: int | None) -> list[dict[str, Any]]:
    """Return the releases to go back to, the first choice first.

    Newest reign first. No candidate is what was first released after the one that serves, what was left for an earlier release
    (a rollback, or an alias set by hand) and what a person rejected, unless it has served since or a person approved it: going
    back twice goes further back and never forth.
    """
    reigns, order, spoiled = _reigns(history)
    last = len(order) if serving is None else order.get(serving, len(order))
    return [entry for version, entry in reversed(reigns.items()) if order[version] < last and version not in spoiled]


def withdrawn(history: list[dict[str, Any]]) -> frozenset[str]:
    """Return the digests of releases that were left for an earlier one, or rejected, and have not served since."""
    reigns, _, spoiled = _reigns(history)
    good = {entry["digest"] for version, entry in reigns.items() if version not in spoiled}
    return frozenset(reigns[version]["digest"] for version in spoiled if version in reigns) - good


def _reigns(history: list[dict[str, Any]]) -> tuple[dict[int, dict[str, Any]], dict[int, int], set[int]]:
    """Return the newest reign of each version, the order in which versions were first released, and which are no way back."""
    reigns: dict[int, dict[str, Any]] = {}
    order: dict[int, int] = {}  # of first releases: numbers of versions may have another
    spoiled: set[int] = set()
    for entry in history:
        if entry["kind"] in ledger.REIGNS:
            version, before = int(entry["version"]), entry.get("champion_before")
            first = order.setdefault(version, len(order))
            if entry["kind"] in {ledger.ROLLED_BACK, ledger.BY_HAND} and before is not None and order.get(int(before), -1) > first:
                spoiled.add(int(before))  # else it was taken back
            spoiled.discard(version)
            reigns.pop(version, None)
            reigns[version] = entry  # the newest last
        elif entry["kind"] == ledger.REJECTED and entry.get("challenger") is not None:
            spoiled.add(int(entry["challenger"]))
        elif entry["kind"] == ledger.APPROVED and entry.get("challenger") is not None:
            spoiled.discard(int(entry["challenger"]))
    return reigns, order, spoiled


def check(home: Home, entry: dict[str, Any]) -> None:
    """Check every byte of the bundle of a release.

    Raises:
        StateError: it is gone, damaged, or not signed in this environment.
    """
    folder = home.bundles / entry["digest"]
    bundle_folder.refuse_collected(home, entry["digest"])
    if not folder.is_dir():
        raise StateError(
            f"bundle of version {entry['version']}",
            found="gone: removed by retention, or by hand",
            allowed=str(folder),
            hint="go back to another version with --to",
        )
    bundle_folder.checked(home, entry["digest"])


def _target(history: list[dict[str, Any]], serving: int | None, to: str | int | None) -> dict[str, Any]:
    released = {str(entry["version"]): entry for entry in history if entry["kind"] in ledger.REIGNS}
    first = next(iter(candidates(history, serving)), None)
    entry = first if to is None else released.get(str(to))
    if entry is not None and entry["version"] != serving:
        return entry
    others = sorted(int(version) for version in released if version != str(serving))
    if to is not None:
        found = f"version {to}, which " + ("was never released" if entry is None else "serves already")
    else:
        found = "no earlier champion" + (" that nobody has rolled back from or rejected" if others else "")
    only = f"; version {serving}, which serves, is the only one released" if released else "; none was released yet"
    raise StateError(
        "rollback",
        found=found,
        allowed=f"one of the versions {others}" if others else f"a second release first{only}",
        hint=f"name one with --to: {others}" if others and to is None else "",
    )


def roll_back(
    home: Home, to: str | int | None = None, *, reason: str = "asked for", author: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """Let an earlier champion serve again: the first of `candidates`, or version `to`.

    Args:
        key: names this rollback, so that whoever asks a second time (a task's retry) is told what was done.

    Returns:
        {"champion_before", "champion_after", "digest", "fence", "as_of", "author", "reasons"}.

    Raises:
        StateError: there is nothing to go back to, `to` was never released, or its bundle is gone or damaged.
        StaleFence: somebody else moved the pointer meanwhile.
    """
    if key is not None and (done := ledger.decision(home, key)) is not None:
        return {name: done[name] for name in SAID}
    now = releases.pointer(home)
    entry = _target(ledger.history(home), now.version, to)
    check(home, entry)
    return _flip(home, now, entry, reason, author, key=key)


def _flip(
    home: Home, now: releases.Pointer, entry: dict[str, Any], reason: str, author: str | None, *, key: str | None = None
) -> dict[str, Any]:
    body = {
        "reasons": [reason],
        "author": author or MACHINE,
        "as_of": entry["as_of"],
        "champion_before": now.version,
        "champion_after": entry["version"],
    }
    kind, version, digest = releases.ROLLED_BACK, entry["version"], entry["digest"]
    flipped = releases.flip(home, now, version=version, digest=digest, as_of=entry["as_of"], key=key, body=body, kind=kind)
    return {**body, "digest": entry["digest"], "fence": flipped.fence}


def by_machine(home: Home, serving: int, *, reason: str, figures: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Roll back from a version that breaks a bound; what serving calls when it sees one.

    Goes back to the first candidate whose bundle is sound. Does nothing, and returns None, where that version serves no
    longer (a late alarm must not throw out its successor) or where nothing is left to go back to: then a person must act.

    Args:
        serving: the version that the alarm is about.
        reason: the bound and what was measured, in a sentence.
        figures: what was measured; JSON values, kept in the ledger.
    """
    now = releases.pointer(home)
    if now.version != serving:
        return None
    for entry in candidates(ledger.history(home), now.version):
        try:
            check(home, entry)
            said = reason if not figures else f"{reason} ({', '.join(f'{name} {value}' for name, value in sorted(figures.items()))})"
            return _flip(home, now, entry, said, None)
        except StaleFence:
            return None
        except StateError:
            continue
    return None
