"""What features need beside the moment: learnt with a release, and kept in it.

content.npz        the TF-IDF vectors of the items as the arrays of a sparse matrix: data, indices, indptr, shape
encoding.parquet   what categories, brands and items were worth in the newest window (`target_encoding`)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from scipy import sparse

from pipelines import publish
from pipelines.datasets.interactions import Interactions
from pipelines.ranking.target_encoding import Encoding
from pipelines.retrieval.content import Content, tfidf

CONTENT_FILE: Final = "content.npz"
ENCODING_FILE: Final = "encoding.parquet"


@dataclass(frozen=True)
class Memory:
    """What was learnt before the moment at which a feature is asked for.

    Attributes:
        content: float32 [n_items, n_terms], rows of length 1 or 0; in the order of the model's items.
        encoding: of the window before.
    """

    content: sparse.csr_matrix
    encoding: Encoding

    def save(self, folder: Path) -> None:
        """Write both files into a folder that the caller publishes."""
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.content
        with publish.replacing(folder / CONTENT_FILE) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, data=kept.data, indices=kept.indices, indptr=kept.indptr, shape=np.array(kept.shape))
        self.encoding.save(folder / ENCODING_FILE)

    @classmethod
    def load(cls, folder: Path) -> Memory:
        """Read what `save` wrote; the caller has checked the bytes."""
        with np.load(folder / CONTENT_FILE, allow_pickle=False) as arrays:
            shape = tuple(int(size) for size in arrays["shape"])
            content = sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
        return cls(content, Encoding.load(folder / ENCODING_FILE))


def of(known: Interactions, encoding: Encoding) -> Memory:
    """Return what is learnt from what was known at a moment, the encoding given."""
    return Memory(tfidf(known.items, len(known.item_ids), Content().max_items_per_term), encoding)
