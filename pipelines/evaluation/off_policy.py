"""What a policy would have earned, from a log of another one that drew by known probabilities.

A row is one decision: an item shown at a place (item-position model: what an item earns at its place is taken not to depend on the
others of its list). w = pi / mu is how much more often the policy would have shown it than the logger did.

    IPS    mean(w r)                                  (Horvitz, Thompson, JASA 47, 1952)
    SNIPS  sum(w r) / sum(w)                          (Swaminathan, Joachims, "The self-normalized estimator ...", NeurIPS 2015)
    DR     mean(q(pi) + w (r - q(a)))                 (Dudik, Langford, Li, "Doubly robust policy evaluation and learning", ICML 2011)

Intervals are Student's t over users (rows of one user are no independent evidence), SNIPS linearised as the ratio that it is. A log
that hardly ever did what the policy would do says nothing of it: the estimate is refused by the effective sample size
(sum w)^2 / sum w^2 (Kish, Survey sampling, 1965), or where a single row carries too much. The mean of w is 1 if both probabilities are
what they claim to be; where it is not, they are wrong, and nothing is said either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.errors import ReloopError
from pipelines.evaluation.clustered import Change

Doubles: TypeAlias = npt.NDArray[np.float64]

MIN_SHARE: Final = 0.01  # of the rows, that the effective sample size must be
MIN_EFFECTIVE: Final = 1000.0
MAX_WEIGHT: Final = 0.05  # of all weight on one row
MAX_DRIFT: Final = 0.1  # by which the mean weight may differ from 1, if that is by more than `ERRORS` standard errors
ERRORS: Final = 5.0


@dataclass(frozen=True)
class Value:
    """An estimate of what a policy earns a row, with its interval; NaN where it was refused."""

    value: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Valuation:
    """What a log says of a policy.

    Attributes:
        ips, snips, dr: the estimates; `dr` is None without a model of the reward. NaN, all of them, where refused.
        logged: what the logging policy earned, the same way.
        n: rows.
        effective: effective sample size, before any weight was cut, as are the next two.
        mean_weight: about 1.
        largest: share of all weight on one row.
        clipped: share of the rows whose weight was cut.
        refused: why nothing is said; empty where something is.
    """

    ips: Value
    snips: Value
    dr: Value | None
    logged: Value
    n: int
    effective: float
    mean_weight: float
    largest: float
    clipped: float
    refused: tuple[str, ...]


def value(
    reward: npt.ArrayLike,
    wanted: npt.ArrayLike,
    propensity: npt.ArrayLike,
    *,
    users: npt.NDArray[Any] | None = None,
    model: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    clip: float | None = None,
    confidence: float = 0.95,
) -> Valuation:
    """Return what a policy would have earned.

    Args:
        reward: [n], what each row earned.
        wanted: [n], pi: probability with which the policy shows this item at this place.
        propensity: [n], mu > 0: with which the logger did.
        users: [n], whose row it is; None: each its own.
        model: expected rewards [n], [n] of what the policy would show and of what was shown; for DR. It must not have been fitted on these rows.
        clip: the largest weight that is believed; a cut weight biases towards the logger, and its share is told.

    Raises:
        ReloopError: lengths differ, or a number is not finite, or a propensity is not in (0, 1], or `wanted` not in [0, 1].
    """
    r, pi, mu = (np.asarray(given, dtype=np.float64) for given in (reward, wanted, propensity))
    q = None if model is None else tuple(np.asarray(given, dtype=np.float64) for given in model)
    _checked(r, pi, mu, q, users)
    raw = pi / mu
    weight = raw if clip is None else np.minimum(raw, clip)
    # Of the weights as they are: cutting them makes no row more like what the policy would do.
    n, whole, squared = len(r), float(raw.sum()), float((raw**2).sum())
    effective = whole**2 / squared if squared > 0 else 0.0
    largest = float(raw.max(initial=0.0)) / whole if whole > 0 else 1.0
    refused = _refused(raw, effective, largest)
    ones, nothing = np.ones(n), Value(float("nan"), float("nan"), float("nan"))

    def told(top: Doubles, bottom: Doubles) -> Value:
        return nothing if refused else _ratio(top, bottom, users, confidence)

    return Valuation(
        ips=told(weight * r, ones),
        snips=told(weight * r, weight),
        dr=None if q is None else told(q[0] + weight * (r - q[1]), ones),
        logged=_ratio(r, ones, users, confidence) if n else nothing,
        n=n,
        effective=effective,
        mean_weight=float(raw.mean()) if n else float("nan"),
        largest=largest,
        clipped=float((raw > weight).mean()) if n else 0.0,
        refused=refused,
    )


def _refused(raw: Doubles, effective: float, largest: float) -> tuple[str, ...]:
    """Return why a log says nothing of a policy."""
    said, n = [], len(raw)
    if not effective >= MIN_EFFECTIVE:
        said.append(f"effective sample size {effective:,.0f} of {n:,} rows, below {MIN_EFFECTIVE:,.0f}")
    if n and not effective / n >= MIN_SHARE:
        said.append(f"effective sample size is {effective / n:.2%} of the rows, below {MIN_SHARE:.0%}")
    if not largest <= MAX_WEIGHT:
        said.append(f"one row carries {largest:.1%} of the weight, above {MAX_WEIGHT:.0%}")
    off = abs(float(raw.mean()) - 1) if n else 0.0
    if n > 1 and off > MAX_DRIFT and off > ERRORS * float(raw.std(ddof=1)) / np.sqrt(n):
        said.append(
            f"the mean weight is {raw.mean():.2f}, not 1: the policy's probabilities or the logged ones are not what they claim to be"
        )
    return tuple(said)


def _ratio(top: Doubles, bottom: Doubles, users: npt.NDArray[Any] | None, confidence: float) -> Value:
    """Return a ratio of sums with its interval over users."""
    if users is None:
        sums = Change(top, bottom, len(top))
    else:
        _, found = np.unique(users, return_inverse=True)
        cluster = found.ravel()
        sums = Change(np.bincount(cluster, top).astype(np.float64), np.bincount(cluster, bottom).astype(np.float64), len(top))
    error, at = sums.error, sums.value
    reach = float(stats.t.ppf((1 + confidence) / 2, sums.n - 1)) * error if error > 0 else float("nan")
    return Value(at, at - reach, at + reach)


def _checked(r: Doubles, pi: Doubles, mu: Doubles, q: tuple[Doubles, ...] | None, users: npt.NDArray[Any] | None) -> None:
    columns = [r, pi, mu, *(q or ())]
    if len({len(column) for column in columns}) > 1 or (users is not None and len(users) != len(r)):
        raise ReloopError("off-policy log", found=f"columns of {[len(column) for column in columns]} rows", allowed="one length")
    if not all(np.isfinite(column).all() for column in columns):
        raise ReloopError("off-policy log", found="values that are not finite", allowed="a number in every row")
    if not ((mu > 0) & (mu <= 1)).all() or not ((pi >= 0) & (pi <= 1)).all():
        raise ReloopError(
            "off-policy log",
            found="probabilities outside their range",
            allowed="propensities above 0 up to 1, the policy's 0 to 1",
            hint="a row without a propensity was not drawn and cannot be reweighted: leave it out, and say how many",
        )
