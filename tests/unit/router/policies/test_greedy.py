"""Greedy: the best that should make it."""

from __future__ import annotations

from tests.unit.router.policies.observations import (
    MARGIN,
    MEDIUM,
    SMALL,
    observation,
    tier_chosen,
)


def test_greedy_steps_down_for_a_long_prompt() -> None:
    """A prompt that large cannot compute in the slack goes to medium."""
    assert tier_chosen("greedy", observation(prompt_tokens=3500.0), MARGIN) == MEDIUM


def test_greedy_takes_the_fastest_when_nothing_fits() -> None:
    """With less slack than any tier needs, greedy loses the least time."""
    assert tier_chosen("greedy", observation(slack_s=0.001)) == SMALL
