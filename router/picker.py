"""Endpoint pickers: which endpoint of a tier already chosen (the ablation of a joint choice).

A picker is a number, `PICKERS[name]`, and `pick` is the one kernel that knows them all: plain
Python for live policies, compiled for the simulator. Each picker only says what an endpoint costs;
that the choice stays in the tier and among the allowed is seen to in one place.

Shape letters: C candidates, T tiers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from router import kernels
from router.types import UnknownPolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query

NO_PICKER = 0
"""The policy's own choice of an endpoint stands."""
JOIN_SHORTEST_QUEUE = 1
POWER_OF_TWO = 2
LEAST_WORK_LEFT = 3
PREFILL_DECODE = 4
ROUND_ROBIN = 5
RANDOM = 6

PICKERS: Final[Mapping[str, int]] = {
    "join-shortest-queue": JOIN_SHORTEST_QUEUE,
    "power-of-two": POWER_OF_TWO,
    "least-work-left": LEAST_WORK_LEFT,
    "prefill-decode": PREFILL_DECODE,
    "round-robin": ROUND_ROBIN,
    "random": RANDOM,
}
"""Number of each picker by name."""


class UnknownPickerError(UnknownPolicyError):
    """A picker's name is not known; the message lists the known ones."""

    def __init__(self, name: str) -> None:
        """Keeps the name asked for."""
        super().__init__(name, tuple(PICKERS))

    def __str__(self) -> str:
        """Names the picker and the known ones."""
        return f"unknown endpoint picker {self.name!r}; known: {', '.join(self.known)}"


def prefill_decode_cost_s(
    fleet: FleetArrays, load: LoadArrays, query: Query, out_C: NDArray[np.float64]
) -> None:
    """Computes what a request would cost all requests together on each candidate, in seconds.

    After the mixing impact of arXiv 2408.13510: a router that only looks for the shortest wait
    puts long prompts beside many sequences that decode, all of which its prefill holds up. With n
    sequences on the device, of which n_c on the candidate's tier, p and o prompt and output tokens:

        own latency   waiting prompts + p x prompt_c + o x cycle
        cycle         sum over tiers with work, and c, of step + sequence x batch
        others' delay n x (p x prompt_c + o x (sequence_c, and step_c if n_c = 0))

    What runs is taken to run as long as this request: with long-tailed outputs the tokens still
    predicted of an old sequence say little. The weights are those of the sum of latencies, so
    there is nothing to fit; the paper fits its own by regression.
    """
    for c in range(len(fleet.tier_C)):
        new_tokens = query.prompt_tokens - fleet.cached_C[c]
        prompt_s = new_tokens * fleet.per_prompt_token_s_C[c]
        waiting_s = 0.0
        cycle_s = 0.0
        sequences = 0.0
        for j in fleet.peers_CP[c]:
            if j < 0:
                break
            running = load.in_flight_C[j]
            sequences += running
            waiting_s += load.waiting_prompt_tokens_C[j] * fleet.per_prompt_token_s_C[j]
            if j == c:
                running += 1.0
            if running > 0.0:
                batch = min(running, fleet.max_batch_C[j])
                cycle_s += fleet.step_s_C[j] + fleet.per_sequence_s_C[j] * batch
        added_s = fleet.per_sequence_s_C[c]
        if load.in_flight_C[c] <= 0.0:
            added_s += fleet.step_s_C[c]
        out_C[c] = fleet.overhead_s_C[c] + waiting_s + prompt_s + query.output_tokens * cycle_s
        out_C[c] += sequences * (prompt_s + query.output_tokens * added_s)


def pick(
    picker: int,
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    tier: int,
    last_T: NDArray[np.int64],
    draw: float,
    out_C: NDArray[np.float64],
) -> int:
    """Returns the allowed candidate of `tier` that a picker takes, -1 if there is none.

    Args:
        picker: one of `PICKERS`.
        fleet: candidates.
        load: outstanding load.
        allowed_C: candidates the request may go to.
        query: the request.
        tier: index of the tier chosen.
        last_T: last candidate taken of each tier, -1 at first; brought up to date.
        draw: uniform random number in [0, 1) of this choice alone.
        out_C: scratch; ends as the score of each candidate, -inf outside the choice.
    """
    count = len(fleet.tier_C)
    if picker == LEAST_WORK_LEFT:
        kernels.device_backlog_s(fleet, load, out_C)
    elif picker == PREFILL_DECODE:
        prefill_decode_cost_s(fleet, load, query, out_C)
    else:  # the queue's length; the two others below do without
        for c in range(count):
            out_C[c] = load.in_flight_C[c]
    members = 0
    for c in range(count):
        if fleet.tier_C[c] == tier and allowed_C[c]:
            members += 1
    # One uniform number names an ordered pair of different members.
    first, second = -1, -1
    if members > 0 and picker in (POWER_OF_TWO, RANDOM):
        pair = int(draw * members * max(1, members - 1))
        first = pair % members
        second = (first + 1 + pair // members) % members
        if picker == RANDOM:
            second = first
    index = 0
    for c in range(count):
        cost = out_C[c]
        out_C[c] = -math.inf
        if fleet.tier_C[c] != tier or not allowed_C[c]:
            continue
        if picker == ROUND_ROBIN:
            cost = (c - last_T[tier] - 1) % count
        if first < 0 or index in (first, second):
            out_C[c] = -cost
        index += 1
    row = kernels.best_allowed(out_C, allowed_C)
    if row >= 0:
        last_T[tier] = row
    return row


class Picker:
    """A picker by name."""

    def __init__(self, name: str) -> None:
        """Raises UnknownPickerError naming the known pickers."""
        if name not in PICKERS:
            raise UnknownPickerError(name)
        self.name = name
        self.number = PICKERS[name]
