"""Double DQN that goes on from a good network: an anchor, a state value apart, the own reward.

What one decision changes is some hundredths of a request's quality, the return of a deadline varies
by a hundred times that, and nothing in the data holds the actions that were not taken. So

- the exported network only ranks: A(s, a) = q(s, a) - max over allowed of q(s, .). A network that
  is never exported learns mean V and variance of the rest, as in a dueling network (Wang et al.,
  arXiv 1511.06581), and the target stays that of Double DQN:

      td_target = return + discount * (V_target(s') + A_target(s', argmax of A_online(s', .)))

  A is 0 for the best action whatever the weights, so only other actions, explored ones, speak;
- the reward of the decision itself is known almost without noise, whatever others earn. What the
  action taken earned less than its features promised is a correction of its value as it stands
  (`shortfall_B` of `Transitions`), and tells of wrong costs without any exploration;
- the anchor is a Gaussian prior: the start network's values of all allowed candidates, taken or
  not, count as much as `anchor` transitions of unit spread, whatever number N there are.

    loss = huber((td_target - V - A(s, a)) / deviation(s))
           + (shortfall - (q - q_start)(s, a))^2 / (2 OWN_SPREAD^2)
           + anchor / N * mean over allowed of (q - q_start)^2 / 2

Shape letters: B batch, C candidates, F features, H hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights
from trainer.learning.descent import Descent, State, arrays_of, check_fits, fill, frozen
from trainer.learning.network import he_layer
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.replay import Transitions

OWN_SPREAD = 0.3
"""Standard deviation that the own reward is taken to have: of the size of a miss now and then."""
VALUE_HIDDEN = 32
VALUE_LEARNING_RATE = 1e-3
"""Of the value network, which starts from nothing and is never exported."""
VALUE_SCALE = 10.0
"""Output of the value network that stands for 1: returns run to tens of requests."""
LOG_VARIANCE_SCALE = 5.0
LOG_VARIANCE_RANGE = (-6.0, 8.0)
"""Keeps a state that looks free of noise from outweighing the anchor, and the weights finite."""
OUTLIER = 3.0
"""Standard deviations from which on an error of the return counts linearly."""
_ABSENT = -10.0
"""Below every feature."""


class AnchoredLearner(DoubleDqnLearner):
    """Double DQN that stays near the network it starts from; see the module's docstring."""

    def __init__(
        self, config: LearnerConfig, weights: Weights, *, base_column: int | None = None
    ) -> None:
        """Starts from `weights`, which are the anchor as well.

        Args:
            config: the learner's settings.
            weights: the network to start from.
            base_column: feature that holds the score the network corrects; None: none.
        """
        super().__init__(config, weights, base_column=base_column)
        self._start = frozen(self._q.online)
        self._value = Descent(
            _value_network(weights.feature_count),
            partial(torch.optim.Adam, lr=VALUE_LEARNING_RATE, foreach=True),
            target_rate=config.target_rate,
            gradient_norm_limit=config.gradient_norm_limit,
            names=("value", "value_target"),
        )

    def step(self, batch: Transitions) -> float:
        """Does one gradient step on both networks and returns the loss of the exported one."""
        x_BCF, allowed_BC = torch.from_numpy(batch.x_BCF), torch.from_numpy(batch.allowed_BC)
        td_target_B = self._targets(batch)
        value_B, log_variance_B = state_value(self._value.online, x_BCF, allowed_BC)
        q_BC = self.q_values(self._q.online, x_BCF, allowed_BC)
        chosen_B1 = torch.from_numpy(batch.action_B).unsqueeze(1)
        advantage_B = _advantage(q_BC, allowed_BC).gather(1, chosen_B1).squeeze(1)
        error_B = td_target_B - value_B - advantage_B.detach()
        value_loss = 0.5 * (error_B.square() * torch.exp(-log_variance_B) + log_variance_B).mean()

        deviation_B = torch.exp(0.5 * log_variance_B.detach())
        rest_B = td_target_B - value_B.detach()
        loss = torch.nn.functional.huber_loss(
            advantage_B / deviation_B, rest_B / deviation_B, delta=OUTLIER
        )
        with torch.no_grad():
            start_BC = self.q_values(self._start, x_BCF, allowed_BC)
        moved_BC = (q_BC - start_BC) * allowed_BC
        loss = loss + _own_loss(moved_BC.gather(1, chosen_B1).squeeze(1), batch)
        strength = self._config.anchor / max(1, self.transition_count)
        loss = loss + 0.5 * strength * (moved_BC.square().sum(1) / allowed_BC.sum(1)).mean()
        self._value.step(value_loss)
        return self._q.step(loss)

    def get_state(self) -> State:
        """Returns everything needed to go on, the anchor included, as plain arrays."""
        return super().get_state() | arrays_of(self._start, "start.") | self._value.get_state()

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_state` returned.

        Raises:
            LearnerStateError: a part is missing or has another shape; nothing changes.
        """
        check_fits(self._start, state, "start.")
        self._value.check_state(state)
        super().set_state(state)
        fill(self._start, state, "start.")
        self._value.set_state(state)

    def _targets(self, batch: Transitions) -> Tensor:
        """Returns the targets [B]; see the module's docstring."""
        x_BCF = torch.from_numpy(batch.next_x_BCF)
        allowed_BC = torch.from_numpy(batch.next_allowed_BC)
        with torch.no_grad():
            q_BC = self.q_values(self._q.online, x_BCF, allowed_BC)
            best_B1 = q_BC.masked_fill(~allowed_BC, -torch.inf).argmax(dim=1, keepdim=True)
            later_BC = self.q_values(self._q.target, x_BCF, allowed_BC)
            advantage_B = _advantage(later_BC, allowed_BC).gather(1, best_B1).squeeze(1)
            value_B, _ = state_value(self._value.target, x_BCF, allowed_BC)
            discount_B = torch.from_numpy(batch.discount_B)
            return torch.from_numpy(batch.return_B) + discount_B * (value_B + advantage_B)


def state_value(
    parameters: Mapping[str, Tensor], x_BCF: Tensor, allowed_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns value and log variance of the return in each state [B], from pooled features."""
    allowed_BC1 = allowed_BC.unsqueeze(2)
    total_BF = (x_BCF * allowed_BC1).sum(dim=1)
    mean_BF = total_BF / allowed_BC1.sum(dim=1).clamp_min(1)
    most_BF = x_BCF.masked_fill(~allowed_BC1, _ABSENT).amax(dim=1)
    h_BH = torch.relu(
        torch.cat([mean_BF, most_BF], dim=1) @ parameters["v1"] + parameters["v1_bias"]
    )
    h_BH = torch.relu(h_BH @ parameters["v2"] + parameters["v2_bias"])
    out_B2 = h_BH @ parameters["v3"] + parameters["v3_bias"]
    log_variance_B = (LOG_VARIANCE_SCALE * out_B2[:, 1]).clamp(*LOG_VARIANCE_RANGE)
    return VALUE_SCALE * out_B2[:, 0], log_variance_B


def _own_loss(moved_B: Tensor, batch: Transitions) -> Tensor:
    """Returns the loss of the own rewards; transitions without one add nothing."""
    shortfall_B = torch.from_numpy(batch.shortfall_B)
    known_B = torch.isfinite(shortfall_B)
    error_B = torch.where(known_B, shortfall_B, moved_B.detach()) - moved_B
    return 0.5 * (error_B / OWN_SPREAD).square().mean()


def _advantage(q_BC: Tensor, allowed_BC: Tensor) -> Tensor:
    """Returns the values less the best allowed one."""
    return q_BC - q_BC.masked_fill(~allowed_BC, -torch.inf).amax(dim=1, keepdim=True)


def _value_network(feature_count: int) -> State:
    """Returns a network that says 0 and a wide spread everywhere; the same at every call."""
    rng = np.random.default_rng(0)
    wide = 2.0 / LOG_VARIANCE_SCALE
    return {
        "v1": he_layer(rng, 2 * feature_count, VALUE_HIDDEN),
        "v1_bias": np.zeros(VALUE_HIDDEN, np.float32),
        "v2": he_layer(rng, VALUE_HIDDEN, VALUE_HIDDEN),
        "v2_bias": np.zeros(VALUE_HIDDEN, np.float32),
        "v3": np.zeros((VALUE_HIDDEN, 2), np.float32),
        "v3_bias": np.array([0.0, wide], np.float32),
    }
