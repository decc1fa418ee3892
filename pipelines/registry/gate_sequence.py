"""A gate that is asked every week finds luck in the long run: each look at a champion, or at having none, spends some of the error.

Decision j of a reign is made at alpha * 6 / (pi^2 j^2), which sums to alpha over any number of looks (union bound), so it holds
however much of the evidence the looks share: windows may be used again. A promotion begins a new reign.

What is bounded is the error about users: that these few say what all of them would not. That a champion was trained unluckily, and
is beaten by its equals in truth, is no such error, and is found out by who asks often (docs/decisions/gate.md measures it).
"""

from __future__ import annotations

import math


def spent_alpha(alpha: float, decision: int) -> float:
    """Return the error that decision `decision` (from 1) of a reign may spend; the sum over all of them is `alpha`.

    >>> round(spent_alpha(0.05, 1), 4), round(spent_alpha(0.05, 2), 4)
    (0.0304, 0.0076)
    """
    return alpha * 6.0 / (math.pi**2 * decision**2)
