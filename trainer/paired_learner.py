"""Fitting the Q-network to paired returns: differences between actions, nothing else.

    loss = mean over decisions, sum over tried actions of
           huber( (q_a - mean of tried q) - (y_a - mean of tried y) )

The level of a return is the same for every action and would drown the differences; taking both
means off is the advantage normalisation of dueling networks (arXiv 1511.06581) done on the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights
from trainer.learner import LearnerStateError, Parameters, forward
from trainer.paired import PairedSamples

_LARGEST_GAP = 4.0
"""Differences beyond this many requests' worth are cut: they come from rare collapses."""


def paired_loss(
    parameters: Parameters,
    x_BCF: Tensor,
    allowed_BC: Tensor,
    tried_BC: Tensor,
    return_BC: Tensor,
    huber_delta: float,
) -> Tensor:
    """Returns the loss; see the module's docstring."""
    tried = tried_BC.to(x_BCF.dtype)
    count_B1 = tried.sum(dim=1, keepdim=True).clamp_min(1.0)

    def centred(value_BC: Tensor) -> Tensor:
        mean_B1 = (value_BC * tried).sum(dim=1, keepdim=True) / count_B1
        return (value_BC - mean_B1) * tried

    gap_BC = centred(return_BC).clamp(-_LARGEST_GAP, _LARGEST_GAP)
    q_BC = centred(forward(parameters, x_BCF, allowed_BC))
    loss_BC = torch.nn.functional.huber_loss(q_BC, gap_BC, delta=huber_delta, reduction="none")
    return (loss_BC * tried).sum(dim=1).mean()


class PairedLearner:
    """Adam on the paired loss, with an exponential average of the weights for export."""

    def __init__(
        self,
        weights: Weights,
        *,
        learning_rate: float = 2e-3,
        average_rate: float = 0.01,
        huber_delta: float = 0.5,
        weight_decay: float = 1e-5,
    ) -> None:
        """Starts from `weights`."""
        arrays = weights._asdict()
        self._online: Parameters = {
            name: torch.tensor(np.asarray(array), dtype=torch.float32, requires_grad=True)
            for name, array in arrays.items()
        }
        self._average = {name: tensor.detach().clone() for name, tensor in self._online.items()}
        self._optimizer = torch.optim.AdamW(
            list(self._online.values()), lr=learning_rate, weight_decay=weight_decay, foreach=True
        )
        self._average_rate = average_rate
        self._huber_delta = huber_delta
        self.step_count = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def step(self, batch: PairedSamples) -> float:
        """Does one gradient step and returns the loss."""
        loss = paired_loss(
            self._online,
            torch.from_numpy(batch.x_BCF),
            torch.from_numpy(batch.allowed_BC),
            torch.from_numpy(batch.tried_BC),
            torch.from_numpy(batch.return_BC),
            self._huber_delta,
        )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._online.values()), 5.0)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._average.values()), list(self._online.values()), self._average_rate
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
            for key, value in self._optimizer.state.get(online, {}).items():
                state[f"adam.{name}.{key}"] = value.numpy().copy()
        return state

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
                prefix = f"adam.{name}."
                moments = {
                    key.removeprefix(prefix): torch.from_numpy(np.array(value))
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
                if moments:
                    self._optimizer.state[online] = moments
        self.step_count = int(state["step_count"])
