"""Fitting the Q-network to paired returns: differences between actions, nothing else.

    loss = mean over decisions, sum over tried actions of
           huber( (q_a - mean of tried q) - (y_a - mean of tried y) ),   q_a = price score + network

The level of a return is the same for every action and would drown the differences; taking both
means off is the advantage normalisation of dueling networks (arXiv 1511.06581) done on the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights
from trainer.learning.learner import (
    LearnerStateError,
    Parameters,
    forward,
    optimizer_state,
    restore_optimizer,
)
from trainer.learning.offline.paired_returns import PairedSamples


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedConfig:
    """How the network is fitted.

    Attributes:
        batch_size: decisions per step.
        average_rate: share of the newest weights that the exported average takes over per step.
        huber_delta: error at which the loss turns linear, in requests' worth. Not small: what a
            decision does to others is rarely much and mostly nothing, and its mean is wanted.
        largest_gap: differences are cut at this many requests' worth; larger ones come from rare
            collapses.
        weight_decay: of AdamW, per unit of the learning rate.
        shrinkage: weight of the mean square of what the network adds to price on the load as
            reckoned, which keeps it at nothing where returns say nothing. Returns are so noisy
            that without it a network is worse than price.
        gradient_norm_limit: longest gradient.
    """

    batch_size: int = 512
    average_rate: float = 0.01
    huber_delta: float = 2.0
    largest_gap: float = 4.0
    weight_decay: float = 0.3
    shrinkage: float = 2.0
    gradient_norm_limit: float = 5.0


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
    """Adam on the paired loss, with an exponential average of the weights for export."""

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
        self._prior_column = prior_column
        self._config = config = config or PairedConfig()
        self._base_column = base_column
        arrays = weights._asdict()
        self._online: Parameters = {
            name: torch.tensor(np.asarray(array), dtype=torch.float32, requires_grad=True)
            for name, array in arrays.items()
        }
        self._average = {name: tensor.detach().clone() for name, tensor in self._online.items()}
        self._optimizer = torch.optim.AdamW(
            list(self._online.values()), lr=2e-3, weight_decay=config.weight_decay, foreach=True
        )
        self.step_count = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def step(self, batch: PairedSamples, keep_F: NDArray[np.float32] | None = None) -> float:
        """Does one gradient step and returns the loss; `keep_F` zeroes features it is 0 for."""
        x_BCF = torch.from_numpy(batch.x_BCF)
        base, prior = self._base_column, self._prior_column
        loss = paired_loss(
            self._online,
            x_BCF if keep_F is None else x_BCF * torch.from_numpy(keep_F),
            torch.from_numpy(batch.allowed_BC),
            torch.from_numpy(batch.tried_BC),
            torch.from_numpy(batch.return_BC),
            self._config,
            None if base is None else x_BCF[:, :, base],
            None if prior is None else x_BCF[:, :, prior],
        )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        limit = self._config.gradient_norm_limit
        torch.nn.utils.clip_grad_norm_(list(self._online.values()), limit)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._average.values()),
                list(self._online.values()),
                self._config.average_rate,
            )
        self.step_count += 1
        return float(loss.detach())

    def weights(self) -> Weights:
        """Returns the averaged weights."""
        arrays = {name: tensor.numpy().copy() for name, tensor in self._average.items()}
        w1, b1, w2, b2, w3, b3 = (arrays[name] for name in Weights._fields)
        return Weights(w1, b1, w2, b2, w3, np.float32(b3))

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns everything needed to go on, as plain arrays."""
        state: dict[str, NDArray[Any]] = {"step_count": np.array(self.step_count, np.int64)}
        for name, online in self._online.items():
            state[f"online.{name}"] = online.detach().numpy().copy()
            state[f"average.{name}"] = self._average[name].numpy().copy()
        return state | optimizer_state(self._optimizer, self._online)

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_state` returned; raises LearnerStateError if it does not fit."""
        for name, online in self._online.items():
            saved = state.get(f"online.{name}")
            if saved is None or saved.shape != tuple(online.shape):
                raise LearnerStateError(f"saved learner state does not fit: {name}")
        with torch.no_grad():
            for name, online in self._online.items():
                online.copy_(torch.from_numpy(np.array(state[f"online.{name}"])))
                self._average[name].copy_(torch.from_numpy(np.array(state[f"average.{name}"])))
        restore_optimizer(self._optimizer, self._online, state)
        self.step_count = int(state["step_count"])
