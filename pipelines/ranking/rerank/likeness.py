"""How alike two items are: by their vectors, or by what the shop says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from pipelines.datasets.interactions import Floats, Ints
from pipelines.errors import ReloopError
from pipelines.ranking.rerank.goods import Goods
from pipelines.rerank_policies import LikenessPolicy

# (j, times, plus, out): writes into out, float32 [m], plus + times x how like each item of a list is to item j of it.
Likeness: TypeAlias = Callable[[int, float, Floats, Floats], None]


def of(goods: Goods, item: Ints, policy: LikenessPolicy) -> Likeness:
    """Return how alike the items of one list are: at most 1, at least -1, a positive semi-definite matrix of which rows are asked.

    By vectors: their cosine, 0 for an item without one. By attributes: `category` for the same category plus `brand` for the
    same brand; what is unknown is like nothing. An item's likeness to itself is not meant.

    Args:
        item: int32 [m], all >= 0.

    Raises:
        ReloopError: the policy compares vectors and the goods have none.
    """
    if policy.by == "vectors":
        if goods.vectors is None:
            raise ReloopError("likeness", found="goods without vectors", allowed=f"those of retriever {policy.source!r}")
        return by_vectors(goods.vectors[item])
    return by_attributes([(goods.category[item], policy.category), (goods.brand[item], policy.brand)])


def by_vectors(vectors: Floats) -> Likeness:
    """Return the inner products of float32 [m, d]: one product of matrix and vector a row asked for."""
    part = np.empty(len(vectors), np.float32)

    def row(j: int, times: float, plus: Floats, out: Floats) -> None:
        np.dot(vectors, vectors[j] * np.float32(times), out=part)
        np.add(plus, part, out=out)

    return row


def by_attributes(attributes: list[tuple[Ints, float]]) -> Likeness:
    """Return the summed weights of the attributes, int32 [m] each, in which two items agree; negative codes agree with none."""
    m = len(attributes[0][0])
    known = [(np.where(code < 0, -1 - np.arange(m, dtype=np.int32), code), weight) for code, weight in attributes if weight]
    compared = [(code, code.tolist(), weight) for code, weight in known]
    agrees, part = np.empty(m, np.bool_), np.empty(m, np.float32)
    if not compared:
        return lambda _j, _times, plus, out: np.copyto(out, plus)

    def row(j: int, times: float, plus: Floats, out: Floats) -> None:
        for code, of, weight in compared:
            np.equal(code, of[j], agrees)
            np.multiply(agrees, np.float32(weight * times), part)
            np.add(plus, part, out)
            plus = out

    return row
