"""What is known of items and users as tokens: every field becomes words of one vocabulary, so that any catalogue fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines import columns as c
from pipelines.datasets.interactions import Ints

WHOLE = (c.CATEGORY, c.BRAND, c.COUNTRY, c.AGE_BAND)  # fields whose value is one token


def described(known: pa.Table | None, n_rows: int) -> list[list[str]]:
    """Return the tokens of each row, such as `brand=acme` and `title:blue`; none where nothing is known.

    Whole values of category, brand, country and age band, of each attribute, the words of the title,
    and the price by its doubling (`price=2^5` is 32 to 64).

    Args:
        known: rows with some of the columns of `profiles.ITEMS` or `profiles.USERS`.
    """
    found: list[list[str]] = [[] for _ in range(n_rows)]
    if known is None:
        return found
    names = set(known.column_names)
    for name in [name for name in WHOLE if name in names]:
        for row, value in _there(known[name]):
            found[row].append(f"{name}={value}")
    if c.TITLE in names:
        for row, title in _there(known[c.TITLE]):
            found[row] += [f"{c.TITLE}:{word}" for word in dict.fromkeys(str(title).lower().split())]
    if c.ATTRIBUTES in names:
        for row, pairs in _there(known[c.ATTRIBUTES]):
            found[row] += [f"{name}={value}" for name, value in sorted(pairs) if value]
    if c.PRICE in names:
        for row, price in _there(known[c.PRICE]):
            found[row] += [f"{c.PRICE}=2^{int(np.floor(np.log2(price)))}"] if price > 0 else []
    return found


def _there(column: pa.ChunkedArray) -> Iterator[tuple[int, Any]]:
    return ((row, value) for row, value in enumerate(column.to_pylist()) if value is not None)


def vocabulary(rows: list[list[str]], n_tokens: int) -> npt.NDArray[np.str_]:
    """Return the tokens that at least two rows share, the `n_tokens` most frequent of them, sorted."""
    counts = Counter(token for row in rows for token in row)
    shared = sorted((-n, token) for token, n in counts.items() if n > 1)[:n_tokens]
    return np.array(sorted(token for _, token in shared), dtype=np.str_) if shared else np.empty(0, dtype="U1")


def indexed(rows: list[list[str]], words: npt.NDArray[np.str_], width: int) -> Ints:
    """Return int32 [n_rows, width], the place of each row's tokens in the vocabulary plus one, rarest first is not promised; 0 pads.

    Args:
        width: tokens kept of a row, in the order of its fields.
    """
    place = {word: n + 1 for n, word in enumerate(words.tolist())}
    found = np.zeros((len(rows), width), dtype=np.int32)
    for n, row in enumerate(rows):
        known = [place[token] for token in row if token in place][:width]
        found[n, : len(known)] = known
    return found
