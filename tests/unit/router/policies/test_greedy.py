"""Greedy: the best that should make it."""

from __future__ import annotations

from router.types import Request
from tests.unit.router.policies.observations import (
    MARGIN,
    MEDIUM,
    SMALL,
    observation,
    tier_chosen,
)


def test_greedy_steps_down_for_a_long_prompt() -> None:
    """A prompt that large cannot compute in the slack goes to medium."""
    assert (
        tier_chosen("greedy", observation(request=Request(0, 0.4, 3500.0, 8.0)), MARGIN) == MEDIUM
    )


def test_greedy_takes_the_fastest_when_nothing_fits() -> None:
    """With less slack than any tier needs, greedy loses the least time."""
    request = Request(0, 0.001, 100.0, 8.0)
    assert tier_chosen("greedy", observation(request=request)) == SMALL
