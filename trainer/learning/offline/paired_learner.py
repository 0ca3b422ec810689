"""Fitting the Q-network to paired returns: differences between actions, nothing else.

    loss = mean over decisions, sum over tried actions of
           huber( (q_a - mean of tried q) - (y_a - mean of tried y) ),   q_a = price score + network

The level of a return is the same for every action and would drown the differences; taking both
means off is the advantage normalisation of dueling networks (arXiv 1511.06581) done on the targets.
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
from trainer.learning.descent import Descent, State
from trainer.learning.network import Parameters, forward
from trainer.learning.offline.config import PairedConfig
from trainer.learning.offline.samples import PairedSamples


def paired_loss(
    parameters: Parameters,
    x_BCF: Tensor,
    allowed_BC: Tensor,
    tried_BC: Tensor,
    return_BC: Tensor,
    config: PairedConfig,
    base_BC: Tensor | None = None,
    prior_BC: Tensor | None = None,
) -> Tensor:
    """Returns the loss; see the module's docstring.

    Args:
        parameters: the network.
        x_BCF: features.
        allowed_BC: candidates allowed.
        tried_BC: candidates whose return was measured.
        return_BC: the returns.
        config: how it is fitted.
        base_BC: the score that the network corrects; None: it corrects none.
        prior_BC: the correction that shrinkage pulls to; None: none at all.
    """
    tried = tried_BC.to(x_BCF.dtype)
    count_B1 = tried.sum(dim=1, keepdim=True).clamp_min(1.0)

    def centred(value_BC: Tensor) -> Tensor:
        mean_B1 = (value_BC * tried).sum(dim=1, keepdim=True) / count_B1
        return (value_BC - mean_B1) * tried

    gap_BC = centred(return_BC).clamp(-config.largest_gap, config.largest_gap)
    correction_BC = centred(forward(parameters, x_BCF, allowed_BC))
    q_BC = correction_BC
    if base_BC is not None:
        q_BC = q_BC + centred(base_BC)
    loss_BC = torch.nn.functional.huber_loss(
        q_BC, gap_BC, delta=config.huber_delta, reduction="none"
    )
    if prior_BC is not None:
        correction_BC = correction_BC - centred(prior_BC)
    loss_BC = loss_BC + config.shrinkage * correction_BC.square()
    return (loss_BC * tried).sum(dim=1).mean()


class PairedLearner:
    """Learns differences between actions from paired returns."""

    def __init__(
        self,
        weights: Weights,
        config: PairedConfig | None = None,
        *,
        base_column: int | None = None,
        prior_column: int | None = None,
    ) -> None:
        """Starts from `weights`.

        Args:
            weights: the network.
            config: how it is fitted; None: the defaults.
            base_column: feature that holds the score the network corrects; None: it corrects none.
            prior_column: feature that holds the correction shrinkage pulls to; None: none.
        """
        self._config = config = config or PairedConfig()
        self._base_column, self._prior_column = base_column, prior_column
        self._q = Descent(
            weights._asdict(),
            partial(torch.optim.AdamW, lr=2e-3, weight_decay=config.weight_decay, foreach=True),
            target_rate=config.average_rate,
            gradient_norm_limit=config.gradient_norm_limit,
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the learning rate from the next step on."""
        self._q.set_learning_rate(learning_rate)

    def step(self, batch: PairedSamples, keep_F: NDArray[np.float32] | None = None) -> float:
        """Does one gradient step and returns the loss; `keep_F` zeroes features it is 0 for."""
        x_BCF = torch.from_numpy(batch.x_BCF)
        base, prior = self._base_column, self._prior_column
        return self._q.step(
            paired_loss(
                self._q.online,
                x_BCF if keep_F is None else x_BCF * torch.from_numpy(keep_F),
                torch.from_numpy(batch.allowed_BC),
                torch.from_numpy(batch.tried_BC),
                torch.from_numpy(batch.return_BC),
                self._config,
                None if base is None else x_BCF[:, :, base],
                None if prior is None else x_BCF[:, :, prior],
            )
        )

    def weights(self) -> Weights:
        """Returns the averaged weights, to be exported."""
        return Weights.of(self._q.exported())

    def get_state(self) -> State:
        """Returns everything needed to go on, as plain arrays."""
        return self._q.get_state()

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_state` returned.

        Raises:
            LearnerStateError: a part is missing or has another shape; nothing changes.
        """
        self._q.set_state(state)
