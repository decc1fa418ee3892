"""A bundle on disk: where it lies, what its files belong to, and that every byte is what was published and signed.

bundles/<digest>/
manifest.json       every file with its sha256; its digest is the folder's name. Its facts are what is not content:
git commit, versions of libraries, the data partitions that were read, the Airflow run
signature.json      `signing`
bundle.json         as_of, what it was trained on, settings, features, what was measured, the digest of every part
reference.json      the population it learnt from, for drift
golden/             what the model answered when it was built (`golden`)
model/              the two-stage model, as `ranking.two_stage` saves it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pipelines import config, publish
from pipelines.config import Home
from pipelines.errors import StateError
from pipelines.publish import Manifest
from pipelines.registry import signing

FACTS_FILE: Final = "bundle.json"
REFERENCE_FILE: Final = "reference.json"
MODEL_FOLDER: Final = "model"
COLLECTED: Final = "collected"
OUTSIDE: Final = {publish.MANIFEST, signing.SIGNATURE}  # what no manifest names
FORMATS: Final = {".json", ".parquet", ".npz", ".txt", ".faiss"}  # none of them can execute


def folder(home: Home, digest: str) -> Path:
    """Return the folder of a bundle.

    Raises:
        StateError: the digest is no sha256 in hexadecimal, so it names no folder of ours.
    """
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise StateError("bundle", found=repr(digest), allowed="a sha256 in hexadecimal")
    return home.bundles / digest


def tombstone(home: Home, digest: str) -> Path:
    """Return the file that says what a bundle was, once retention has taken it."""
    return home.bundles / COLLECTED / f"{digest}.json"


def refuse_collected(home: Home, digest: str) -> None:
    """Refuse a bundle that retention has taken, or is about to take.

    Raises:
        StateError: saying which version it was, and how to have it back.
    """
    if (grave := tombstone(home, digest)).is_file():
        was = json.loads(grave.read_text(encoding="utf-8"))
        raise StateError(
            f"bundle {digest[:12]}",
            found=f"collected by retention (version {was['version']}, as of {str(was['as_of'])[:10]})",
            allowed="a bundle that is kept",
            hint=f"`reloop train --as-of {str(was['as_of'])[:10]}` builds it anew; retention.keep_last says how many stay",
        )


def part(name: str) -> str | None:
    """Return the part of a release that a file belongs to; None for `bundle.json`, which names the parts.

    >>> part("model/retrieval/als/state.npz"), part("model/ranker/model.txt"), part("reference.json")
    ('retrieval/als', 'ranker', 'reference')
    """
    if name == FACTS_FILE:
        return None
    first, *rest = name.removeprefix(f"{MODEL_FOLDER}/").split("/")
    if first == "retrieval" and len(rest) > 1:
        return f"retrieval/{rest[0]}"
    return first if rest else Path(first).stem.replace("manifest", "two_stage")


def parts(files: Mapping[str, str]) -> dict[str, str]:
    """Return the digest of every part of a release: sha256 over the names and digests of its files.

    Args:
        files: path inside the bundle -> sha256.
    """
    lines: dict[str, list[str]] = {}
    for name in sorted(files):
        if (owner := part(name)) is not None:
            lines.setdefault(owner, []).append(f"{name}\0{files[name]}\n")
    return {owner: hashlib.sha256("".join(some).encode()).hexdigest() for owner, some in sorted(lines.items())}


def manifest(home: Home, path: Path, digest: str | None = None) -> Manifest:
    """Return the manifest of a bundle wherever it lies, after checking who signed it and that it is the one asked for.

    Raises:
        StateError: there is no bundle, or it was collected; the manifest is damaged, of another bundle, or not signed here.
    """
    file = path / publish.MANIFEST
    if not file.is_file():
        if digest is not None:
            refuse_collected(home, digest)
        raise StateError(str(path), found="no manifest.json", allowed="a published bundle", hint="restore the folder or train again")
    content = file.read_bytes()
    if config.load(home).bundle.require_signature:
        signing.check(home, path, content)
    found = publish.parsed(content, str(file))
    if digest is not None and found.digest != digest:
        raise StateError(
            str(path), found=f"the content of bundle {found.digest[:12]}", allowed=digest[:12], hint="restore the folder or train again"
        )
    return found


def checked_folder(home: Home, path: Path, digest: str | None = None) -> Path:
    """Check every byte of a bundle wherever it lies, and that it is the bundle asked for; return its path.

    Raises:
        StateError: as `manifest`; a file is missing or was changed, is a link, of no known format, or named by no manifest; a part
            is of another release.
    """
    found = manifest(home, path, digest)
    try:
        there = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()}
    except FileNotFoundError as gone:  # it is being collected at this moment
        raise StateError(str(path), found="a folder that goes while it is read", allowed="a bundle that stays") from gone
    if strangers := sorted(set(there) - set(found.files) - OUTSIDE):
        raise StateError(str(path), found=f"files that no manifest names: {strangers[:3]}", allowed="what was published, nothing else")
    if odd := sorted(name for name, file in there.items() if file.is_symlink() or file.suffix not in FORMATS):
        raise StateError(str(path), found=f"links, or files of another format: {odd[:3]}", allowed=f"plain files, {sorted(FORMATS)}")
    for name in found.files:
        publish.check_file(path, name, found)
    said = read(path).get("parts") if FACTS_FILE in found.files else None
    if said is not None:  # bundles of before named none
        _check_parts(path, said, parts({name: str(entry["sha256"]) for name, entry in found.files.items()}))
    return path


def _check_parts(path: Path, said: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse a folder that was put together from several releases, however well its manifest fits it."""
    for name in sorted(set(said) | set(found)):
        if said.get(name) != found.get(name):
            raise StateError(
                f"{path}: {name}",
                found=f"part {str(found.get(name))[:12]}",
                allowed=f"{str(said.get(name))[:12]}, of the same release as the rest",
                hint="parts of several releases are never served together; restore the folder or train again",
            )


def checked(home: Home, digest: str) -> Path:
    """Return the folder of a bundle after checking every byte of it.

    Raises:
        StateError: as `checked_folder`.
    """
    return checked_folder(home, folder(home, digest), digest)


def document(home: Home, digest: str, name: str) -> dict[str, Any]:
    """Return one JSON document of a bundle, its own bytes checked and no others.

    Raises:
        StateError: as `manifest`; the document is missing or was changed.
    """
    path = folder(home, digest)
    found: dict[str, Any] = json.loads(publish.check_file(path, name, manifest(home, path, digest)).read_text(encoding="utf-8"))
    return found


def size(path: Path) -> int:
    """Return the bytes of everything below a folder."""
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def read(path: Path) -> dict[str, Any]:
    """Return `bundle.json` of a folder whose bytes were checked."""
    found: dict[str, Any] = json.loads((path / FACTS_FILE).read_text(encoding="utf-8"))
    return found
