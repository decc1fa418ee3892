"""Whether the parts of a release fit each other and the feature store: what no digest can say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipelines.config import Home
from pipelines.datasets.interactions import Histories
from pipelines.errors import StateError
from pipelines.ranking.protocol import Ranker, schema_hash
from pipelines.ranking.two_stage import RANKED, TwoStage

SERVICE: Final = "ranking_v1"


def features_of(home: Home, ranker: Ranker | None) -> dict[str, Any] | None:
    """Return what a bundle says of the features its ranker reads: their order, and the types of those that are stored.

    Returns:
        None where there is no ranker, else {"service", "names", "schema_hash", "stored": {name: arrow type}}.
    """
    if ranker is None:
        return None
    declared = _declared(home)
    return {
        "service": SERVICE,
        "names": list(ranker.features),
        "schema_hash": schema_hash(ranker.features),
        "stored": {name: declared[name] for name in ranker.features if name in declared},
    }


def _declared(home: Home) -> dict[str, str]:
    from pipelines.features import store

    return {spec.name: str(spec.dtype) for spec in store.schema(home, SERVICE)}


def check_features(home: Home, said: Mapping[str, Any] | None, model: TwoStage) -> None:
    """Refuse a model whose ranker reads other features than the bundle says, or than the feature store declares now.

    A feature that was declared since is no misfit: the ranker does not read it.

    Raises:
        StateError: other names or another order, a service that is gone, a feature that is gone or of another type.
    """
    if said is None or model.ranker is None or model.serves != RANKED:
        return
    names = model.ranker.features
    if list(names) != said["names"] or schema_hash(names) != said["schema_hash"]:
        moved = [name for name, told in zip(names, said["names"], strict=False) if name != told][:3]
        raise StateError(
            "features of the ranker",
            found=f"{len(names)} features, schema {schema_hash(names)[:12]}, first of another name or place {moved}",
            allowed=f"{len(said['names'])} features, schema {said['schema_hash'][:12]}, in the order the bundle was built with",
            hint="the ranker is another release's; restore the folder or train again",
        )
    if said["service"] != SERVICE:
        raise StateError("feature service", found=said["service"], allowed=SERVICE, hint="train again for the service that is asked now")
    declared = _declared(home)
    wrong = {
        name: declared.get(name, "not declared") for name, dtype in said["stored"].items() if declared.get(name, "not declared") != dtype
    }
    if wrong:
        first = next(iter(wrong))
        raise StateError(
            f"feature service {SERVICE}",
            found=f"{len(wrong)} features that changed: {first} is {wrong[first]}",
            allowed=f"{first} of {said['stored'][first]}, as the ranker learnt it",
            hint="restore the view in feature_repo/, or train again",
        )


def check_parts(model: TwoStage) -> None:
    """Refuse a model whose parts count other items; indexes and the sources' arrays are checked as they are loaded.

    Raises:
        StateError: naming the part.
    """
    n_items = len(model.item_ids)
    if n_items and not (model.item_ids[1:] > model.item_ids[:-1]).all():
        raise StateError("items of the bundle", found="ids out of order, or twice", allowed="sorted, unique ids")
    nobody = Histories(np.zeros(2, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32), n_items, 0)
    for name, retriever in model.retrievers.items():
        try:
            retriever.retrieve(nobody, 1, exclude_seen=False)
        except (StateError, ValueError, IndexError) as error:
            raise StateError(
                f"source {name}",
                found=f"a model of another catalogue ({error})",
                allowed=f"one of the bundle's {n_items} items",
                hint="the part is another release's; restore the folder or train again",
            ) from error
    if model.memory is not None and model.memory.content.shape[0] != n_items:
        raise StateError("memory of the bundle", found=f"{model.memory.content.shape[0]} items", allowed=f"{n_items}", hint="train again")


_NO_NUMBER: Final = re.compile(r"^leaf_(?:value|const|coeff)=.*?(?<![\w.])[-+]?(?:nan|inf)", re.IGNORECASE | re.MULTILINE)


def check_weights(ranker: Path) -> None:
    """Refuse a ranker with a weight that is NaN or infinite: it would order some lists by nothing. Nothing native reads it here.

    Args:
        ranker: its folder; one that is not there has no weights.

    Raises:
        StateError: naming the file.
    """
    for file in sorted(ranker.rglob("*")):
        wrong = False
        if file.suffix == ".txt":
            wrong = _NO_NUMBER.search(file.read_text(encoding="utf-8", errors="replace")) is not None
        elif file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as arrays:
                wrong = any(arrays[key].dtype.kind == "f" and not np.isfinite(arrays[key]).all() for key in arrays.files)
        if wrong:
            raise StateError(f"ranker: {file.relative_to(ranker)}", found="NaN or infinity", allowed="finite weights", hint="train again")
