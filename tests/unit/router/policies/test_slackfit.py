"""SlackFit: tiers by their own queue."""

from __future__ import annotations

from router.ledger import zero_load
from tests.unit.router.policies.observations import (
    MARGIN,
    MEDIUM,
    observation,
    tier_chosen,
)


def test_slackfit_goes_down_with_the_endpoints_own_queue() -> None:
    """A queue of large requests that no longer fits sends the next one a tier down."""
    load = zero_load(6)
    load.waiting_prompt_tokens_C[[2, 5]] = 4000.0
    assert tier_chosen("slackfit", observation(load), MARGIN) == MEDIUM
