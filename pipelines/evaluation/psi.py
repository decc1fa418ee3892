"""The population stability index: has a column's distribution moved by more than chance?

PSI = sum over bins of (p - q) ln(p / q), p from the reference and q from now. Bins are frozen with
the reference: its quantiles for numbers, its commonest values for categories, and a bin of their
own for missing values. Quantile bins let no outlier hide a shift, which equal-width bins over both
samples do. Under no change with n reference rows, m current rows and B bins, PSI / (1/n + 1/m) is
chi-square with B - 1 degrees of freedom (Yurdakul 2018, dissertation 3208, Western Michigan
University), so a fixed threshold fires by chance on small samples; `critical_value` says where.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
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

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """One column's frozen bins and how many reference rows fell in each.

    Attributes:
        kind: how values find their bin.
        edges: increasing; bin i holds edges[i - 1] <= value < edges[i], the first and last are open.
        categories: the commonest values, each a bin; then "other", then "unseen".
        others: values that the reference had but that got no bin of their own.
        counts: rows a bin; the last bin is missing values.
    """

    kind: Literal["numeric", "categorical"]
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of reference rows."""
        return sum(self.counts)

    @property
    def counted(self) -> Counts:
        """Return int64 [n_bins], the counts as an array."""
        return np.asarray(self.counts, dtype=np.int64)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    values = np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    return np.clip(values, -LARGEST, LARGEST)  # infinity is a large number here, and edges stay JSON


def numeric(column: pa.ChunkedArray) -> bool:
    """Tell whether a column is binned by quantile: integers, floats, decimals; not booleans or times."""
    kind = column.type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _edges(values: npt.NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """Return unique quantile edges, or every value where there are no more than `bins` of them."""
    known = values[~np.isnan(values)]
    if not len(known):
        return ()
    unique = np.unique(known)
    edges = unique if len(unique) <= bins else np.unique(np.quantile(known, np.arange(1, bins) / bins, method="inverted_cdf"))
    if edges[-1] == unique[-1]:  # else a value above everything seen would share the bin of the largest
        edges = np.append(edges, np.nextafter(edges[-1], np.inf))
    return tuple(float(edge) for edge in edges)


def reference(column: pa.ChunkedArray, bins: int) -> Reference:
    """Freeze the bins of a reference column and count its rows."""
    if numeric(column):
        blank = Reference("numeric", (), edges=_edges(_numbers(column), bins))
    else:
        found = pc.value_counts(pc.drop_null(pc.cast(column, pa.string()))).to_pylist()
        names = [pair["values"] for pair in sorted(found, key=lambda pair: (-pair["counts"], pair["values"]))]
        top, rest = names[:TOP_CATEGORIES], names[TOP_CATEGORIES:]
        # Too many to remember: then nothing can be called unseen, and "other" is everything else.
        blank = Reference("categorical", (), categories=tuple(top), others=tuple(sorted(rest)) if len(rest) <= KNOWN_CATEGORIES else ("*",))
    return Reference(**{**asdict(blank), "counts": tuple(int(n) for n in counts(blank, column))})


def counts(reference: Reference, column: pa.ChunkedArray) -> Counts:
    """Return how many rows of `column` fall in each bin of the reference; the last bin is missing values."""
    if reference.kind == "numeric":
        if not numeric(column):
            raise StateError("drift reference", found=f"a column of type {column.type}", allowed="a number, as in the reference")
        values = _numbers(column)
        missing = np.isnan(values)
        n_bins = len(reference.edges) + 1
        placed = np.searchsorted(np.asarray(reference.edges), values[~missing], side="right")
        return np.append(np.bincount(placed, minlength=n_bins), missing.sum()).astype(np.int64)
    text = pc.cast(column, pa.string())
    position = pc.index_in(text, pa.array(reference.categories, pa.string()))
    known = np.asarray(position.drop_null().to_numpy(), dtype=np.int64)
    own = np.bincount(known, minlength=len(reference.categories))
    unnamed = pc.drop_null(pc.filter(text, pc.is_null(position)))
    other = (
        len(unnamed) if reference.others == ("*",) else int(pc.sum(pc.is_in(unnamed, pa.array(reference.others, pa.string()))).as_py() or 0)
    )
    return np.concatenate([own, [other, len(unnamed) - other, text.null_count]]).astype(np.int64)


def _occupied(before: Counts, after: Counts) -> tuple[Counts, Counts]:
    """Drop bins that both samples left empty and pool those too rare for the chi-square to hold."""
    if before.shape != after.shape:
        raise StateError("PSI", found=f"{len(after)} bins now", allowed=f"the reference's {len(before)}")
    occupied = (before + after) > 0
    before, after = before[occupied], after[occupied]
    n, m = before.sum(), after.sum()
    rare = (before + after) / max(n + m, 1) * min(n, m) < MIN_EXPECTED
    if rare.sum() < 2:
        return before, after
    return np.append(before[~rare], before[rare].sum()), np.append(after[~rare], after[rare].sum())


def psi(before: Counts, after: Counts, smoothing: float = 0.5) -> float:
    """Return PSI between two samples counted in the same bins; NaN if either is empty.

    A share is (count + smoothing) / (rows + smoothing * bins), so that an empty bin costs a
    bounded amount.
    """
    before, after = _occupied(np.asarray(before), np.asarray(after))
    n, m = before.sum(), after.sum()
    if not (n > 0 and m > 0):
        return float("nan")
    p = (before + smoothing) / (n + smoothing * len(before))
    q = (after + smoothing) / (m + smoothing * len(after))
    return float(np.sum((p - q) * np.log(p / q)))


def critical_value(before: Counts, after: Counts, false_alarm_rate: float, n_features: int = 1) -> float:
    """Return the PSI that chance exceeds in `false_alarm_rate` of checks of `n_features` unchanged features.

    Sidak's correction spreads the rate over the features. NaN if either sample is empty.
    """
    before, after = _occupied(np.asarray(before), np.asarray(after))
    n, m = before.sum(), after.sum()
    if not (n > 0 and m > 0):
        return float("nan")
    alone = 1.0 - (1.0 - false_alarm_rate) ** (1.0 / max(n_features, 1))
    return float(stats.chi2.isf(alone, max(len(before) - 1, 1)) * (1.0 / n + 1.0 / m))


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
        )
        for name, entry in profile.items()
    }
