"""A gate that is asked every week must not promote noise in the long run: each look at a champion spends some of the error.

Decision j of a champion's reign is made at alpha * 6 / (pi^2 j^2), which sums to alpha over any number of looks (union bound), so
it holds however much of the evidence the looks share: windows may be used again. A promotion begins a new reign.
"""

from __future__ import annotations

import math


def spent_alpha(alpha: float, decision: int) -> float:
    """Return the error that decision `decision` (from 1) of a reign may spend; the sum over all of them is `alpha`.

    >>> round(spent_alpha(0.05, 1), 4), round(spent_alpha(0.05, 2), 4)
    (0.0304, 0.0076)
    """
    return alpha * 6.0 / (math.pi**2 * decision**2)
