"""A source behind an index on disk: the model's own files, and three more beside them.

    index.json     layout, what it was measured to reach, the release it belongs to, digests of the two files below
    index.faiss    the layout in FAISS's format; missing where it is flat
    index.npz      which items are proposed and where they stand inside; missing where it is flat and as it was fitted

A release is the content of the model, both sides of the product: an index answers for no other. FAISS crashes on damaged
files, or loads them and answers wrongly; so their digests are compared before a byte of them is parsed.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, cast

import faiss
import numpy as np
import numpy.typing as npt

from pipelines import publish
from pipelines.errors import StateError
from pipelines.model_settings import IndexSettings
from pipelines.retrieval.ann import plans
from pipelines.retrieval.ann.index import Index
from pipelines.retrieval.ann.indexed import Built, Indexed
from pipelines.retrieval.ann.plans import Plan
from pipelines.retrieval.protocol import Retriever, Vectored

FACTS: Final = "index.json"
STRUCTURE: Final = "index.faiss"
ITEMS: Final = "index.npz"


def release(model: Retriever) -> str:
    """Return the sha256 of a fitted model: its class, its knobs and every array of its state.

    Raises:
        StateError: it was not fitted.
    """
    if model.state is None:
        raise StateError(f"retriever {type(model).__name__}", found="not fitted", allowed="a fitted copy")
    knobs = {knob.name: getattr(model, knob.name) for knob in fields(cast("Any", model)) if knob.name != "state"}
    content = hashlib.sha256(publish.to_json({"model": type(model).__name__, "knobs": knobs}).encode())
    for name, array in sorted(model.state.items()):
        content.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return content.hexdigest()


def digest(retriever: Retriever) -> str:
    """Return the sha256 of all that a fitted source answers from: its release, and of an index the layout and what it holds beside.

    Raises:
        StateError: it was not fitted.
    """
    if not isinstance(retriever, Indexed) or retriever.index is None:
        return release(retriever)
    index = retriever.index
    content = hashlib.sha256(publish.to_json([release(retriever.model), asdict(index.plan), index.effort, index.length]).encode())
    for name, array in sorted(_arrays(retriever, index).items()):
        content.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        content.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    if index.structure is not None:
        content.update(faiss.serialize_index(index.structure).data)
    return content.hexdigest()


def _arrays(indexed: Indexed, index: Index) -> dict[str, npt.NDArray[np.generic]]:
    """Return what an index may propose, where it stands, and the vectors that are not the model's."""
    added = np.empty(0, dtype=np.int64) if indexed.added is None else indexed.added
    place = np.arange(index.n_items) if indexed.place is None else indexed.place
    return {"live": index.live, "item_of": index.item_of, "place": place, "added": added, "vector": index.vector[added]}


def save(folder: Path, indexed: Indexed) -> None:
    """Write an index into a folder that is being published; its model is saved by `lineup`.

    Raises:
        StateError: it was not fitted.
    """
    if indexed.index is None or indexed.built is None:
        raise StateError(f"index of {type(indexed.model).__name__}", found="not fitted", allowed="a fitted copy")
    index, written = indexed.index, {}
    if index.structure is not None:
        written[STRUCTURE] = faiss.serialize_index(index.structure).tobytes()
    if index.structure is not None or indexed.added is not None or indexed.place is not None or indexed.built.left_out:
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **_arrays(indexed, index))
        written[ITEMS] = file.getvalue()
    for name, content in written.items():
        with publish.replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    built = {name: value for name, value in asdict(indexed.built).items() if name not in {"latency_ms", "seconds"}}
    facts = {
        "release": release(indexed.model),
        "plan": asdict(index.plan),
        "effort": index.effort,
        "length": index.length,
        "n_items": index.n_items,
        "n_factors": index.vector.shape[1],
        "changed": indexed.added is not None,
        "settings": indexed.settings.model_dump(mode="json"),
        "files": {name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in written.items()},
        **built,
    }
    publish.write_json(folder / FACTS, facts)


def load(folder: Path, model: Retriever) -> Indexed:
    """Return a loaded model behind the index that `save` wrote beside it.

    Raises:
        StateError: the index is of another release of the model, a file is missing or was changed, or it does not hold what it says.
    """
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if (found := release(model)) != facts["release"]:
        raise StateError(
            str(folder),
            found=f"an index of release {facts['release'][:12]} beside a model of release {found[:12]}",
            allowed="an index and a model of one release",
            hint="fit the source again; the two are published together",
        )
    if not isinstance(model, Vectored):
        raise StateError(str(folder), found=f"an index beside {type(model).__name__}", allowed="a model with item vectors")
    content = {name: _checked(folder / name, said) for name, said in facts["files"].items()}
    vector, live = model.item_vectors()
    item_of, place, added = np.empty(0, dtype=np.int32), None, None
    if ITEMS in content:
        with np.load(io.BytesIO(content[ITEMS]), allow_pickle=False) as arrays:
            live, item_of = arrays["live"], arrays["item_of"]
            if facts["changed"]:
                place, added = arrays["place"], arrays["added"]
                own, vector = vector, np.zeros((facts["n_items"], facts["n_factors"]), np.float32)
                vector[place] = own
                vector[added] = arrays["vector"]
    structure = faiss.deserialize_index(np.frombuffer(content[STRUCTURE], dtype=np.uint8)) if STRUCTURE in content else None
    plan = Plan(**facts["plan"])
    _agree(folder, facts, plan, structure, n_held=len(item_of), shape=vector.shape)
    built = Built(facts["recall_at_100"], facts["n_queries"], facts["left_out"], tuple(facts["trials"]))
    index = Index(plan, facts["effort"], facts["length"], vector, live, structure, item_of)
    if place is not None and np.array_equal(place, np.arange(facts["n_items"])):
        place = None
    return Indexed(model, IndexSettings(**facts["settings"]), index, built, place, added)


def _checked(path: Path, said: dict[str, Any]) -> bytes:
    """Return the bytes of a file, which are those that were written."""
    if not path.is_file():
        raise StateError(str(path), found="missing", allowed="the file that index.json names", hint="fit the source again")
    content = path.read_bytes()
    if len(content) != said["bytes"] or hashlib.sha256(content).hexdigest() != said["sha256"]:
        raise StateError(
            str(path), found="bytes that differ from index.json", allowed=f"sha256 {said['sha256']}", hint="fit the source again"
        )
    return content


def _agree(folder: Path, facts: dict[str, Any], plan: Plan, structure: Any, *, n_held: int, shape: tuple[int, ...]) -> None:
    """Refuse an index whose parts do not fit each other."""
    held = (0, shape[1] + bool(facts["length"])) if structure is None else (structure.ntotal, structure.d)
    width = facts["n_factors"] + bool(facts["length"])
    wanted = (n_held, plans.padded(width) if plan.kind == "scan" else width)
    if (plan.kind == "flat") != (structure is None) or held != wanted or shape != (facts["n_items"], facts["n_factors"]):
        raise StateError(
            str(folder),
            found=f"{plan.kind} over {held} vectors and dimensions, items {shape}",
            allowed=f"{wanted}",
            hint="fit the source again",
        )
    of_kind = {"ivf": faiss.IndexIVF, "scan": faiss.IndexScalarQuantizer, "hnsw": faiss.IndexHNSW}
    if structure is not None and not isinstance(structure, of_kind[plan.kind]):
        raise StateError(str(folder), found=f"a {type(structure).__name__}", allowed=f"an index of kind {plan.kind}")
