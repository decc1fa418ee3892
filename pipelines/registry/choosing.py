"""Which bundle answers requests now: the champion if it is sound, else the release before it, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipelines import publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.ranking.two_stage import TwoStage
from pipelines.registry import bundle, ledger, rehearsal, releases, rollback
from pipelines.retrieval import lineup

LOG: Final = logging.getLogger(__name__)
MOST: Final = 3  # releases that are tried before it is said that none is sound


@dataclass(frozen=True)
class Serving:
    """A loaded release.

    Attributes:
        fallen_back: why it is not the champion; empty where it is.
        parts: digest of every part, for whoever must prove that an answer mixes none.
    """

    version: int
    digest: str
    model: TwoStage
    parts: dict[str, str]
    fallen_back: tuple[str, ...] = ()


def report_file(home: Home) -> Path:
    """Return where it is said that something else than the champion serves; no such file where all is well."""
    return home.reports / "serving" / "fallen_back.json"


def serving(home: Home, *, rehearse: bool = True) -> Serving | None:
    """Return the champion, loaded; where it is damaged the previous release, with the reasons logged and reported. None before the first.

    Args:
        rehearse: whether a bundle that was never loaded on this machine is first loaded in a process of its own.

    Raises:
        StateError: no release that might serve is sound.
    """
    reasons: list[str] = []
    for version, digest in _candidates(home, reasons):
        try:
            found = loaded(home, version, digest, rehearse=rehearse)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a bundle, another may serve
            reasons.append(f"version {version} ({digest[:12]}): {type(error).__name__}: {error}")
            continue
        _report(home, version, digest, reasons)
        return replace(found, fallen_back=tuple(reasons))
    if not reasons:
        return None
    raise StateError(
        "what serves", found="; ".join(reasons), allowed="one sound release", hint="restore a bundle folder, or `reloop train`"
    )


def loaded(
    home: Home, version: int, digest: str, *, rehearse: bool = True, arrays: Callable[[Path], dict[str, Any]] = lineup.unpacked
) -> Serving:
    """Return one release, loaded.

    Args:
        arrays: reads the npz of a source, its bytes checked.

    Raises:
        StateError: it is damaged, does not fit here, or crashes, hangs or answers otherwise in its rehearsal.
    """
    if rehearse:
        rehearsal.rehearse(home, digest)
    return Serving(version, digest, bundle.load(home, digest, arrays), bundle.facts(home, digest).get("parts", {}))


def digests(home: Home) -> dict[int, str]:
    """Return the bundle of every version that was ever judged or released, as the ledger names them."""
    return digests_in(ledger.history(home))


def digests_in(history: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return what `digests` does of a ledger's entries, oldest first."""
    found: dict[int, str] = {}
    for entry in history:
        for version, digest in ((entry.get("challenger"), entry.get("challenger_digest")), (entry.get("version"), entry.get("digest"))):
            if version is not None and digest is not None:
                found[int(version)] = str(digest)
    return found


def _candidates(home: Home, reasons: list[str]) -> Iterator[tuple[int, str]]:
    """Yield (version, digest) of what may serve, the champion first; a pointer that the ledger does not know is told and passed over."""
    now, history = releases.pointer(home), ledger.history(home)
    reigns = [entry for entry in history if entry["kind"] in ledger.REIGNS]
    last: dict[str, Any] | None = reigns[-1] if reigns else None
    tried: set[str] = set()
    if now.version is not None and now.digest is not None:
        if wrong := unknown(now, history):
            reasons.append(wrong)
        else:
            tried.add(now.digest)
            yield now.version, now.digest
    others = ([last] if last is not None else []) + rollback.candidates(history, now.version)
    for entry in others:
        if entry["digest"] not in tried and len(tried) < MOST:
            tried.add(entry["digest"])
            yield int(entry["version"]), str(entry["digest"])


def unknown(now: releases.Pointer, history: list[dict[str, Any]]) -> str | None:
    """Return why a pointer is not to be followed, None where the ledger's last flip set it."""
    last = next((entry for entry in reversed(history) if entry["kind"] in ledger.REIGNS), None)
    if last is not None and (last["version"], last["digest"], last["fence"]) == (now.version, now.digest, now.fence):
        return None
    return f"the pointer says version {now.version} at fence {now.fence}, which no entry of the ledger set"


def _report(home: Home, version: int, digest: str, reasons: list[str]) -> None:
    if not reasons:
        report_file(home).unlink(missing_ok=True)
        return
    for reason in reasons:
        LOG.error("the champion does not serve: %s", reason)
    LOG.error("version %s (%s) serves instead", version, digest[:12])
    publish.write_json(report_file(home), {"serves": {"version": version, "digest": digest}, "reasons": reasons})
