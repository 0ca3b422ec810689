"""The guard: the fallback decides exactly when it should, and the reason is counted."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from router.guard import FallbackReason, Guard
from router.ledger import zero_load
from router.policies.table import make_policy
from router.policy import Observation, Policy, observe
from router.types import Decision, Request, Signals
from tests.unit.router import fleets

FALLBACK = make_policy("static-small", fleets.catalog())


class ScriptedPolicy:
    """Answers as a test says: an action and its score, or an error."""

    name = "scripted"
    version = "scripted@1"

    def __init__(self, action: int = 2, score: float = 1.0, error: Exception | None = None) -> None:
        """Keeps the answer."""
        self._action, self._score, self._error = action, score, error

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the scripted answer."""
        if self._error is not None:
            raise self._error
        count = observation.fleet.candidate_count
        return Decision(self._action, [self._score] * count, [0.0] * count, [1.0] * count)


def seen(state_age_s: float = 0.0) -> Observation:
    """Returns an idle observation."""
    fleet = fleets.fleet(1)
    return observe(
        fleet,
        zero_load(3),
        Request(0, 0.4, 100.0, 8.0),
        Signals(1.0, 1.0, state_age_s),
        np.random.default_rng(0),
    )


def guard(policy: Policy | None, schema: str = "") -> Guard:
    """Returns a guard with a 2 s limit on the state's age."""
    return Guard(policy=policy, fallback=FALLBACK, max_state_age_s=2.0, feature_schema=schema)


def decide(guarded: Guard, observation: Observation | None = None) -> Decision:
    """Returns one decision."""
    return guarded.decide(observation or seen(), np.random.default_rng(0))


def test_healthy_policy_decides() -> None:
    """Nothing is counted and no reason is set while all is well."""
    guarded = guard(ScriptedPolicy())
    decision = decide(guarded)
    assert (decision.action, decision.fallback_reason) == (2, "")
    assert sum(guarded.counts.values()) == 0


@pytest.mark.parametrize(
    ("policy", "schema", "age_s", "reason"),
    [
        (None, "", 0.0, FallbackReason.NO_SNAPSHOT),
        (ScriptedPolicy(), "other-schema", 0.0, FallbackReason.SCHEMA_MISMATCH),
        (ScriptedPolicy(), "", 2.5, FallbackReason.STALE_STATE),
        (ScriptedPolicy(), "", float("nan"), FallbackReason.STALE_STATE),
        (ScriptedPolicy(score=float("nan")), "", 0.0, FallbackReason.NOT_FINITE),
        (ScriptedPolicy(score=float("inf")), "", 0.0, FallbackReason.NOT_FINITE),
        (ScriptedPolicy(error=ValueError("broken")), "", 0.0, FallbackReason.POLICY_ERROR),
        (ScriptedPolicy(action=-1), "", 0.0, FallbackReason.BAD_ACTION),
        (ScriptedPolicy(action=99), "", 0.0, FallbackReason.BAD_ACTION),
    ],
)
def test_fallback_decides_and_reason_is_counted(
    policy: Policy | None, schema: str, age_s: float, reason: FallbackReason
) -> None:
    """Each fault hands over to the fallback under its own name."""
    guarded = guard(policy, schema)
    decision = decide(guarded, seen(age_s))
    assert decision.action == 0
    assert decision.fallback_reason == reason.value
    assert guarded.counts[reason.value] == 1
    assert sum(guarded.counts.values()) == 1


def test_closed_candidate_is_not_taken() -> None:
    """A row the request may not go to counts as a bad action."""
    observation = seen()
    observation = dataclasses.replace(observation, allowed_C=[True, True, False])
    decision = decide(guard(ScriptedPolicy(action=2)), observation)
    assert decision.fallback_reason == "bad_action"


def test_the_error_is_kept() -> None:
    """What the policy raised can be read afterwards."""
    error = ValueError("broken")
    guarded = guard(ScriptedPolicy(error=error))
    decide(guarded)
    assert guarded.last_error is error
