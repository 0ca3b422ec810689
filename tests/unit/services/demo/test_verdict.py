"""What the demo says in one sentence."""

from __future__ import annotations

from typing import Any

from services.demo.verdict import best_policy, devices_sentence, verdict

RATES = {"burst_rps": 62.0, "static_large_capacity_rps": 20.0}


def policy(
    in_time: float, performance: float, *, valid: bool = True, offered: int = 10
) -> dict[str, Any]:
    """A policy's part of a report, as far as the sentence needs it."""
    burst = {"offered": offered, "availability": in_time, "performance": performance}
    return {"valid": valid, "phases": {"burst": burst}}


def test_the_policy_that_earned_most_is_named_whichever_it_is() -> None:
    """A learned policy that is behind is named as such."""
    policies = {
        "static-large": policy(0.2, 0.2),
        "price": policy(0.98, 0.84),
        "dqn": policy(0.99, 0.81),
    }
    assert verdict({"policies": policies, **RATES}) == (
        "In the burst of 62 requests/s, 3.1 times what the largest tier alone holds on this"
        " machine, price earned most: 98.0 % in time, performance 0.840; static-large: 20.0 % in"
        " time, performance 0.200; learned (dqn): 99.0 % in time, performance 0.810."
    )


def test_runs_that_are_not_valid_win_nothing_and_are_not_compared_with() -> None:
    """Their figures are not to be used, so no sentence uses them."""
    policies = {
        "static-large": policy(0.2, 0.2, valid=False),
        "price": policy(0.9, 0.7),
        "dqn": policy(1.0, 0.9, valid=False),
    }
    said = verdict({"policies": policies, **RATES})
    assert "price earned most: 90.0 % in time" in said
    assert "static-large" not in said
    assert "learned" not in said
    nobody = {"policies": {"dqn": policy(1.0, 0.9, valid=False)}, **RATES}
    assert verdict(nobody).startswith("No policy has a valid run")


def test_a_burst_without_requests_is_no_win() -> None:
    """There is nothing to be best at."""
    empty: dict[str, Any] = policy(0.0, 0.0, offered=0)
    empty["phases"]["burst"] |= {"availability": None, "performance": None}
    assert best_policy({"dqn": empty}) == ""


def test_devices_are_a_number_or_more_than_was_tried() -> None:
    """What was not found is not said to be a number."""
    found = {"policy": "dqn", "performance": 0.8, "needed": 4, "most_tried": 11}
    assert "static-large would need 4 such devices" in devices_sentence(found)
    assert "need more than 11 such devices" in devices_sentence({**found, "needed": None})
    assert devices_sentence(None) == ""
