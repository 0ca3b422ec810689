"""Endpoint pickers: which endpoint of a tier already chosen (the ablation of a joint choice).

Each picker is a kernel `(fleet, load, allowed_C, tier, prompt_tokens, output_tokens, draws, out_C)`
that scores the candidates of one tier; the highest allowed score wins, other tiers get -inf.

Shape letters: C candidates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from router import kernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays


def least_outstanding(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    tier: int,
    prompt_tokens: float,
    output_tokens: float,
    draw: float,
    out_C: NDArray[np.float64],
) -> None:
    """Join the shortest queue: fewest requests outstanding on the candidate."""
    for c in range(len(fleet.tier_C)):
        out_C[c] = -load.in_flight_C[c] if fleet.tier_C[c] == tier else -math.inf


def least_work(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    tier: int,
    prompt_tokens: float,
    output_tokens: float,
    draw: float,
    out_C: NDArray[np.float64],
) -> None:
    """Least outstanding work on the candidate's device, all its tiers counted, in seconds."""
    kernels.device_backlog_s(fleet, load, out_C)
    for c in range(len(fleet.tier_C)):
        out_C[c] = -out_C[c] if fleet.tier_C[c] == tier else -math.inf


def power_of_two(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    tier: int,
    prompt_tokens: float,
    output_tokens: float,
    draw: float,
    out_C: NDArray[np.float64],
) -> None:
    """The less loaded of two candidates drawn at random; avoids herding on a stale view."""
    count = 0
    for c in range(len(fleet.tier_C)):
        out_C[c] = -math.inf
        if fleet.tier_C[c] == tier and allowed_C[c]:
            count += 1
    if count == 0:
        return
    # One uniform number names an ordered pair of different candidates.
    pair = int(draw * count * max(1, count - 1))
    first = pair % count
    second = (first + 1 + pair // count) % count
    index = 0
    for c in range(len(fleet.tier_C)):
        if fleet.tier_C[c] == tier and allowed_C[c]:
            if index in (first, second):
                out_C[c] = -load.in_flight_C[c]
            index += 1


def round_robin(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    tier: int,
    prompt_tokens: float,
    output_tokens: float,
    draw: float,
    out_C: NDArray[np.float64],
) -> None:
    """The next candidate in turn: `draw` is the last row chosen (-1 at first)."""
    count = len(fleet.tier_C)
    for c in range(count):
        turn = (c - int(draw) - 1) % count
        out_C[c] = -float(turn) if fleet.tier_C[c] == tier else -math.inf


def prefill_decode(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    tier: int,
    prompt_tokens: float,
    output_tokens: float,
    draw: float,
    out_C: NDArray[np.float64],
) -> None:
    """Least predicted latency plus the delay our prompt causes to what decodes there.

    After the mixing penalty of arXiv 2408.13510: a long prompt holds up every sequence that is
    decoding on the device, so it is charged once per sequence it would delay, relative to them.
    """
    kernels.predict_latency_s(fleet, load, prompt_tokens, output_tokens, out_C)
    for c in range(len(fleet.tier_C)):
        if fleet.tier_C[c] != tier:
            out_C[c] = -math.inf
            continue
        sequences = 0.0
        for j in fleet.peers_CP[c]:
            if j >= 0:
                sequences += load.in_flight_C[j]
        delay_s = prompt_tokens * fleet.per_prompt_token_s_C[c] * sequences
        out_C[c] = -out_C[c] - delay_s / max(1.0, output_tokens)


PICKERS: dict[str, Callable[..., None]] = {
    "least-outstanding": least_outstanding,
    "least-work": least_work,
    "power-of-two": power_of_two,
    "round-robin": round_robin,
    "prefill-decode": prefill_decode,
}


class Picker:
    """A picker by name, with the memory round robin needs."""

    def __init__(self, name: str) -> None:
        """Raises LookupError naming the known pickers."""
        if name not in PICKERS:
            raise LookupError(f"unknown picker {name!r}; known: {', '.join(PICKERS)}")
        self.name = name
        self._kernel = PICKERS[name]
        self._last = -1

    def pick(
        self,
        fleet: FleetArrays,
        load: LoadArrays,
        allowed_C: NDArray[np.bool_],
        tier: int,
        prompt_tokens: float,
        output_tokens: float,
        rng: np.random.Generator,
    ) -> int:
        """Returns the row of an allowed candidate of `tier`, -1 if there is none."""
        draw = float(self._last) if self.name == "round-robin" else float(rng.random())
        out_C = np.zeros(len(allowed_C))
        self._kernel(fleet, load, allowed_C, tier, prompt_tokens, output_tokens, draw, out_C)
        row = kernels.best_allowed(out_C, allowed_C)
        if row >= 0:
            self._last = row
        return row
