"""Tests that may be read every day: the mixture sequential probability ratio test and its confidence sequence.

An estimate d of an effect with variance v, and effects expected to be of the size tau (a priori N(0, tau^2)): the likelihood ratio is

    Lambda = sqrt(v / (v + tau^2)) exp(tau^2 d^2 / (2 v (v + tau^2)))

Under no effect it is a martingale with mean 1, so the chance that it ever reaches 1 / alpha is at most alpha, however often one looks
(Ville 1939; Robbins, Annals of Mathematical Statistics 41, 1970; Johari, Koomen, Pekelis, Walsh, "Always valid inference: continuous monitoring of
A/B tests", Operations Research 70, 2022, equation 11). The effects that it does not reject form an interval that covers the true effect at all looks at once:

    d +- sqrt(v (v + tau^2) / tau^2 (ln((v + tau^2) / v) + 2 ln(1 / alpha)))

v is estimated, so this holds for large samples: ask for some units before the first look. How wide the interval is at which size is decided by
tau, and must be decided before: `reach_at` gives the tau for which it is tightest at a size that was planned (Waudby-Smith, Arbour, Sinha, Kennedy,
Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52, 2024, appendix B.2).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np


def log_likelihood_ratio(difference: float, squared_error: float, tau: float) -> float:
    """Return ln Lambda; NaN where the estimate, its variance or tau cannot be used.

    >>> round(log_likelihood_ratio(2.0, 1.0, 1.0), 4)  # ln(sqrt(1/2)) + 4/4
    0.6534
    """
    if not (np.isfinite(difference) and squared_error > 0 and tau > 0 and np.isfinite(squared_error) and np.isfinite(tau)):
        return float("nan")
    whole = squared_error + tau**2
    return float(0.5 * np.log(squared_error / whole) + tau**2 * difference**2 / (2 * squared_error * whole))


def p_value(difference: float, squared_error: float, tau: float) -> float:
    """Return min(1, 1 / Lambda), an always-valid p-value; NaN where nothing can be told."""
    ratio = log_likelihood_ratio(difference, squared_error, tau)
    return float(np.exp(min(0.0, -ratio))) if np.isfinite(ratio) else float("nan")


def half_width(squared_error: float, tau: float, alpha: float) -> float:
    """Return half the width of the confidence sequence; NaN where nothing can be told."""
    if not (squared_error > 0 and tau > 0 and 0 < alpha < 1 and np.isfinite(squared_error) and np.isfinite(tau)):
        return float("nan")
    whole = squared_error + tau**2
    return float(np.sqrt(squared_error * whole / tau**2 * (np.log(whole / squared_error) + 2 * np.log(1 / alpha))))


def reach_at(variance: float, planned: int, alpha: float) -> float:
    """Return the tau for which the confidence sequence is tightest once the estimate's variance has come down to variance / planned.

    NaN where nothing can be told.
    """
    if not (variance > 0 and np.isfinite(variance) and planned > 0 and 0 < alpha < 1):
        return float("nan")
    doubt = -2 * np.log(alpha)
    return float(np.sqrt(variance / planned * (doubt + np.log1p(doubt))))


def running(p_values: Iterable[float]) -> list[float]:
    """Return the least p-value so far at every look: evidence that was once there does not go away. A look that tells nothing changes nothing."""
    return list(accumulate((1.0 if np.isnan(p) else p for p in p_values), min))
