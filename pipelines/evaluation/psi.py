"""The population stability index: has a column's distribution moved by more than chance?

PSI = sum over bins of (p - q) ln(p / q), p from the reference and q from now. Bins are frozen with
the reference: its quantiles for numbers, its commonest values for categories, and a bin of their
own for missing values. Quantile bins let no outlier hide a shift, which equal-width bins over both
samples do.

Under no change with n reference rows, m current rows and B bins, PSI / (1/n + 1/m) is chi-square
with B - 1 degrees of freedom (Yurdakul 2018, dissertation 3208, Western Michigan University), so a
fixed threshold fires by chance on small samples; `critical_value` says where, `simulated_value` says
it without the approximation. A list column has several values a row, which depend on each other:
the chi-square is then stretched by the mean generalised design effect (Rao and Scott 1981, J. Am.
Stat. Assoc. 76, first-order correction).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from pipelines.errors import StateError

TOP_CATEGORIES: Final = 50
KNOWN_CATEGORIES: Final = 1000  # beyond the top ones, remembered by name so that "other" is told from "unseen"
MIN_EXPECTED: Final = 5.0  # rows expected in a bin of the smaller sample; below it chi-square no longer describes the null
LARGEST: Final = 1e300
BLOCK: Final = 1 << 15  # numbers compared at once: what stays in the cache
DRAWS: Final = 50_000  # of a simulated null, at most

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """One column's frozen bins and how many reference rows fell in each.

    Attributes:
        kind: how values find their bin.
        edges: increasing; bin i holds edges[i - 1] <= value < edges[i], the first and last are open.
        categories: the commonest values, each a bin; then "other", then "unseen".
        others: values that the reference had but that got no bin of their own; "*" where they were too many to remember.
        counts: rows a bin; the last bin is missing values.
        design_effect: rows that are worth one independent one; 1 unless a row of the column is a list.
    """

    kind: Literal["numeric", "categorical"]
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    design_effect: float = 1.0

    @property
    def rows(self) -> int:
        """Return the number of reference rows."""
        return sum(self.counts)

    @property
    def counted(self) -> Counts:
        """Return int64 [n_bins], the counts as an array."""
        return np.asarray(self.counts, dtype=np.int64)

    def like(self, counted: Counts, effect: float = 1.0) -> Reference:
        """Return the same bins with the counts of other rows."""
        return replace(self, counts=tuple(int(n) for n in counted), design_effect=effect)


def _is_list(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column) if _is_list(column) else column


def numeric(column: pa.ChunkedArray) -> bool:
    """Tell whether a column, or what its lists hold, is binned by quantile: integers, floats, decimals; not booleans or times."""
    kind = column.type.value_type if _is_list(column) else column.type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _blocks(column: pa.ChunkedArray) -> Iterator[Numbers]:
    """Yield the numbers of a column, a block at a time; missing is NaN."""
    for chunk in column.chunks:
        values = np.asarray(pc.cast(chunk, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        for first in range(0, len(values), BLOCK):
            yield values[first : first + BLOCK]


def _edges(values: Numbers, bins: int) -> tuple[float, ...]:
    """Return unique quantile edges, or every value where there are no more than `bins` of them."""
    known = np.sort(values[~np.isnan(values)])
    n = len(known)
    if not n:
        return ()
    few = [known[0]]
    while len(few) <= bins and (following := int(np.searchsorted(known, few[-1], side="right"))) < n:
        few.append(known[following])
    edges = np.array(few) if len(few) <= bins else np.unique(known[[-(-n * part // bins) - 1 for part in range(1, bins)]])
    if edges[-1] == known[-1]:  # else a value above everything seen would share the bin of the largest
        edges = np.append(edges, np.nextafter(edges[-1], np.inf))
    return tuple(float(edge) for edge in edges)


def reference(column: pa.ChunkedArray, bins: int) -> Reference:
    """Freeze the bins of a reference column and count its rows."""
    flat = _flat(column)
    if numeric(flat):
        values = np.concatenate([np.zeros(0), *_blocks(flat)])
        blank = Reference(
            "numeric", (), edges=_edges(np.clip(values, -LARGEST, LARGEST), bins)
        )  # infinity is a large number, edges stay JSON
    else:
        found = _commonest(flat)
        if any(n == 1 for _, n in found) and len(column) > 1 and len(found) <= TOP_CATEGORIES + KNOWN_CATEGORIES:
            # Values that come once come and go. Bins chosen by every other row and counted on the rest are as strange to the reference
            # as to any later sample; counted on the rows that chose them they would have nothing unseen, and all that follows would.
            found = _commonest(_flat(_every_other(column, 0)))
            column = _every_other(column, 1)
        names = [name for name, _ in found]
        top, rest = names[:TOP_CATEGORIES], names[TOP_CATEGORIES:]
        # Too many to remember: then nothing can be called unseen, and "other" is everything else.
        blank = Reference("categorical", (), categories=tuple(top), others=tuple(sorted(rest)) if len(rest) <= KNOWN_CATEGORIES else ("*",))
    return blank.like(counts(blank, column), design_effect(blank, column))


def _every_other(column: pa.ChunkedArray, first: int) -> pa.ChunkedArray:
    return column.take(pa.array(np.arange(first, len(column), 2)))


def _commonest(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    names, often = _tally(column)
    found = [(name, n) for name, n in zip(names.to_pylist(), often.tolist(), strict=True) if name is not None]
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))


def _tally(column: pa.ChunkedArray) -> tuple[pa.Array, Counts]:
    """Return the different values of a column as text, and how often each occurs; missing is one of them."""
    found = pc.value_counts(column)
    return pc.cast(found.field("values"), pa.string()), np.asarray(found.field("counts").to_numpy(), dtype=np.int64)


def counts(reference: Reference, column: pa.ChunkedArray) -> Counts:
    """Return how many rows of `column` fall in each bin of the reference; the last bin is missing values.

    Raises:
        StateError: the reference holds numbers and the column does not.
    """
    flat = _flat(column)
    if reference.kind == "numeric":
        _check_numeric(flat)
        below, missing, rows = np.zeros(len(reference.edges), dtype=np.int64), 0, 0
        for block in _blocks(flat):
            # A comparison an edge beats a search a row: nine passes over what is in the cache.
            below += np.array([np.count_nonzero(block < edge) for edge in reference.edges], dtype=np.int64)
            missing += int(np.count_nonzero(block != block))  # noqa: PLR0124 - NaN alone differs from itself
            rows += len(block)
        return np.append(np.diff(below, prepend=0, append=rows - missing), missing).astype(np.int64)
    names, often = _tally(flat)
    place = _category(reference, names)
    return np.bincount(place, weights=often, minlength=len(reference.categories) + 3).astype(np.int64)


def fits(reference: Reference, column: pa.ChunkedArray) -> bool:
    """Tell whether the values of a column can be counted in a reference's bins: numbers in those of numbers, others in those of others."""
    return (reference.kind == "numeric") == numeric(_flat(column))


def _check_numeric(column: pa.ChunkedArray) -> None:
    if not numeric(column):
        raise StateError("drift reference", found=f"a column of type {column.type}", allowed="a number, as in the reference")


def _category(reference: Reference, names: pa.Array) -> npt.NDArray[np.int64]:
    """Return the bin of each text."""
    other = len(reference.categories)
    unknown = other if reference.others == ("*",) else other + 1
    place = np.full(len(names), unknown, dtype=np.int64)
    place[np.asarray(pc.is_in(names, pa.array(reference.others, pa.string())).to_numpy(zero_copy_only=False), dtype=bool)] = other
    own = np.asarray(pc.fill_null(pc.index_in(names, pa.array(reference.categories, pa.string())), -1).to_numpy(), dtype=np.int64)
    place = np.where(own >= 0, own, place)
    place[np.asarray(pc.is_null(names).to_numpy(zero_copy_only=False), dtype=bool)] = other + 2
    return place


def design_effect(reference: Reference, column: pa.ChunkedArray) -> float:
    """Return how many values of a list column are worth one independent value; 1 for a column of single values.

    The mean generalised design effect: n / (B - 1) * sum over bins of V_b / p_b, with V_b the linearised variance of the share p_b when
    whole rows are drawn (Rao and Scott 1981). Never below 1.
    """
    if not _is_list(column) or len(column) < 2:
        return 1.0
    flat, owner = pc.list_flatten(column), np.asarray(pc.list_parent_indices(column).to_numpy(), dtype=np.int64)
    n = len(flat)
    if reference.kind == "numeric":
        _check_numeric(flat)
        values = np.concatenate([np.zeros(0), *_blocks(flat)])
        place = np.where(np.isnan(values), len(reference.edges) + 1, np.searchsorted(np.asarray(reference.edges), values, side="right"))
    else:
        place = _category(reference, pc.cast(flat, pa.string()).combine_chunks())
    width = int(place.max(initial=0)) + 1
    key, times = np.unique(owner * width + place, return_counts=True)
    row, bin_ = np.divmod(key, width)
    length = np.bincount(owner, minlength=len(column)).astype(np.float64)
    total = np.bincount(place, minlength=width).astype(np.float64)
    share = total / max(n, 1)
    squares = np.bincount(bin_, weights=times.astype(np.float64) ** 2, minlength=width)
    products = np.bincount(bin_, weights=times * length[row], minlength=width)
    rows = int((length > 0).sum())
    if rows < 2 or (total > 0).sum() < 2:
        return 1.0
    spread = (squares - 2 * share * products + share**2 * (length**2).sum()) * rows / (rows - 1)
    there = total > 0
    return float(max(1.0, (spread[there] / share[there]).sum() / n / (there.sum() - 1)))


def occupied(before: npt.NDArray[Any], after: npt.NDArray[Any], effect: float = 1.0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Drop bins that both samples left empty and pool those too rare for the chi-square to hold.

    Args:
        effect: design effect, by which rows are worth less.
    """
    if before.shape != after.shape:
        raise StateError("PSI", found=f"{len(after)} bins now", allowed=f"the reference's {len(before)}")
    occupied = (before + after) > 0
    before, after = before[occupied], after[occupied]
    n, m = before.sum(), after.sum()
    rare = (before + after) / max(n + m, 1) * min(n, m) / effect < MIN_EXPECTED
    if rare.sum() < 2:
        return before, after
    return np.append(before[~rare], before[rare].sum()), np.append(after[~rare], after[rare].sum())


def psi(before: Counts, after: Counts, smoothing: float = 0.5) -> float:
    """Return PSI between two samples counted in the same bins; NaN if either is empty.

    A share is (count + smoothing) / (rows + smoothing * bins), so that an empty bin costs a
    bounded amount.
    """
    before, after = occupied(np.asarray(before), np.asarray(after))
    if not (before.sum() > 0 and after.sum() > 0):
        return float("nan")
    return float(_psi(before, after, smoothing))


def _psi(before: npt.NDArray[Any], after: npt.NDArray[Any], smoothing: float) -> Any:
    """Return PSI along the last axis."""
    p, q = (
        (count + smoothing) / (count.sum(axis=-1, keepdims=True) + smoothing * count.shape[-1])
        for count in (before.astype(np.float64), after.astype(np.float64))
    )
    return np.sum((p - q) * np.log(p / q), axis=-1)


def alone(false_alarm_rate: float, n_features: int) -> float:
    """Return the rate at which one of some independent features may alarm, for all together to keep theirs (Sidak 1967)."""
    return float(1.0 - (1.0 - false_alarm_rate) ** (1.0 / max(n_features, 1)))


def critical_value(
    before: Counts, after: Counts, false_alarm_rate: float, n_features: int = 1, effects: tuple[float, float] = (1.0, 1.0)
) -> float:
    """Return the PSI that chance exceeds in `false_alarm_rate` of checks of `n_features` unchanged features.

    Sidak's correction spreads the rate over the features. NaN if either sample is empty.

    Args:
        effects: design effects of the two samples.
    """
    before, after = occupied(np.asarray(before), np.asarray(after), max(effects))
    n, m = before.sum(), after.sum()
    if not (n > 0 and m > 0):
        return float("nan")
    tail = stats.chi2.isf(alone(false_alarm_rate, n_features), max(len(before) - 1, 1))
    return float(tail * (effects[0] / n + effects[1] / m))


def simulated_value(
    before: Counts,
    after: Counts,
    false_alarm_rate: float,
    n_features: int = 1,
    effects: tuple[float, float] = (1.0, 1.0),
    *,
    smoothing: float = 0.5,
    seed: int = 0,
) -> float:
    """Return `critical_value` from draws instead of the chi-square, which is short of the truth where bins are rare.

    Both samples are drawn again and again from their pooled shares, each as many independent rows as its own are worth. NaN if
    either sample is empty.
    """
    before, after = occupied(np.asarray(before), np.asarray(after), max(effects))
    n, m = before.sum(), after.sum()
    if not (n > 0 and m > 0):
        return float("nan")
    rate, pooled = alone(false_alarm_rate, n_features), (before + after) / (n + m)
    draws = min(DRAWS, int(np.ceil(20 / rate)))
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(max(1, round(rows / effect)), pooled, size=draws) for rows, effect in zip((n, m), effects, strict=True)]
    return float(np.quantile(_psi(drawn[0], drawn[1], smoothing), 1 - rate, method="higher"))


def to_json(references: dict[str, Reference]) -> dict[str, Any]:
    """Return a profile as JSON values."""
    return {name: asdict(reference) for name, reference in sorted(references.items())}


def from_json(profile: dict[str, Any]) -> dict[str, Reference]:
    """Read a profile back."""
    return {
        name: Reference(
            kind=entry["kind"],
            counts=tuple(entry["counts"]),
            edges=tuple(entry["edges"]),
            categories=tuple(entry["categories"]),
            others=tuple(entry["others"]),
            design_effect=entry.get("design_effect", 1.0),  # bundles of before there were list columns
        )
        for name, entry in profile.items()
    }
