"""A conversation's seat: the candidate that served it last, and whether a request stays there.

Requests of one conversation carry all that was said before, so the endpoint that computed it last
may still hold the keys and values of that prefix. There a prompt costs only what is new of it; and
who talks with one tier notices when another one answers. So a request stays on its conversation's
seat unless something forbids it, in this order:

- the seat is closed: its endpoint is gone, or the request may not go there;
- the deadline: it is not expected in time with a fifth of the time to spare (`SURE`), and the
  policy's choice is expected sooner;
- the target: all requests are to go to the smallest tier, and the seat is of another;
- the worth: the policy's choice is worth more by more than a margin, in units of quality. A policy
  with a price says by its scores what a candidate is worth; for others it is quality x P(on time).

How many tokens of a prompt a seat probably has cached is an estimate (`cached_tokens`): caches tell
nobody what they hold.

Kernels in the manner of `router.kernels`. Shape letters: C candidates.
"""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from router import kernels, safety
from router.policies import scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.policies.scores import Query

NOWHERE: Final = -1
"""Row of the seat of a request that has none."""
SURE: Final = 1.25
"""Factor on the prediction with which a seat is expected in time; as for a rescue."""
BLOCK_TOKENS: Final = 16.0
"""Caches keep whole blocks of tokens; this is vLLM's default."""


MARGIN: Final = 0.05
"""Worth that staying may cost unless settings say otherwise, in units of quality."""


class Stay(enum.IntEnum):
    """What became of a request's conversation in its decision."""

    NONE = 0
    """The request names no conversation."""
    NEW = 1
    """Nothing is known of the conversation, or no longer."""
    KEPT = 2
    """It stays on its seat."""
    CLOSED = 3
    """It moves: the seat is gone, or the request may not go there."""
    DEADLINE = 4
    """It moves: the seat is not expected in time."""
    TARGET = 5
    """It moves for the sake of a target."""
    WORTH = 6
    """It moves: the policy's choice is worth more by more than the margin."""


# As whole numbers, which compiled code reads.
NONE, NEW, KEPT, CLOSED, DEADLINE, TARGET, WORTH = (int(stay) for stay in Stay)


class Seat(NamedTuple):
    """Where a conversation was last served, as a decision takes it.

    Attributes:
        row: of the candidate; NOWHERE if there is none in the fleet.
        cached_tokens: prompt tokens it probably has cached, 0 or more.
        margin: worth that staying may cost, in units of quality; below 0, there is nothing to keep.
    """

    row: int = NOWHERE
    cached_tokens: float = 0.0
    margin: float = 0.0


NO_SEAT: Final = Seat()


def cached_tokens(
    kept_tokens: float, prompt_tokens: float, passed_tokens: float, room_tokens: float
) -> float:
    """Returns how many tokens of a prompt a candidate probably has cached.

    As many as the conversation had when it was served last, in whole blocks; at least one token of
    a prompt is always computed. A cache drops what was used longest ago, so what was kept is gone
    once its room has been filled by others.

    Args:
        kept_tokens: prompt and answer of the conversation when it was served there last.
        prompt_tokens: of the request.
        passed_tokens: prompt and answer of all that was served there since.
        room_tokens: the candidate's room for prefixes of requests that have ended; 0 = no cache.
    """
    if passed_tokens + kept_tokens > room_tokens:
        return 0.0
    most = max(0.0, min(kept_tokens, prompt_tokens - 1.0))
    return math.floor(most / BLOCK_TOKENS) * BLOCK_TOKENS


def worth(fleet: FleetArrays, query: Query, predicted_s_C: NDArray[np.float64], c: int) -> float:
    """Returns quality x P(on time) of a candidate, of a soft deadline quality x what is left."""
    slack_s = query.slack_s
    probability = 0.0
    if slack_s > 0.0:
        ratio = predicted_s_C[c] / slack_s
        probability = kernels.logistic(
            scores.ON_TIME_SHARPNESS * (1.0 - scores.ON_TIME_BIAS * ratio)
        )
    share = scores.reward_share(probability, predicted_s_C[c], slack_s, query.soft_decay_s)
    return float(fleet.quality_KC[query.task][c] * share)


def stay(
    fleet: FleetArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    predicted_s_C: NDArray[np.float64],
    score_C: NDArray[np.float64],
    has_price: bool,
    action: int,
    row: int,
    margin: float,
) -> int:
    """Returns what becomes of a conversation that has a seat: KEPT, or why it moves.

    Args:
        fleet: candidates.
        allowed_C: candidates the request may go to.
        query: the request.
        predicted_s_C: predicted time to the deadline's event, seconds.
        score_C: what the policy scores by, in units of quality if it has a price.
        has_price: whether it has.
        action: the policy's choice.
        row: the conversation's seat.
        margin: worth that staying may cost.
    """
    if action == row:
        return KEPT
    if not allowed_C[row]:
        return CLOSED
    is_sure = safety.in_reach(predicted_s_C[row], query.slack_s, SURE)
    if not is_sure and predicted_s_C[row] > predicted_s_C[action]:
        return DEADLINE
    if has_price:
        if query.is_small > 0.0 and fleet.tier_C[row] != fleet.tier_C[action]:
            return TARGET
        gain = score_C[action] - score_C[row]
    else:
        gain = worth(fleet, query, predicted_s_C, action)
        gain -= worth(fleet, query, predicted_s_C, row)
    if gain <= margin:
        return KEPT
    return TARGET if has_price and query.pressure > 0.0 else WORTH
