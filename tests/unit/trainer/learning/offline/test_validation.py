"""What networks are judged by: performance, the availability goal, and harm beside the prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer.learning.offline import validation
from trainer.learning.offline.validation import HARM_COST, Validation

EARNED = {
    "price": ([0.5, 0.5], [1.0, 0.6]),
    "better": ([0.7, 0.7], [1.0, 0.6]),
    "uneven": ([1.0, 0.3], [1.0, 0.6]),
    "late": ([0.5, 0.5], [0.89, 0.6]),
}
"""Performance and availability of policies in two scenarios."""


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Validation:
    """Validation on two scenarios in which policies earn what `EARNED` says."""
    monkeypatch.setattr(
        validation, "earned", lambda spec, _: tuple(np.array(part) for part in EARNED[spec])
    )
    made: Any = Validation
    found: Validation = made(None, "price", ["one", "two"])
    return found


def score(judge: Validation, name: Any) -> float:
    """Returns the score of a policy of `EARNED`."""
    return judge.score(name)


def test_goal_is_no_higher_than_what_price_reaches(judge: Validation) -> None:
    """Where price itself answers 60 %, nobody is charged for the rest."""
    assert judge.price_score == pytest.approx(0.5)
    assert score(judge, "better") == pytest.approx(0.7)


def test_missing_the_goal_costs_twice(judge: Validation) -> None:
    """A tenth of the answers lost in one of two scenarios costs a tenth of performance."""
    assert score(judge, "late") == pytest.approx(0.5 - 2.0 * (0.99 - 0.89) / 2)


def test_what_the_prior_earned_more_is_charged(judge: Validation) -> None:
    """A gain in one scenario does not pay for a loss in another."""
    assert score(judge, "uneven") == pytest.approx(0.65)
    prior: Any = "price"
    assert judge.follow(prior) == pytest.approx(0.5)
    assert score(judge, "uneven") == pytest.approx(0.65 - HARM_COST * 0.2 / 2)
