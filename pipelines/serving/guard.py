"""Does a release harm whom it answers? Two releases' figures of the same minutes in, reasons out; pure, and closed to numbers that are none.

Units: a user counts once a minute (`tally`), so a robot, or somebody whose requests all fail, is one piece of evidence.

A share (failed, empty, lower rung, same list), of late: users were dealt out at random, so if both releases were alike the hits would
fall on the challenger as drawn from an urn, and the hypergeometric tail is the exact chance of so many (Fisher, The Design of Experiments,
1935). Broken is what is below alpha and above control by more than the margin.

A share since the step began: a user counts many times, so the draw is not that of an urn. Here the whole margin must be exceeded: the chance
of so many hits is below alpha for every share of control that its own count leaves plausible, plus the margin. Half of alpha goes to that
set, half to the tail: the p-value is the largest over a confidence set of the nuisance parameter (Berger, Boos, J. Am. Stat. Assoc. 89, 1994),
with Clopper and Pearson's bound (Biometrika 26, 1934) and the binomial tail.

A quantile q of time: above the bound T = (1 + relative) t + absolute, t the highest q-quantile that control's counts leave plausible. If the
challenger's is not above T, no more than 1 - q of its answers are: the binomial tail again, and no form of distribution.

Scores: PSI between the two histograms, above its limit and above what chance does to two equal samples (`evaluation.psi`), a list
counting as one row however many items it has.

Clicks: the share of answers that were clicked, users in buckets as units, linearised as the ratio that it is (`evaluation.two_sample`).
Broken where the always-valid interval of challenger - (1 - margin) control lies below 0 (`evaluation.sequential`): it may be looked at as often as
one likes, so a step's whole share of alpha is one test's. The effect that is expected beforehand is a fifth of control's share.

Looks: a step's share of alpha is spent evenly, half of it on its first half hour; and evenly over the tests of a look (Bonferroni). So all of
them together err at most as often as was said, whatever their dependence; it costs little, since tails fall exponentially with the requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any, Final

import numpy as np
from scipy import stats

from pipelines.evaluation import psi, sequential, two_sample
from pipelines.serving.clicks import Sums
from pipelines.serving.tally import EDGES_MS, Figures
from pipelines.serving_policies import RolloutPolicy

SHARES: Final = ("failed", "empty", "lower", "same")
QUANTILES: Final = (0.5, 0.9, 0.99)
WINDOWS: Final = 2  # the whole step, and what is new
EARLY_SECONDS: Final = 1800.0  # of a step, on which half of its alpha is spent
ANSWERS: Final = 0.75  # of alpha, for how the release answers
CLICKS: Final = 0.05  # for what its users do; the rest is kept
MIN_BUCKETS: Final = 50  # with answers, on each side, for a variance
EXPECTED: Final = 0.2  # of control's share of clicks, what a challenger that is worse may lose
TESTS: Final = WINDOWS * (len(SHARES) + len(QUANTILES) + 1)


@dataclass(frozen=True)
class Judgement:
    """What was found.

    Attributes:
        broken: a sentence for each bound that is broken; empty where none is, or nothing can be told.
        figures: what was measured, JSON values.
    """

    broken: tuple[str, ...]
    figures: dict[str, Any]


def alpha(policy: RolloutPolicy, seconds: float, most_seconds: float, steps: int = 1) -> float:
    """Return the rate at which one test may be wrong at a look, so many seconds into a step that lasts `most_seconds` at most."""
    looks = ceil(most_seconds / policy.look_seconds)
    early = min(looks, ceil(EARLY_SECONDS / policy.look_seconds))
    budget = ANSWERS * policy.false_alarm_rate / (steps * TESTS)
    if looks <= early:
        return budget / early
    return budget / 2 / (early if seconds <= EARLY_SECONDS else looks - early)


def judged(challenger: Figures, control: Figures, policy: RolloutPolicy, level: float, *, late: bool, slack: float = 1.0) -> Judgement:
    """Return which bounds a challenger breaks against control.

    Args:
        level: alpha of each test.
        late: the figures are of a window in which a user counts about once.
        slack: times as wide as the policy's bounds.
    """
    broken: list[str] = []
    margins = {
        "failed": policy.max_failed_increase,
        "empty": policy.max_empty_increase,
        "lower": policy.max_lower_increase,
        "same": policy.max_same_increase,
    }
    for name in SHARES:
        of = "pairs" if name == "same" else "requests"
        hits, n, others, m = getattr(challenger, name), getattr(challenger, of), getattr(control, name), getattr(control, of)
        beyond = drawn if late else exceeds
        if beyond(hits, n, others, m, margin=slack * margins[name], level=level):
            broken.append(f"{name}: {hits} of {n}, against {others} of {m}: more than {slack * margins[name]:g} above it")
    for q in QUANTILES:
        bound = slower_than(
            challenger, control, q, relative=slack * policy.max_latency_increase, absolute_ms=slack * policy.max_latency_ms, level=level
        )
        if bound is not None:
            said = f"{challenger.quantile_ms(q):.1f} ms, against {control.quantile_ms(q):.1f} ms"
            broken.append(f"p{100 * q:g} of time: {said}: above the bound of {bound:.1f} ms")
    distance, chance = shifted(challenger, control, level)
    if distance > slack * policy.max_score_psi and distance > chance:
        broken.append(f"scores: PSI {distance:.2f}, above {slack * policy.max_score_psi:g} and above {chance:.2f}, which is chance")
    return Judgement(tuple(broken), {"challenger": said_of(challenger), "control": said_of(control), "score_psi": _finite(distance)})


def clicked(challenger: Sums, control: Sums, policy: RolloutPolicy, level: float) -> str | None:
    """Return in words that users click surely less; None where they do not, or nothing can be told yet.

    Args:
        challenger, control: int64 [buckets, 2], answers and those that were clicked, since the step began.
        level: that the test may be wrong at, over all its looks.
    """
    sides = [side[side[:, 0] > 0].astype(np.float64) for side in (challenger, control)]
    if min(len(side) for side in sides) < MIN_BUCKETS or min(side[:, 0].sum() for side in sides) < policy.click_answers:
        return None
    units = [two_sample.linearised(side[:, 1], side[:, 0]) for side in sides]
    mine, others = (float(side.mean()) for side in units)
    floor = 1 - policy.max_click_loss
    squared, other_squared = (float(side.var(ddof=1)) / len(side) for side in units)
    width = sequential.half_width(squared + floor**2 * other_squared, EXPECTED * others, level)
    if not mine - floor * others + width < 0:
        return None
    answers = [f"{side[:, 1].sum():.0f} of {side[:, 0].sum():.0f} answers" for side in sides]
    said = [f"{text} ({rate:.2%})" for text, rate in zip(answers, (mine, others), strict=True)]
    return f"clicks: {said[0]}, against {said[1]}: surely more than {policy.max_click_loss:.0%} below it, however often one looks"


def drawn(hits: int, n: int, others: int, m: int, *, margin: float, level: float) -> bool:
    """Tell whether a share is above another one by more than a margin, and further than chance deals out; False where either is of nothing.

    >>> drawn(2, 2, 0, 8, margin=0.01, level=0.03)  # both hits among the 2 of 10: 1 in 45
    True
    """
    if n <= 0 or m <= 0 or not hits / n - others / m > margin:
        return False
    return bool(stats.hypergeom.sf(hits - 1, n + m, hits + others, n) < level)


def exceeds(hits: int, n: int, others: int, m: int, *, margin: float, level: float) -> bool:
    """Tell whether a share is above another one by surely more than a margin; False where either is of nothing.

    >>> exceeds(8, 100, 0, 10_000, margin=0.01, level=1e-3), exceeds(1, 20, 0, 10_000, margin=0.01, level=1e-3)
    (True, False)
    """
    if n <= 0 or m <= 0 or not hits > n * margin:
        return False
    plausible = float(stats.beta.ppf(1 - level / 2, others + 1, m - others)) if others < m else 1.0
    return bool(stats.binom.sf(hits - 1, n, min(1.0, plausible + margin)) < level / 2)


def slower_than(challenger: Figures, control: Figures, q: float, *, relative: float, absolute_ms: float, level: float) -> float | None:
    """Return the bound that a challenger's quantile is above, milliseconds; None where it is not, or control has too few answers to say."""
    n, m = int(challenger.latency.sum()), int(control.latency.sum())
    if not n or not m:
        return None
    above = m - np.cumsum(control.latency)[:-1]  # of each edge
    plausible = stats.beta.ppf(1 - level / 2, above + 1, np.maximum(m - above, 1e-9))
    sure = np.flatnonzero(plausible <= 1 - q)
    if not len(sure):
        return None
    bound = float(EDGES_MS[sure[0]] * (1 + relative) + absolute_ms)
    at = int(np.searchsorted(EDGES_MS, bound))  # bins after this one are above it as a whole
    slow = int(challenger.latency[at + 1 :].sum())
    return bound if slow and stats.binom.sf(slow - 1, n, 1 - q) < level / 2 else None


def shifted(challenger: Figures, control: Figures, level: float) -> tuple[float, float]:
    """Return PSI of the standardised scores, and what chance alone exceeds at a level; NaN where one side has none."""
    if not challenger.scores.sum() or not control.scores.sum():
        return float("nan"), float("nan")
    effects = tuple(max(1.0, float(one.scores.sum()) / max(one.requests, 1)) for one in (control, challenger))
    chance = psi.critical_value(control.scores, challenger.scores, level, effects=(effects[0], effects[1]))
    return psi.psi(control.scores, challenger.scores), chance


def said_of(figures: Figures) -> dict[str, Any]:
    """Return figures as JSON values for ledger, report and log."""
    n = max(figures.requests, 1)
    shares = {name: round(getattr(figures, name) / n, 5) for name in ("failed", "empty", "lower")}
    times = {f"p{100 * q:g}_ms": _finite(figures.quantile_ms(q)) for q in QUANTILES}
    return {"requests": figures.requests, **shares, "same": round(figures.same / max(figures.pairs, 1), 5), **times}


def _finite(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
