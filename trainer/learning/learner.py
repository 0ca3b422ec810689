"""Double DQN over candidate rows (Hasselt et al., arXiv 1509.06461), the only user of gradients.

    target = return + discount * Q_target(s', argmax over allowed of Q_online(s', .))

`return` spans a deadline of time and `discount` is by elapsed time (see transition.py). The network
is the one of `router/dqn/network.py`; what is exported is the target network, a long average of the
online one, since action gaps are small against the noise of single steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.snapshot import Weights
from trainer.learning.config import LearnerConfig
from trainer.learning.online.replay import Transitions

Parameters = dict[str, Tensor]
"""Weights by field name of `Weights`."""


class LearnerStateError(ValueError):
    """Saved learner state does not fit this learner."""


def initial_weights(
    feature_count: int,
    hidden_count: int,
    rng: np.random.Generator,
    linear_F: NDArray[np.float32] | None = None,
) -> Weights:
    """Returns random layers (He et al., arXiv 1502.01852) whose output is a linear term.

    That is `linear_F`, nothing unless given: a network that corrects a score starts as that score.
    """

    def he(*shape: int) -> NDArray[np.float32]:
        drawn: NDArray[np.float32] = rng.normal(size=shape).astype(np.float32)
        return drawn * np.float32(np.sqrt(2.0 / shape[0]))

    linear_F = np.zeros(feature_count, np.float32) if linear_F is None else linear_F
    out_H = np.zeros(hidden_count, np.float32)
    return Weights(
        he(feature_count, hidden_count),
        np.zeros(hidden_count, np.float32),
        he(2 * hidden_count, hidden_count),
        np.zeros(hidden_count, np.float32),
        np.concatenate([out_H, linear_F]).astype(np.float32),
        np.float32(0.0),
    )


def forward(
    p: Mapping[str, Tensor], x_BCF: Tensor, allowed_BC: Tensor, base_column: int | None = None
) -> Tensor:
    """Returns q_BC: the batched, differentiable twin of `network.q_values`, not masked.

    Args:
        p: weights by name.
        x_BCF: features.
        allowed_BC: candidates allowed.
        base_column: feature that holds the score the network corrects; None: it corrects nothing.
    """
    hidden = p["b1_H"].shape[0]
    h_BCH = torch.relu(x_BCF @ p["w1_FH"] + p["b1_H"])
    open_BC = allowed_BC.to(x_BCF.dtype)
    count_B1 = open_BC.sum(dim=1, keepdim=True).clamp_min(1.0)
    g_BH = (open_BC.unsqueeze(2) * h_BCH).sum(dim=1) / count_B1
    context_BH = g_BH @ p["w2_GH"][hidden:] + p["b2_H"]
    z_BCH = torch.relu(h_BCH @ p["w2_GH"][:hidden] + context_BH.unsqueeze(1))
    q_BC = z_BCH @ p["w3_P"][:hidden] + x_BCF @ p["w3_P"][hidden:] + p["b3"]
    return q_BC if base_column is None else q_BC + x_BCF[:, :, base_column]


def double_dqn_targets(
    online: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    return_B: Tensor,
    discount_B: Tensor,
    next_x_BCF: Tensor,
    next_allowed_BC: Tensor,
    base_column: int | None = None,
) -> Tensor:
    """Returns the targets y_B; a discount of 0 leaves the return alone."""
    with torch.no_grad():
        q_BC = forward(online, next_x_BCF, next_allowed_BC, base_column)
        best_B1 = q_BC.masked_fill(~next_allowed_BC, -torch.inf).argmax(dim=1, keepdim=True)
        value_BC = forward(target, next_x_BCF, next_allowed_BC, base_column)
        return return_B + discount_B * value_BC.gather(1, best_B1).squeeze(1)


class Learner:
    """Online and target network, and the optimiser between them."""

    def __init__(
        self,
        config: LearnerConfig,
        weights: Weights,
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
        self._base_column = base_column
        self._config = config
        self._planned_step_count = planned_step_count
        self._online = _parameters(weights, learn=True)
        self._target = _parameters(weights, learn=False)
        self._optimizer = torch.optim.Adam(
            list(self._online.values()), lr=config.learning_rate, foreach=True
        )
        self.step_count = 0

    def step(self, batch: Transitions) -> float:
        """Does one gradient step and returns the loss."""
        config = self._config
        self._schedule()
        x_BCF = torch.from_numpy(batch.x_BCF)
        allowed_BC = torch.from_numpy(batch.allowed_BC)
        target_B = double_dqn_targets(
            self._online,
            self._target,
            torch.from_numpy(batch.return_B),
            torch.from_numpy(batch.discount_B),
            torch.from_numpy(batch.next_x_BCF),
            torch.from_numpy(batch.next_allowed_BC),
            self._base_column,
        )
        action_B1 = torch.from_numpy(batch.action_B).unsqueeze(1)
        q_BC = forward(self._online, x_BCF, allowed_BC, self._base_column)
        chosen_B = q_BC.gather(1, action_B1).squeeze(1)
        loss = torch.nn.functional.huber_loss(chosen_B, target_B, delta=config.huber_delta)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(self._online.values()), config.gradient_norm_limit)
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._target.values()), list(self._online.values()), config.target_rate
            )
        self.step_count += 1
        return float(loss.detach())

    def weights(self) -> Weights:
        """Returns the target network, to be exported."""
        arrays: dict[str, Any] = {name: t.numpy().copy() for name, t in self._target.items()}
        return Weights(**arrays | {"b3": np.float32(arrays["b3"])})

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns everything needed to go on, as plain arrays."""
        state: dict[str, NDArray[Any]] = {"step_count": np.array(self.step_count, np.int64)}
        for name, online in self._online.items():
            state[f"online.{name}"] = online.detach().numpy().copy()
            state[f"target.{name}"] = self._target[name].numpy().copy()
        return state | optimizer_state(self._optimizer, self._online)

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restores what `get_state` returned.

        Raises:
            LearnerStateError: a part is missing or has another shape; nothing changes.
        """
        for name, online in self._online.items():
            for part in ("online", "target"):
                saved = state.get(f"{part}.{name}")
                if saved is None or saved.shape != tuple(online.shape):
                    raise LearnerStateError(f"saved learner state does not fit: {part}.{name}")
        with torch.no_grad():
            for name, online in self._online.items():
                online.copy_(torch.from_numpy(np.array(state[f"online.{name}"])))
                self._target[name].copy_(torch.from_numpy(np.array(state[f"target.{name}"])))
        restore_optimizer(self._optimizer, self._online, state)
        self.step_count = int(state["step_count"])

    def _schedule(self) -> None:
        """Lets the learning rate fall geometrically over the planned steps."""
        config = self._config
        if not self._planned_step_count:
            return
        done = min(1.0, self.step_count / self._planned_step_count)
        ratio = config.learning_rate_end / config.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * ratio**done


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Parameters
) -> dict[str, NDArray[Any]]:
    """Returns an optimiser's state by `adam.<parameter>.<part>`, as plain arrays."""
    return {
        f"adam.{name}.{part}": value.numpy().copy()
        for name, parameter in parameters.items()
        for part, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Parameters, state: Mapping[str, NDArray[Any]]
) -> None:
    """Restores what `optimizer_state` returned; parameters without a state start afresh."""
    for name, parameter in parameters.items():
        prefix = f"adam.{name}."
        parts = {
            key.removeprefix(prefix): torch.from_numpy(np.array(value))
            for key, value in state.items()
            if key.startswith(prefix)
        }
        if parts:
            optimizer.state[parameter] = parts


def _parameters(weights: Weights, *, learn: bool) -> Parameters:
    return {
        name: torch.tensor(np.asarray(array), dtype=torch.float32, requires_grad=learn)
        for name, array in weights._asdict().items()
    }
