"""What MLflow is told: its aliases follow the pointer, its tags what the ledger says. Safe to repeat, and it may lag.

What was told last stands in the database of releases: a value of ours that is old is told apart from one that
a person set by hand, which is left for `registry.reconcile`. One process tells at a time, and reads the
pointer again before it ends, so the aliases come to rest at the row whoever moved it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from pipelines.config import Home
from pipelines.registry import ledger, release_database, releases, tracking
from pipelines.registry.ledger import Anchor

STATUS: Final = "validation_status"  # the tag by which people approve or reject in MLflow's own pages
PENDING: Final = "pending"
APPROVED: Final = "approved"
REJECTED: Final = "rejected"
ANCHOR: Final = "ledger.head"
_PATIENCE: Final = 100  # tenths of a second to wait for another process that tells


@contextmanager
def alone(home: Home) -> Iterator[bool]:
    """Hold the right to tell MLflow; False where another process has held it for ten seconds and is stuck."""
    home.root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.root / ".releases.telling", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = False
        for _ in range(_PATIENCE):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
                break
            except BlockingIOError:
                time.sleep(0.1)
        yield held
    finally:
        os.close(descriptor)


def sync(home: Home) -> None:
    """Make MLflow say what pointer and ledger say: aliases, the tags of reviews and rollbacks, the ledger's anchor."""
    with alone(home) as held:
        if held:
            tell(home)


def tell(home: Home, *, over: frozenset[str] = frozenset()) -> None:
    """Do what `sync` does, for whoever is `alone`.

    Args:
        over: names (`alias/champion`, `tag/3/validation_status`) whose values are written over although a person set them.
    """
    books = tracking.client(home)
    tracking.ensure_model(home)
    while True:
        now = releases.pointer(home)
        aliases = {name: str(version) for name, version in books.get_registered_model(tracking.MODEL).aliases.items()}
        for alias, version in ((tracking.CHAMPION, now.version), (tracking.PREVIOUS, now.previous_version)):
            name, found = f"alias/{alias}", aliases.get(alias)
            if version is not None and (name in over or found == str(version) or is_ours(home, name, found, adopt=True)):
                _tell_alias(home, alias, str(version), found)
        _mark(home, over)
        if (last := ledger.newest(home)) is not None:
            books.set_registered_model_tag(tracking.MODEL, ANCHOR, f"{last.seq}:{last.hash}")
        if releases.pointer(home).fence == now.fence:
            return


def listens(home: Home) -> bool:
    """Tell within a second whether anybody listens where MLflow should be; its own client takes far longer to give up, and to import."""
    address = urlsplit(tracking.uri(home))
    if address.hostname is None or not address.scheme.startswith("http"):
        return True  # a database, which is asked directly
    try:
        socket.create_connection((address.hostname, address.port or (443 if address.scheme == "https" else 80)), timeout=1).close()
    except OSError:
        return False
    return True


def is_ours(home: Home, name: str, found: str | None, *, adopt: bool = False) -> bool:
    """Tell whether MLflow's value is what we told it, or were about to; a value that is gone is nobody's.

    Args:
        adopt: also where nothing was ever told: a state folder of before this was kept.
    """
    told = release_database.told(home).get(name)
    return found is None or (adopt if told is None else found in told)


def _tell_alias(home: Home, alias: str, version: str, found: str | None) -> None:
    name = f"alias/{alias}"
    if found != version:
        release_database.note(home, name, intended=version)
        tracking.client(home).set_registered_model_alias(tracking.MODEL, alias, version)
    if release_database.told(home).get(name) != frozenset({version}):
        release_database.note(home, name, done=version)


def _mark(home: Home, over: frozenset[str]) -> None:
    """Put onto the model versions what became of them: awaiting a review, approved, rejected, rolled back from."""
    from mlflow.exceptions import MlflowException

    books, told = tracking.client(home), release_database.told(home)
    for (version, tag), value in marks(ledger.history(home)).items():
        name = f"tag/{version}/{tag}"
        if told.get(name) == frozenset({value}) and name not in over:
            continue
        try:
            found = books.get_model_version(tracking.MODEL, version).tags.get(tag)
        except MlflowException as gone:
            if gone.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        if tag == STATUS and name not in over and found != value and not is_ours(home, name, found):
            continue  # set by hand, for `reconcile` to read
        release_database.note(home, name, intended=value)
        books.set_model_version_tag(tracking.MODEL, version, tag, tracking.tag(value))
        release_database.note(home, name, done=value)


def marks(history: list[dict[str, Any]]) -> Mapping[tuple[str, str], str]:
    """Return (version, tag) -> value, as the ledger has it; the newest word counts."""
    found: dict[tuple[str, str], str] = {}
    for entry in history:
        kind, challenger = entry["kind"], entry.get("challenger")
        if kind in ledger.REIGNS and "version" in entry:
            found.pop((str(entry["version"]), "rolled_back"), None)
        if kind == ledger.ROLLED_BACK and entry.get("champion_before") is not None:
            words = "; ".join(entry.get("reasons", ()))
            found[str(entry["champion_before"]), "rolled_back"] = f"to version {entry['champion_after']}: {words}"
        if challenger is None:
            continue
        if kind == ledger.WAITING:
            found[str(challenger), STATUS] = PENDING
        elif kind == ledger.REJECTED:
            found[str(challenger), STATUS] = REJECTED
        elif kind == ledger.APPROVED or (kind == ledger.PROMOTED and "answers" in entry):
            found[str(challenger), STATUS] = APPROVED
        elif kind in {ledger.UNANSWERED, ledger.REFUSED} and "answers" in entry:
            found[str(challenger), STATUS] = "not reviewed"
    return found


def anchored(home: Home) -> Anchor | None:
    """Return the anchor that MLflow keeps, None without one."""
    tracking.ensure_model(home)
    said = tracking.client(home).get_registered_model(tracking.MODEL).tags.get(ANCHOR)
    if not said:
        return None
    seq, _, digest = said.partition(":")
    return Anchor(int(seq), digest) if seq.isdigit() else None
