"""Double DQN over candidate rows (Hasselt et al., arXiv 1509.06461).

    td_target = return + discount * Q_target(s', argmax over allowed of Q_online(s', .))

`return` spans a deadline of time and `discount` is by elapsed time (see `returns.py`). What
is exported is the target network, a long average of the online one, since action gaps are small
against the noise of single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights
from trainer.learning.descent import Descent, State
from trainer.learning.network import forward
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.replay import Transitions

QFunction = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""From weights by name, x_BCF and allowed_BC to q_BC."""


class NamedArrays(Protocol):
    """The weights of a network, whichever it is."""

    def _asdict(self) -> dict[str, Any]: ...


def double_dqn_targets(
    q_values: QFunction,
    online: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    return_B: Tensor,
    discount_B: Tensor,
    next_x_BCF: Tensor,
    next_allowed_BC: Tensor,
) -> Tensor:
    """Returns the targets [B]; a discount of 0 leaves the return alone."""
    with torch.no_grad():
        q_BC = q_values(online, next_x_BCF, next_allowed_BC)
        best_B1 = q_BC.masked_fill(~next_allowed_BC, -torch.inf).argmax(dim=1, keepdim=True)
        value_BC = q_values(target, next_x_BCF, next_allowed_BC)
        return return_B + discount_B * value_BC.gather(1, best_B1).squeeze(1)


class DoubleDqnLearner:
    """Learns Q-values of whole returns from transitions."""

    def __init__(
        self,
        config: LearnerConfig,
        weights: NamedArrays,
        *,
        planned_step_count: int = 0,
        base_column: int | None = None,
    ) -> None:
        """Starts from `weights`.

        Args:
            config: the learner's settings.
            weights: the network to start from.
            planned_step_count: steps over which the learning rate falls; 0: it never does.
            base_column: feature that holds the score the network corrects; None: none.
        """
        self._config = config
        self._planned_step_count = planned_step_count
        self._base_column = base_column
        self._q = Descent(
            weights._asdict(),
            partial(torch.optim.Adam, lr=config.learning_rate, foreach=True),
            target_rate=config.target_rate,
            gradient_norm_limit=config.gradient_norm_limit,
        )
        self.transition_count = 1
        """Transitions that the batches are drawn from, >= 1."""

    @property
    def step_count(self) -> int:
        """Steps done."""
        return self._q.step_count

    def step(self, batch: Transitions) -> float:
        """Does one gradient step and returns the loss."""
        if self._planned_step_count:
            self._q.set_learning_rate(self._learning_rate())
        td_target_B = double_dqn_targets(
            self.q_values,
            self._q.online,
            self._q.target,
            torch.from_numpy(batch.return_B),
            torch.from_numpy(batch.discount_B),
            torch.from_numpy(batch.next_x_BCF),
            torch.from_numpy(batch.next_allowed_BC),
        )
        x_BCF, allowed_BC = torch.from_numpy(batch.x_BCF), torch.from_numpy(batch.allowed_BC)
        q_BC = self.q_values(self._q.online, x_BCF, allowed_BC)
        chosen_B = q_BC.gather(1, torch.from_numpy(batch.action_B).unsqueeze(1)).squeeze(1)
        delta = self._config.huber_delta
        return self._q.step(torch.nn.functional.huber_loss(chosen_B, td_target_B, delta=delta))

    def q_values(self, p: Mapping[str, Tensor], x_BCF: Tensor, allowed_BC: Tensor) -> Tensor:
        """Returns q_BC: the network that learns, given its weights by name."""
        return forward(p, x_BCF, allowed_BC, self._base_column)

    def exported(self) -> State:
        """Returns the target network's weights by name."""
        return self._q.exported()

    def weights(self) -> Weights:
        """Returns the target network, to be exported."""
        return Weights.of(self.exported())

    def get_state(self) -> State:
        """Returns everything needed to go on, as plain arrays."""
        return self._q.get_state()

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_state` returned.

        Raises:
            LearnerStateError: a part is missing or has another shape; nothing changes.
        """
        self._q.set_state(state)

    def _learning_rate(self) -> float:
        """Returns the learning rate: it falls geometrically over the planned steps."""
        done = min(1.0, self.step_count / self._planned_step_count)
        first, last = self._config.learning_rate, self._config.learning_rate_end
        return float(first * (last / first) ** done)
