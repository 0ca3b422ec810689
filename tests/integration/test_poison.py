"""Bad policies, each put into a stage with all gates before it left out: the stage stops them."""

from __future__ import annotations

import pytest

from router.dqn.snapshot import REASON_NOT_FINITE, REASON_SCHEMA, SnapshotError
from services.router_inference.policy.trial_counts import REASON_FAULTS
from tests.bench.poison import POISON, SLOW, as_canary, in_shadow, in_shadow_by_the_clock

RATE_RPS = 40.0
pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("name", "shadow", "canary"),
    [
        ("always large", "worse: its choices are worth", "worse: it earns less"),
        ("always small", "worse: its choices are worth", "worse: it earns less"),
        ("flipped signs", "worse: its choices are worth", "worse: it earns less"),
        ("scores overflow", "worse: it failed in", f"router: {REASON_FAULTS}"),
        ("another schema", f"router: {REASON_SCHEMA}", f"router: {REASON_SCHEMA}"),
    ],
)
@pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")
def test_each_stage_stops_it_by_itself(name: str, shadow: str, canary: str) -> None:
    """In shadow before it decides anything, as a canary within its share of the requests."""
    snapshot = POISON[name]()
    assert in_shadow(snapshot, RATE_RPS).how.startswith(shadow)
    found = as_canary(snapshot, RATE_RPS)
    assert found.how.startswith(canary)
    assert found.missed == 0


def test_weights_that_are_no_numbers_are_no_snapshot() -> None:
    """Nobody can write one, and readers check the same."""
    with pytest.raises(SnapshotError) as caught:
        POISON["weights are NaN"]()
    assert caught.value.reason == REASON_NOT_FINITE


def test_one_that_is_slow_stays_in_shadow() -> None:
    """By the machine's clock; as a canary a router stops it (`test_trial.py`)."""
    # A machine a hundred times slower: what counts is then that it takes many times as long.
    found = in_shadow_by_the_clock(POISON[SLOW](), RATE_RPS, times=100.0)
    assert found.how.startswith("worse: a decision takes")


def test_a_good_one_is_stopped_nowhere() -> None:
    """What decides as `price` does is safe to ask, and neither better nor worse than `price`."""
    snapshot = POISON["as `price` (no poison)"]()
    assert in_shadow(snapshot, RATE_RPS).how.startswith("better")
    assert as_canary(snapshot, RATE_RPS).how == ""
