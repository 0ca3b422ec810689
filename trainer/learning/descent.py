"""How every network here learns: a step down the loss, its limit, and a slow copy behind it.

The only place with an optimiser. A learner is a loss on top of one or two of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from trainer.learning.network import Parameters

State = dict[str, NDArray[Any]]
"""What a learner goes on from, as plain arrays by name."""


_MOMENTS, _STEP = ("exp_avg", "exp_avg_sq"), "step"
"""What the optimizer keeps of a parameter."""


class LearnerStateError(ValueError):
    """Saved learner state does not fit this learner."""


class DivergedError(ArithmeticError):
    """A loss or its gradient is not finite; no step was taken."""


class Descent:
    """The parameters of one network, the optimiser that moves them, and a slow copy of them.

    Attributes:
        online: what the optimiser moves.
        target: the slow copy: what bootstraps read, and what is exported.
        step_count: steps done.
    """

    def __init__(
        self,
        arrays: Mapping[str, Any],
        make_optimizer: Callable[[Iterable[Tensor]], Optimizer],
        *,
        target_rate: float,
        gradient_norm_limit: float,
        names: tuple[str, str] = ("online", "target"),
    ) -> None:
        """Starts from `arrays`.

        Args:
            arrays: parameters by name.
            make_optimizer: makes the optimiser of these tensors.
            target_rate: share of the online parameters that the target takes over per step; 0: it
                moves by `sync` alone.
            gradient_norm_limit: longest gradient.
            names: of online and target in the saved state.
        """
        self.online: Parameters = {
            name: torch.tensor(np.asarray(array), dtype=torch.float32, requires_grad=True)
            for name, array in arrays.items()
        }
        self.target = frozen(self.online)
        self.step_count = 0
        self._optimizer = make_optimizer(list(self.online.values()))
        self._target_rate = target_rate
        self._gradient_norm_limit = gradient_norm_limit
        self._parts = dict(zip(names, (self.online, self.target), strict=True))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Changes the learning rate from the next step on."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate

    def step(self, loss: Tensor) -> float:
        """Moves online down the loss and target after it; returns the loss.

        Raises:
            DivergedError: loss or gradient is not finite; nothing moved.
        """
        online = list(self.online.values())
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(online, self._gradient_norm_limit)
        value = float(loss.detach())
        if not math.isfinite(value + float(norm)):
            raise DivergedError(f"loss {value}, length of its gradient {float(norm)}")
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.target.values()), online, self._target_rate)
        self.step_count += 1
        return value

    def sync(self) -> None:
        """Makes the target what online is."""
        with torch.no_grad():
            for name, tensor in self.target.items():
                tensor.copy_(self.online[name])

    def exported(self) -> State:
        """Returns the target's parameters as arrays of their own."""
        return arrays_of(self.target)

    def get_state(self) -> State:
        """Returns everything needed to go on."""
        state: State = {"step_count": np.array(self.step_count, np.int64)}
        for part, parameters in self._parts.items():
            state |= arrays_of(parameters, f"{part}.")
        for name, parameter in self.online.items():
            for part, value in self._optimizer.state.get(parameter, {}).items():
                state[f"adam.{name}.{part}"] = value.numpy().copy()
        return state

    def check_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Raises LearnerStateError if a part of `state` is missing or is none that was saved."""
        for part, parameters in self._parts.items():
            check_fits(parameters, state, f"{part}.")
        count = state.get("step_count")
        if count is None or count.shape or count.dtype != np.int64 or count < 0:
            raise LearnerStateError("saved learner state does not fit: step_count")
        for name, parameter in self.online.items():
            moments = dict.fromkeys(_MOMENTS, parameter)
            prefix = f"adam.{name}."
            found = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
            if not found:
                continue
            check_fits({**moments, _STEP: torch.zeros(())}, state, prefix)
            if found != {*_MOMENTS, _STEP} or state[prefix + _STEP] < 0:
                raise LearnerStateError(f"saved learner state does not fit: {prefix}")

    def set_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Goes on from what `get_state` returned; raises as `check_state` does."""
        self.check_state(state)
        for part, parameters in self._parts.items():
            fill(parameters, state, f"{part}.")
        for name, parameter in self.online.items():
            prefix = f"adam.{name}."
            # Parameters without a state start afresh.
            self._optimizer.state[parameter] = {
                key.removeprefix(prefix): torch.from_numpy(np.array(value))
                for key, value in state.items()
                if key.startswith(prefix)
            }
        self.step_count = int(state["step_count"])


def frozen(parameters: Parameters) -> Parameters:
    """Returns a copy that no gradient reaches."""
    return {name: tensor.detach().clone() for name, tensor in parameters.items()}


def arrays_of(parameters: Parameters, prefix: str = "") -> State:
    """Returns parameters as arrays, by their names behind a prefix."""
    return {
        f"{prefix}{name}": tensor.detach().numpy().copy() for name, tensor in parameters.items()
    }


def check_fits(parameters: Parameters, state: Mapping[str, NDArray[Any]], prefix: str = "") -> None:
    """Raises LearnerStateError if an array is missing or has another shape or type."""
    for name, tensor in parameters.items():
        saved = state.get(f"{prefix}{name}")
        if saved is None or saved.shape != tuple(tensor.shape) or saved.dtype != np.float32:
            raise LearnerStateError(f"saved learner state does not fit: {prefix}{name}")


def fill(parameters: Parameters, state: Mapping[str, NDArray[Any]], prefix: str = "") -> None:
    """Copies saved arrays into parameters, by the names that `arrays_of` gives."""
    with torch.no_grad():
        for name, tensor in parameters.items():
            tensor.copy_(torch.from_numpy(np.array(state[f"{prefix}{name}"])))
