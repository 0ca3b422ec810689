"""Steps down a loss: the slow copy, the limit, what is refused, and how state comes back."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from trainer.learning.descent import Descent, DivergedError, LearnerStateError


def _descent(start: float = 1.0, **changes: Any) -> Descent:
    """Returns the descent of one parameter by plain gradient steps of length 0.1."""
    options: dict[str, Any] = {"target_rate": 0.5, "gradient_norm_limit": 100.0} | changes
    make = options.pop("make", partial(torch.optim.SGD, lr=0.1))
    return Descent({"w": np.array([start], np.float32)}, make, **options)


def _value(parameters: dict[str, torch.Tensor]) -> float:
    return float(parameters["w"].detach()[0])


def test_target_follows_by_its_rate() -> None:
    """Online goes down the loss, target takes over its share of that."""
    descent = _descent()
    assert descent.step(descent.online["w"].sum()) == 1.0
    assert _value(descent.online) == pytest.approx(0.9)
    assert _value(descent.target) == pytest.approx(0.95)
    assert descent.step_count == 1


def test_target_without_a_rate_moves_by_sync_alone() -> None:
    """As in the first DQN: a copy now and then."""
    descent = _descent(target_rate=0.0)
    descent.step(descent.online["w"].sum())
    assert _value(descent.target) == 1.0
    descent.sync()
    assert _value(descent.target) == _value(descent.online)


def test_long_gradients_are_cut() -> None:
    """A step is never longer than the limit times the learning rate."""
    descent = _descent(gradient_norm_limit=2.0)
    descent.step(1000.0 * descent.online["w"].sum())
    assert _value(descent.online) == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_moves_nothing(factor: float) -> None:
    """A loss or gradient that is no number ends the run instead of the weights."""
    descent = _descent(start=2.0)
    with pytest.raises(DivergedError):
        descent.step((factor * descent.online["w"]).square().sum())
    assert (_value(descent.online), _value(descent.target)) == (2.0, 2.0)
    assert descent.step_count == 0


def test_goes_on_from_its_state() -> None:
    """Parameters, copy and the optimiser's memory come back."""
    first = _descent(make=partial(torch.optim.Adam, lr=0.1))
    for _ in range(3):
        first.step(first.online["w"].square().sum())
    second = _descent(start=7.0, make=partial(torch.optim.Adam, lr=0.1))
    second.set_state(first.get_state())
    for each in (first, second):
        each.step(each.online["w"].square().sum())
    assert second.step_count == 4
    assert _value(first.online) == _value(second.online)
    assert _value(first.target) == _value(second.target)


@pytest.mark.parametrize("part", ["online.w", "target.w", "step_count"])
def test_state_that_lacks_a_part_changes_nothing(part: str) -> None:
    """The part is named, and the parameters stay."""
    state = _descent(start=5.0).get_state()
    del state[part]
    descent = _descent()
    with pytest.raises(LearnerStateError, match=part):
        descent.set_state(state)
    assert _value(descent.online) == 1.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("online.w", np.array([1], np.int64)),
        ("online.w", np.array(["1.0"])),
        ("step_count", np.array(-1)),
        ("step_count", np.array([1, 2])),
        ("step_count", np.array(1.5)),
        ("adam.w.step", np.array([1.0, 2.0], np.float32)),
        ("adam.w.step", np.array(-1.0, np.float32)),
        ("adam.w.exp_avg", np.zeros(7, np.float32)),
        ("adam.w.exp_avg_sq", np.zeros(1, np.bool_)),
        ("adam.w.more", np.zeros(1, np.float32)),
    ],
)
def test_a_state_that_no_descent_saved_is_refused(name: str, value: Any) -> None:
    """Types, shapes and counts are checked before anything is taken, the optimizer's too."""
    make = partial(torch.optim.Adam, lr=0.1)
    descent = _descent(make=make)
    descent.step(descent.online["w"].sum())
    state = descent.get_state()
    _descent(make=make).set_state(state)
    with pytest.raises(LearnerStateError):
        _descent(make=make).set_state({**state, name: value})
