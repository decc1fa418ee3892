"""Items that mean alike: vectors of a sentence encoder over title, category, brand and attributes; words need not match.

<home>/cache/text_embedding/<encoder identity>/<sha256 of keys>.parquet    vectors by content, of any shop and run:
    text     binary, sha256 of the text
    vector   list of float32
The folder may be deleted at any time; it costs encoding the catalogue once more.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import track

from pipelines import columns as c
from pipelines import publish
from pipelines.datasets.interactions import Bools, Floats, Histories, Interactions
from pipelines.errors import StateError
from pipelines.retrieval import factors, sentence_encoder, topk
from pipelines.retrieval.protocol import Candidates
from pipelines.retrieval.sentence_encoder import SentenceEncoder

AT_ONCE: Final = 4096  # texts encoded, and then published, together: what a killed fit may lose


@dataclass(frozen=True)
class TextEmbedding:
    """Score of an item: the cosine of its vector and the decayed mean of the vectors of what the user met.

    The encoder is needed to fit and not to serve: the state holds vectors. An item without any text has none; one
    without events is proposed like any other.
    State: factor float32 [n_items, n], rows of length 1; known bool [n_items], whether the item has a vector; encoder str [1].

    Attributes:
        encoder: a folder, or a name on the Hugging Face hub (`sentence_encoder.load`); none is set by default.
        prefix: put before each text, where the encoder was trained with one ("passage: ").
        max_tokens: read of each text.
        batch_size: texts encoded together.
        half_life_days: in the history that asks, an event this old counts half.
        num_threads: of the encoder, and of the product of users and items.
    """

    encoder: str = ""
    prefix: str = ""
    max_tokens: int = 128
    batch_size: int = 64
    half_life_days: float = 14.0
    num_threads: int = 2
    state: dict[str, npt.NDArray[np.generic]] | None = field(default=None, repr=False, compare=False)

    def require(self) -> None:
        """Check that an encoder is named and that there is something to run it with.

        Raises:
            StateError: no encoder is set.
            ReloopError: the extra `text` is not installed.
        """
        sentence_encoder.require(self.encoder)

    def fit(self, interactions: Interactions) -> Self:
        """Return a fitted copy that encoded every item."""
        return self.fit_cached(interactions, None)

    def fit_cached(self, interactions: Interactions, cache: Path | None) -> Self:
        """Return what `fit` returns, encoding only texts whose vectors the cache does not hold.

        Raises:
            StateError: no encoder is set, it cannot be loaded, or the cache holds something else.
            ReloopError: the extra `text` is not installed.
        """
        encoder = sentence_encoder.load(self.encoder, max_tokens=self.max_tokens, batch_size=self.batch_size, num_threads=self.num_threads)
        n_items = len(interactions.item_ids)
        text = list(texts(interactions.items, n_items))
        some = np.array([place for place, one in enumerate(text) if one], dtype=np.int64)
        factor = np.zeros((n_items, encoder.n_factors), dtype=np.float32)
        if len(some):
            factor[some] = vectors([self.prefix + text[place] for place in some], encoder, cache)
        known = np.linalg.norm(factor, axis=1) > 0
        return replace(
            self, state={"n_items": np.array([n_items]), "factor": factor, "known": known, "encoder": np.array([encoder.identity])}
        )

    def retrieve(self, histories: Histories, k: int, *, exclude_seen: bool) -> Candidates:
        """Return the items whose texts mean most nearly what the user's history means, its late events first."""
        topk.checked("text_embedding", self.state, histories)
        factor, known = self.item_vectors()
        parts = []
        for _, _, rows in topk.blocks(histories, max(histories.n_items, factor.shape[1])):
            users, told = self.query_vectors(rows)
            found = factors.retrieve(users, factor, known, rows, k, exclude_seen=exclude_seen, num_threads=self.num_threads, told=told)
            parts.append(found)
        return topk.stack(parts, k)

    def item_vectors(self) -> tuple[Floats, Bools]:
        """Return the items' vectors, of length 1, and which items have one."""
        return factors.placed("text_embedding", self.state)

    def query_vectors(self, histories: Histories) -> tuple[Floats, Bools]:
        """Return the users' decayed means, of length 1, and who liked an item that has a vector."""
        topk.checked("text_embedding", self.state, histories)
        factor, known = self.item_vectors()
        users = np.asarray(histories.weighted(factors.faded(histories, self.half_life_days, known)) @ factor)
        size = np.linalg.norm(users, axis=1, keepdims=True)
        return np.divide(users, size, out=np.zeros_like(users), where=size > 0), factors.told_of(histories, known)


def texts(catalogue: pa.Table | None, n_items: int) -> Iterator[str]:
    """Yield what the encoder reads of each item: title, category, brand, then attributes as `name: value`; "" where nothing is known.

    Args:
        catalogue: what is known of each item, with the columns of `profiles.ITEMS`.
    """
    if catalogue is None:
        yield from [""] * n_items
        return
    columns = (catalogue[name].to_pylist() for name in (c.TITLE, c.CATEGORY, c.BRAND, c.ATTRIBUTES))
    for *said, attributes in zip(*columns, strict=True):
        parts = [one.strip() for one in said if one] + [f"{name}: {value}" for name, value in attributes or () if value]
        yield ". ".join(part for part in parts if part)


def vectors(text: list[str], encoder: SentenceEncoder, cache: Path | None) -> Floats:
    """Return float32 [n, n_factors]; those that the cache lacks are encoded and added to it, `AT_ONCE` at a time."""
    digests = [hashlib.sha256(one.encode()).digest() for one in text]
    by_digest = dict(zip(digests, text, strict=True))
    place = {key: row for row, key in enumerate(sorted(by_digest))}
    found = np.zeros((len(place), encoder.n_factors), dtype=np.float32)
    held = np.zeros(len(place), dtype=bool)
    folder = None if cache is None else cache / encoder.identity
    for keys, values in () if folder is None else _cached(folder, pa.array(place, pa.binary()), encoder.n_factors):
        rows = [place[key] for key in keys]
        found[rows], held[rows] = values, True
    lacking = [key for key, row in place.items() if not held[row]]
    chunks = [lacking[first : first + AT_ONCE] for first in range(0, len(lacking), AT_ONCE)]
    silent = len(chunks) < 2 or not sys.stderr.isatty()
    for keys in track(chunks, "Encoding items", console=Console(stderr=True), disable=silent, transient=True):
        values = encoder.encode([by_digest[key] for key in keys])
        found[[place[key] for key in keys]] = values
        if folder is not None:
            table = pa.table(
                {"text": pa.array(keys, pa.binary()), "vector": pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])}
            )
            publish.write_parquet(folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()}.parquet", table)
    return found[[place[key] for key in digests]]


def _cached(folder: Path, wanted: pa.Array, n_factors: int) -> Iterator[tuple[list[bytes], Floats]]:
    """Yield (digests of texts, their vectors) of each file of the cache, those wanted."""
    for file in sorted(folder.glob("[!.]*.parquet")):
        try:
            table = pq.read_table(file)
            table = table.filter(pc.is_in(table["text"], value_set=wanted)).combine_chunks()
            values = table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, n_factors)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise StateError(
                str(file), found=str(error), allowed="vectors of texts", hint="delete the folder; it is only a cache"
            ) from error
        yield table["text"].to_pylist(), values
