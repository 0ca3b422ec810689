"""The policy of "Learned Best-Effort LLM Serving" (arXiv 2401.07886): its state, action, network.

    x_I = [one-hot task, batch per tier, arrival rate]       the paper's state
    h_H = relu(x_I W1 + b1)
    q_T = h_H W2 + b2                                         one value per model

Stated by the paper: the state's three parts, one action per model, a 2-layer MLP. Our choices: two
layers of weights with one hidden layer between them; a model's batch is all that is outstanding on
its tier over the slots of its usable endpoints; the rate enters by its logarithm; and the request
goes to the endpoint of the tier whose device has the least work (the paper has one queue per
model). The network is tied to its catalog: tasks and tiers are inputs and outputs.

Weights come to the kernel as one flat vector (`flat` in `router.dqn.paper_snapshot`), so that the
simulator needs nothing else for it.

Shape letters: I inputs, H hidden units, K tasks, T tiers, C candidates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from router.dqn.paper_snapshot import POLICY, flat
from router.policies.base import ScorePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from router.dqn.paper_snapshot import PaperSnapshot
    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.base import Entry
    from router.policies.scores import Query, Scratch

RATE_UNIT_RPS = 100.0
"""Our choice: the rate is read as log(1 + rate / 100 req/s)."""

BATCH_LIMIT = 4.0
"""Our choice: a tier's outstanding requests count up to this multiple of its slots."""


def tier_batch(fleet: FleetArrays, load: LoadArrays, tier: int) -> float:
    """Returns what is outstanding on a tier over the slots of its usable endpoints, limited."""
    outstanding = 0.0
    slots = 0.0
    for c in range(len(fleet.tier_C)):
        if fleet.tier_C[c] == tier:
            outstanding += load.in_flight_C[c]
            if fleet.availability_C[c] > 0.0:
                slots += fleet.max_batch_C[c]
    return float(min(BATCH_LIMIT, outstanding / max(1.0, slots)))


def rate_input(rate_rps: float) -> float:
    """Returns the arrival rate as the network reads it."""
    return math.log(1.0 + max(0.0, rate_rps) / RATE_UNIT_RPS)


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Every candidate gets the value of its tier; inside a tier the least backlog wins.

    Parameters: 0 hidden units, 1 tiers, then W1, b1, W2, b2 by rows.
    """
    hidden = int(params_P[0])
    tiers = int(params_P[1])
    tasks = len(fleet.quality_KC)
    rate = rate_input(query.rate_short_rps)
    inputs = tasks + tiers + 1
    b1 = 2 + inputs * hidden
    w2 = b1 + hidden
    b2 = w2 + hidden * tiers
    batch_T = [0.0] * tiers
    value_T = [0.0] * tiers
    for t in range(tiers):
        batch_T[t] = tier_batch(fleet, load, t)
        value_T[t] = params_P[b2 + t]
    for h in range(hidden):
        # The one-hot task picks one row of W1.
        total = params_P[b1 + h] + params_P[2 + query.task * hidden + h]
        for t in range(tiers):
            total += batch_T[t] * params_P[2 + (tasks + t) * hidden + h]
        total += rate * params_P[2 + (tasks + tiers) * hidden + h]
        if total > 0.0:
            for t in range(tiers):
                value_T[t] += total * params_P[w2 + h * tiers + t]
    for c in range(len(fleet.tier_C)):
        # The backlog counts far below any gap between values, far above the rounding of a double.
        s.score_C[c] = value_T[fleet.tier_C[c]] - 1e-9 * min(s.work_s_C[c], 1e3)


class PaperPolicy(ScorePolicy):
    """Takes the tier of the highest Q-value.

    Parameters: none; it needs a snapshot trained for exactly this catalog. Fails: its state names
    no device, no prompt length and no slack, so it treats a loaded device and an idle one, a long
    prompt and a short one alike; other deadlines, profiles or fleet sizes than those trained on go
    unseen; and its discount per request reaches a shorter time the higher the rate is.
    """

    def __init__(
        self, entry: Entry, snapshot: PaperSnapshot, params: Mapping[str, float] | None = None
    ) -> None:
        """Takes its row of the table and a checked snapshot; raises PolicyParameterError."""
        weights = tuple(flat(snapshot.weights).tolist())
        super().__init__(POLICY, entry, params, weights, snapshot.version)
        self._snapshot = snapshot

    @property
    def snapshot(self) -> PaperSnapshot:
        """The snapshot it decides with."""
        return self._snapshot
