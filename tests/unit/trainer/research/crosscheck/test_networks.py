"""The library's kind of network under our learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from router.features import FEATURE_COUNT
from trainer.learning.descent import State
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.replay import Transitions
from trainer.research.crosscheck.networks import (
    FlatLearner,
    Network,
    best,
    initial_flat_weights,
    make_learner,
)

torch.set_num_threads(1)

COUNT = 3
OPEN = np.ones(COUNT, np.bool_)


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Returns features of `count` states."""
    return np.random.default_rng(seed).random((count, COUNT, FEATURE_COUNT)).astype(np.float32)


def arrays(seed: int = 1) -> State:
    """Returns a random flat network."""
    return initial_flat_weights(COUNT, np.random.default_rng(seed))._asdict()


def test_it_chooses_what_it_learned_to_be_best() -> None:
    """The choice for one state is that of the batch, and a candidate shut is passed over."""
    learner = FlatLearner(LearnerConfig(), initial_flat_weights(COUNT, np.random.default_rng(1)))
    x_BCF = rows(8)
    tensors = {name: torch.from_numpy(array) for name, array in arrays().items()}
    open_BC = torch.ones(8, COUNT, dtype=torch.bool)
    q_BC = learner.q_values(tensors, torch.from_numpy(x_BCF), open_BC)
    for x_CF, q_C in zip(x_BCF, q_BC.numpy(), strict=True):
        order = np.argsort(q_C)
        assert best(Network.FLAT, arrays(), x_CF, OPEN) == order[-1]
        allowed_C = OPEN.copy()
        allowed_C[order[-1]] = False
        assert best(Network.FLAT, arrays(), x_CF, allowed_C) == order[-2]


def test_places_matter_to_the_flat_network_alone() -> None:
    """Swapping two candidates swaps the shared network's values, and not the flat one's."""
    x_CF, order = rows(1)[0], [1, 0, 2]
    rng = np.random.default_rng(0)
    for kind in Network:
        learner = make_learner(kind, LearnerConfig(), COUNT, rng, 10)
        batch = [torch.from_numpy(x[None]) for x in (x_CF, x_CF[order])]
        tensors = {name: torch.from_numpy(a) for name, a in learner.exported().items()}
        # The shared network starts at zero; any weights will do here.
        tensors = {name: a + 0.1 * torch.rand(a.shape) for name, a in tensors.items()}
        open_BC = torch.ones(1, COUNT, dtype=torch.bool)
        first, second = (learner.q_values(tensors, x, open_BC)[0] for x in batch)
        assert torch.allclose(first[order], second, rtol=1e-4) is (kind is Network.SHARED)


@pytest.mark.parametrize("kind", Network)
def test_both_learn_a_reward_of_the_place(kind: Network) -> None:
    """The best candidate is found where its features say which it is."""
    rng = np.random.default_rng(0)
    learner = make_learner(kind, LearnerConfig(target_rate=0.05, learning_rate=3e-3), COUNT, rng, 0)
    x_BCF = rows(300)
    action_B = rng.integers(COUNT, size=300)
    reward_B = x_BCF[np.arange(300), action_B, 0]
    open_BC, zero_B = np.ones((300, COUNT), np.bool_), np.zeros(300, np.float32)
    batch = Transitions(x_BCF, open_BC, action_B, reward_B, zero_B, x_BCF, open_BC)
    for _ in range(200):
        learner.step(batch)
    exported = learner.exported()
    found = [best(kind, exported, x_CF, OPEN) == x_CF[:, 0].argmax() for x_CF in x_BCF]
    assert np.mean(found) > 0.7
