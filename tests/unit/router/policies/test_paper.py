"""The paper's policy: its network over the tiers, on the least loaded device."""

from __future__ import annotations

import numpy as np
import pytest

from router.dqn.paper_snapshot import (
    PaperSnapshot,
    PaperWeights,
    feature_names,
    flat,
)
from router.ledger import zero_load
from router.policies import paper, table
from tests.unit.router import fleets
from tests.unit.router.policies.observations import Observation, decide, observation

CATALOG = fleets.catalog()


FLEET = fleets.fleet(2)


def weights(seed: int = 0, hidden: int = 5) -> PaperWeights:
    """Returns random layers for two tasks and three tiers."""
    rng = np.random.default_rng(seed)
    shapes = ((6, hidden), (hidden,), (hidden, 3), (3,))
    return PaperWeights(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def loaded(task: int = 0) -> Observation:
    """Returns an observation of two devices, the first of them loaded."""
    load = zero_load(6)
    load.in_flight_C[:3] = [7.0, 20.0, 3.0]
    load.remaining_output_tokens_C[:3] = [50.0, 90.0, 20.0]
    return observation(load, fleet=FLEET, rate_rps=300.0, task=task)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("seed", range(6))
def test_kernel_is_the_two_layer_network(task: int, seed: int) -> None:
    """Scores are those of relu(x W1 + b1) W2 + b2 on the paper's state, by matrix algebra."""
    seen = loaded(task)
    w1_IH, b1_H, w2_HT, b2_T = weights(seed)
    slots = 2 * FLEET.arrays.max_batch_C[0]
    x_I = [0.0, 0.0, 7 / slots, 20 / slots, 3 / slots, np.log1p(300.0 / paper.RATE_UNIT_RPS)]
    x_I[task] = 1.0
    value_T = np.maximum(np.array(x_I) @ w1_IH + b1_H, 0.0) @ w2_HT + b2_T
    out_C = fleets.compute_scores(
        paper.score,
        seen.fleet.arrays,
        seen.load,
        np.ones(6, np.bool_),
        seen.query,
        flat(weights(seed)),
    )
    np.testing.assert_allclose(out_C, value_T[FLEET.arrays.tier_C], rtol=1e-5, atol=1e-5)


def test_takes_the_best_tier_on_the_idle_device() -> None:
    """The action is a model; the endpoint is the one whose device has the least work."""
    parts = weights()._replace(b2_T=np.array([0.0, 100.0, 0.0], np.float32))
    policy = table.make_policy(
        "dqn-paper", CATALOG, snapshot=PaperSnapshot(parts, feature_names(CATALOG))
    )
    assert decide(policy, loaded()).action == 4


def test_batch_counts_usable_slots_and_is_limited() -> None:
    """A lost endpoint takes its slots with it, and a long queue reads as the limit."""
    load = zero_load(6)
    load.in_flight_C[2] = 32.0
    lost = FLEET.with_availability(np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
    assert paper.tier_batch(FLEET.arrays, load, 2) == pytest.approx(0.25)
    assert paper.tier_batch(lost.arrays, load, 2) == pytest.approx(0.5)
    load.in_flight_C[2] = 1e6
    assert paper.tier_batch(FLEET.arrays, load, 2) == paper.BATCH_LIMIT
