"""Bundles forged by somebody who holds the key: changed, with a manifest and a signature that fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trained_shop import FIRST

from pipelines import cycle, publish
from pipelines.config import Home
from pipelines.ranking import rankers
from pipelines.registry import bundle, bundle_folder, signing


def digest_of(home: Home, trained: Home, as_of: Any = FIRST) -> str:
    return str(cycle.records(trained, as_of, "bundle")[0]["digest"])


def forged(
    home: Home, digest: str, change: Callable[[Path], None], *, facts: dict[str, Any] | None = None, honest_parts: bool = False
) -> str:
    """Return the digest of a copy of a bundle that was changed, with a manifest and a signature that fit.

    Args:
        honest_parts: name the changed parts in bundle.json, as if the bundle had been built so.
    """
    source = home.bundles / digest
    building = home.bundles / "building"
    with publish.folder(building, publish.manifest(source).facts | (facts or {})) as out:
        for file in source.rglob("*"):
            if file.is_file() and file.name != signing.SIGNATURE and file != source / publish.MANIFEST:
                target = out / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
        change(out)
        model = out / bundle.MODEL_FOLDER
        (model / publish.MANIFEST).unlink()
        within = {str(file.relative_to(model)): file for file in sorted(model.rglob("*")) if file.is_file()}
        entries = {name: {"sha256": publish.digest(file), "bytes": file.stat().st_size} for name, file in within.items()}
        publish.write_json(model / publish.MANIFEST, {"files": entries, "facts": {}})
        if honest_parts:
            said = json.loads((out / bundle.FACTS_FILE).read_text())
            hashes = {str(file.relative_to(out)): publish.digest(file) for file in out.rglob("*") if file.is_file()}
            publish.write_json(out / bundle.FACTS_FILE, said | {"parts": bundle_folder.parts(hashes)})
    signing.sign(home, building)
    found = publish.manifest(building).digest
    building.rename(home.bundles / found)
    return found


def rewritten(ranker: Path, change: Callable[[str], str]) -> None:
    """Change the text of a ranker's trees, and every digest that it keeps of itself."""
    described = json.loads((ranker / rankers.RANKER_FILE).read_text())
    text = change((ranker / "model.txt").read_text())
    (ranker / "model.txt").write_text(text)
    described["files"]["model.txt"] = hashlib.sha256(text.encode()).hexdigest()
    described.pop("sha256")
    sealed = hashlib.sha256(publish.to_json(described).encode()).hexdigest()
    (ranker / rankers.RANKER_FILE).write_text(publish.to_json(described | {"sha256": sealed}))


def first_leaf(text: str, value: Callable[[str], str]) -> str:
    """Return a model's text with another value in its first leaf."""
    before, found, after = text.partition("\nleaf_value=")
    leaf, space, rest = after.partition(" ")
    return f"{before}{found}{value(leaf)}{space}{rest}"
