"""The line-up: every source by name, and how a fitted one is kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from pipelines import columns as c
from pipelines import knobs, publish
from pipelines.errors import StateError
from pipelines.model_settings import RetrievalSettings
from pipelines.retrieval.als import Als
from pipelines.retrieval.ann import keeping
from pipelines.retrieval.ann.indexed import Indexed
from pipelines.retrieval.bert4rec import Bert4Rec
from pipelines.retrieval.biased_mf import BiasedMf
from pipelines.retrieval.bpr import Bpr
from pipelines.retrieval.cold_items import ColdItems
from pipelines.retrieval.cold_users import ColdUsers
from pipelines.retrieval.content import Content
from pipelines.retrieval.ease import Ease
from pipelines.retrieval.graph_filter import GraphFilter
from pipelines.retrieval.gru4rec import Gru4Rec
from pipelines.retrieval.item_knn import ItemKnn
from pipelines.retrieval.lightgcn import LightGcn
from pipelines.retrieval.neumf import NeuMf
from pipelines.retrieval.nmf import Nmf
from pipelines.retrieval.popular import Popular
from pipelines.retrieval.popular_by_profile import PopularByProfile
from pipelines.retrieval.popular_by_segment import PopularBySegment
from pipelines.retrieval.protocol import Retriever
from pipelines.retrieval.pure_svd import PureSvd
from pipelines.retrieval.repeat import Repeat
from pipelines.retrieval.sasrec import SasRec
from pipelines.retrieval.sequence_rules import SequenceRules
from pipelines.retrieval.session_knn import SessionKnn
from pipelines.retrieval.spark_als import SparkAls
from pipelines.retrieval.svdpp import SvdPp
from pipelines.retrieval.text_embedding import TextEmbedding
from pipelines.retrieval.together import Together
from pipelines.retrieval.trending import Trending
from pipelines.retrieval.two_tower import TwoTower
from pipelines.retrieval.user_knn import UserKnn

# Each source with the knobs it has unless the settings say otherwise; none is fitted.
SOURCES: Final[dict[str, Retriever]] = {
    "popular": Popular(),
    "popular_7d": Popular(window_days=7.0, half_life_days=3.0),
    "item_knn": ItemKnn(),
    "sequence_rules": SequenceRules(),
    "ease": Ease(),
    "als": Als(),
    # Fitted with Spark (the extra `spark`, and Java 17), served without it.
    "spark_als": SparkAls(),
    "repeat": Repeat(),
    "graph_filter": GraphFilter(),
    "user_knn": UserKnn(),
    "session_knn": SessionKnn(),
    "pure_svd": PureSvd(),
    "nmf": Nmf(),
    "bpr": Bpr(),
    "viewed_together": Together(event_type=c.VIEW),
    "bought_together": Together(event_type=c.PURCHASE),
    "content": Content(),
    # Fitted with a sentence encoder (the extra `text`), which the settings must name; served without it.
    "text_embedding": TextEmbedding(),
    "trending": Trending(),
    "popular_by_segment": PopularBySegment(),
    "popular_by_profile": PopularByProfile(),
    "cold_users": ColdUsers(),
    "cold_items": ColdItems(),
    "biased_mf": BiasedMf(),
    "svdpp": SvdPp(),
    # Trained with JAX (the extra `neural`), served without it.
    "sasrec": SasRec(),
    "gsasrec": SasRec(loss="gbce", n_negatives=256),
    "gru4rec": Gru4Rec(),
    "bert4rec": Bert4Rec(),
    "two_tower": TwoTower(),
    "lightgcn": LightGcn(),
    "neumf": NeuMf(),
}


def make(name: str, given: Mapping[str, Any] | None = None) -> Retriever:
    """Return an unfitted source with some knobs changed.

    Raises:
        StateError: no source has that name, or a knob is unknown, of another type, or out of its range.
    """
    if name not in SOURCES:
        raise StateError(
            f"source {name!r}",
            found="unknown",
            allowed=f"one of {list(SOURCES)}",
            hint=f"did you mean {near[0]!r}?"
            if (near := get_close_matches(name, SOURCES, n=1))
            else "see retrieval.sources in the settings",
        )
    return knobs.changed(f"source {name!r}", SOURCES[name], given or {}, where="retrieval.parameters")


def chosen(settings: RetrievalSettings) -> dict[str, Retriever]:
    """Return the sources that the settings name, unfitted; the knobs of all others are checked, too.

    Raises:
        StateError: a source is unknown, or a knob is unknown, of another type, or out of its range.
    """
    for name in settings.parameters:
        make(name, settings.parameters[name])
    return {name: make(name, settings.parameters.get(name)) for name in settings.sources}


def save(folder: Path, name: str, retriever: Retriever) -> None:
    """Write a fitted source into a folder that is being published: knobs.json and state.npz, no pickle; its index beside them.

    Raises:
        StateError: the source was not fitted, or holds NaN or infinity.
    """
    if isinstance(retriever, Indexed):
        keeping.save(folder, retriever)
        retriever = retriever.model
    _check_finite(f"retriever {name}", retriever.state or {})
    if retriever.state is None:
        raise StateError(f"retriever {name}", found="not fitted", allowed="a fitted copy")
    kept = {knob: getattr(retriever, knob) for knob in knobs.of(type(retriever))}
    publish.write_json(folder / "knobs.json", {"source": name, "knobs": kept})
    with publish.replacing(folder / "state.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{key: retriever.state[key] for key in sorted(retriever.state)})


def unpacked(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an npz, in memory of one's own."""
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def load(folder: Path, arrays: Callable[[Path], dict[str, npt.NDArray[Any]]] = unpacked) -> Retriever:
    """Return the fitted source that `save` wrote.

    The caller has verified the folder's manifest; what is checked here is what a digest cannot say.

    Args:
        arrays: reads an npz; whoever shares memory with other processes has another way.

    Raises:
        StateError: a file is missing, an array holds NaN or infinity, or the index beside it is damaged or another model's.
    """
    for file in ("knobs.json", "state.npz"):
        if not (folder / file).is_file():
            raise StateError(str(folder / file), found="missing", allowed="a saved source")
    saved = json.loads((folder / "knobs.json").read_text(encoding="utf-8"))
    state = arrays(folder / "state.npz")
    _check_finite(str(folder / "state.npz"), state)
    model = cast("Retriever", replace(cast("Any", make(saved["source"], saved["knobs"])), state=state))
    return keeping.load(folder, model) if (folder / keeping.FACTS).is_file() else model


def _check_finite(thing: str, state: dict[str, npt.NDArray[np.generic]]) -> None:
    for key, array in state.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise StateError(f"{thing}: {key}", found="NaN or infinity", allowed="finite numbers", hint="fit the source again")
