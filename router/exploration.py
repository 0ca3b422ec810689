"""Exploration: now and then another candidate than the policy's, to learn what that one earns.

A policy that always takes what it likes best learns nothing of the rest. An exploring decision
takes one of the others, each as likely, but only one that is expected in time: P(on time) is the
logistic of the relative slack (`router.kernels.on_time_probability`). With share e and n such
others the policy's own choice has probability 1 - e, each of the others e / n; records carry the
probability of what was taken, which estimates of other policies divide by (inverse propensity).

Shape letters: C candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from router import kernels
from router.policies.scores import ON_TIME_BIAS, ON_TIME_SHARPNESS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_SHARE = 0.05
"""Largest share of decisions that may explore."""
LEAST_ON_TIME = 0.5
"""Lowest P(on time) that may be asked of a candidate that is explored."""


class Exploration(NamedTuple):
    """How much is explored, and where.

    Attributes:
        share: share of decisions that explore, 0 to MOST_SHARE.
        on_time: least P(on time) of a candidate that is explored, LEAST_ON_TIME to 1.
    """

    share: float = 0.0
    on_time: float = 0.95


def others(
    action: int,
    allowed_C: NDArray[np.bool_],
    predicted_s_C: NDArray[np.float64],
    slack_s: float,
    on_time: float,
) -> NDArray[np.int64]:
    """Returns the rows of all candidates but one that are allowed and expected in time.

    Args:
        action: the one left out.
        allowed_C: candidates the request may go to.
        predicted_s_C: predicted time to the deadline's event, seconds.
        slack_s: time left, seconds.
        on_time: least P(on time).
    """
    on_time_C = np.empty(len(allowed_C))
    kernels.on_time_probability(predicted_s_C, slack_s, ON_TIME_BIAS, ON_TIME_SHARPNESS, on_time_C)
    open_C = allowed_C & (on_time_C >= on_time)
    open_C[action] = False
    return np.flatnonzero(open_C)
