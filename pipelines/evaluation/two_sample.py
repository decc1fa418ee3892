"""What an experiment's arm changed, when other units were in each arm: a metric that is a ratio of sums over units, with intervals.

A metric is `sum(top) / sum(bottom)` over an arm's units: clicks over impressions, converted users over users (`bottom` all ones),
revenue over users. Units are what was assigned (users), never impressions: those of one user are no independent evidence.

A unit's linearised value is R + (top - R bottom) / mean(bottom), R the arm's ratio. Its mean is R and its variance over n is that of R
by the delta method (Deng, Knoblich, Lu, "Applying the delta method in metric analytics", KDD 2018, section 2.2; Cochran, Sampling
Techniques, 1977, 6.3). So means and ratios are compared alike, and adjusted alike (CUPED: Deng, Xu, Kohavi, Walker, "Improving the
sensitivity of online controlled experiments by utilizing pre-experiment data", WSDM 2013, equation 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipelines.errors import ReloopError
from pipelines.evaluation import sequential

Doubles: TypeAlias = npt.NDArray[np.float64]

PLANNED: Final = 10_000  # units an arm, where nobody says
ENOUGH: Final = 355.0  # units an arm for each squared skewness, for a normal mean (Kohavi, Deng, Longbotham, Xu, KDD 2014, section 3.6)


@dataclass(frozen=True)
class Moments:
    """A metric of one arm.

    Attributes:
        n: units.
        mean: the metric; NaN where it cannot be measured.
        variance: of a unit's linearised value; NaN for fewer than two units.
        skewness: of a unit's linearised value; NaN where it was not measured.
    """

    n: int
    mean: float
    variance: float
    skewness: float = float("nan")

    @property
    def squared_error(self) -> float:
        """Return the variance of the metric; NaN where it cannot be told."""
        return self.variance / self.n if self.n > 1 else float("nan")


@dataclass(frozen=True)
class Effect:
    """A treatment's metric less control's. Every number is NaN where it cannot be told, so that `not lower > floor` fails closed.

    Attributes:
        difference, lower, upper: with the interval of a single look (Welch's t).
        error: standard error of the difference.
        p: two-sided, of that single look.
        relative, relative_lower, relative_upper: the difference over control's metric (delta method).
        always_lower, always_upper, always_p: hold however often one looks (`sequential`).
    """

    control: Moments
    treatment: Moments
    difference: float
    error: float
    lower: float
    upper: float
    p: float
    relative: float
    relative_lower: float
    relative_upper: float
    always_lower: float
    always_upper: float
    always_p: float

    @property
    def skewed(self) -> int:
        """Return how many units an arm should have for its tail, where it has fewer; else 0.

        Tails cancel in a difference of arms of one size, so this warns, and decides nothing.
        """
        worst = max((abs(arm.skewness) for arm in (self.control, self.treatment)), default=0.0)
        asked = ENOUGH * worst**2
        return int(np.ceil(asked)) if np.isfinite(asked) and asked > min(self.control.n, self.treatment.n) else 0


def linearised(top: npt.ArrayLike, bottom: npt.ArrayLike | None = None) -> Doubles:
    """Return float64 [n], whose mean is the ratio of the sums and whose variance over n is that ratio's.

    Args:
        top: [n], one a unit.
        bottom: [n], >= 0; None: the metric is a mean over units.

    Raises:
        ReloopError: lengths differ, a value is not finite, or a divisor is negative.
    """
    above = np.asarray(top, dtype=np.float64)
    below = np.ones(len(above)) if bottom is None else np.asarray(bottom, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1:
        raise ReloopError("metric of an arm", found=f"shapes {above.shape} and {below.shape}", allowed="one of each for every unit")
    if not (np.isfinite(above).all() and np.isfinite(below).all() and (below >= 0).all()):
        raise ReloopError("metric of an arm", found="values that are not finite, or divisors below 0", allowed="a number for every unit")
    whole = float(below.mean()) if len(below) else 0.0
    if not whole > 0:
        return np.full(len(above), np.nan)
    ratio = float(above.mean()) / whole
    return np.asarray(ratio + (above - ratio * below) / whole)


def moments(values: Doubles) -> Moments:
    """Return the moments of linearised values; NaN where there are none, or too few."""
    n = len(values)
    if not n:
        return Moments(0, float("nan"), float("nan"))
    variance = float(values.var(ddof=1)) if n > 1 else float("nan")
    skewness = float(stats.skew(values)) if n > 2 and variance > 0 else float("nan")
    return Moments(n, float(values.mean()), variance, skewness)


def compare(control: Moments, treatment: Moments, *, confidence: float = 0.95, planned: int = PLANNED) -> Effect:
    """Return what a treatment did.

    Args:
        confidence: of all intervals, two-sided.
        planned: units an arm for which the always-valid interval is tightest; said before the experiment began.

    Raises:
        ReloopError: the confidence is not between 0 and 1, or no units were planned.
    """
    if not 0 < confidence < 1 or not planned > 0:
        raise ReloopError("experiment", found=f"confidence {confidence}, {planned} units planned", allowed="between 0 and 1; above 0")
    difference, squared = treatment.mean - control.mean, control.squared_error + treatment.squared_error
    error = float(np.sqrt(squared)) if squared >= 0 else float("nan")
    reach = float(stats.t.ppf((1 + confidence) / 2, _freedom(control, treatment))) * error if error > 0 else float("nan")
    p = float(2 * stats.t.sf(abs(difference) / error, _freedom(control, treatment))) if error > 0 else float("nan")
    base = control.mean if control.mean > 0 else float("nan")
    lift = difference / base
    lift_error = float(np.sqrt(treatment.squared_error + (1 + lift) ** 2 * control.squared_error)) / base if error > 0 else float("nan")
    lift_reach = reach / error * lift_error if error > 0 else float("nan")
    tau = sequential.reach_at(control.variance + treatment.variance, planned, 1 - confidence)
    width = sequential.half_width(squared, tau, 1 - confidence)
    return Effect(
        control, treatment, difference, error, difference - reach, difference + reach, p, lift, lift - lift_reach, lift + lift_reach,
        difference - width, difference + width, sequential.p_value(difference, squared, tau),
    )  # fmt: skip


def non_inferior(control: Moments, treatment: Moments, margin: float, *, confidence: float = 0.95, planned: int = PLANNED) -> Effect:
    """Return by how much a treatment exceeds what a guardrail allows: its metric less (1 - margin) times control's.

    Control's metric is scaled before anything is compared, so no ratio is estimated and a bound above 0 says that the loss is less
    than the margin.
    """
    floor = 1 - margin
    scaled = replace(control, mean=floor * control.mean, variance=floor**2 * control.variance)
    return compare(scaled, treatment, confidence=confidence, planned=planned)


def _freedom(control: Moments, treatment: Moments) -> float:
    """Return Welch and Satterthwaite's degrees of freedom (Welch, Biometrika 34, 1947)."""
    parts = [arm.squared_error for arm in (control, treatment)]
    below = sum(part**2 / (arm.n - 1) for part, arm in zip(parts, (control, treatment), strict=True))
    return sum(parts) ** 2 / below if below > 0 else float("nan")


@dataclass(frozen=True)
class Adjusted:
    """Linearised values that were relieved of what was known before the experiment.

    Attributes:
        units: an array an arm; their means are the arms' metrics, less what chance dealt them.
        theta: the coefficient.
        variance_factor: what is left of the variance, 1 - rho^2; 1 where nothing could be taken off.
    """

    units: list[Doubles]
    theta: float
    variance_factor: float


def cuped(values: Sequence[Doubles], before: Sequence[Doubles]) -> Adjusted:
    """Return an arm's values less theta (x - mean x), theta = cov(y, x) / var(x) within arms.

    Args:
        values: linearised values, an array an arm.
        before: the covariate x of each unit, from before it was first shown anything; NaN where the unit is new: it stays as it is.
    """
    known = [np.isfinite(one) for one in before]
    everyone = np.concatenate([one[there] for one, there in zip(before, known, strict=True)]) if before else np.zeros(0)
    as_they_are = Adjusted(list(values), 0.0, 1.0)
    if len(everyone) < 3:
        return as_they_are
    crossed = squared = 0.0
    for y, x, there in zip(values, before, known, strict=True):
        if there.any():
            lean = x[there] - x[there].mean()
            crossed += float(lean @ (y[there] - y[there].mean()))
            squared += float(lean @ lean)
    if not squared > 0 or not np.isfinite(crossed):
        return as_they_are
    theta, centre = crossed / squared, float(everyone.mean())
    adjusted = [y - theta * np.where(there, x - centre, 0.0) for y, x, there in zip(values, before, known, strict=True)]
    whole = sum(float(((y - y.mean()) ** 2).sum()) for y in values)
    left = sum(float(((y - y.mean()) ** 2).sum()) for y in adjusted)
    return Adjusted(adjusted, theta, left / whole if whole > 0 else 1.0)
