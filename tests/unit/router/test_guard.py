"""The guard: the fallback decides exactly when it should, and the reason is counted."""

from __future__ import annotations

import pytest

from router.decision import NOT_FINITE, NOTHING_ALLOWED, REFUSED
from router.guard import FallbackReason, Guard, Verdict
from router.policies.table import make_policy
from router.policy import Policy
from tests.unit.router import fleets

FALLBACK = make_policy("static-small", fleets.catalog())


class Scripted:
    """A policy that answers as a test says: an action, a code, or an error."""

    name = "scripted"
    version = "scripted@1"

    def __init__(self, answer: int | Exception = 2) -> None:
        """Keeps the answer."""
        self.answer = answer


class Desk:
    """Asks scripted policies; the fallback answers 0. The first three candidates are open."""

    def ask(self, policy: Policy) -> int:
        """Returns what was scripted."""
        answer = policy.answer if isinstance(policy, Scripted) else 0
        if isinstance(answer, Exception):
            raise answer
        return answer

    def is_open(self, row: int) -> bool:
        """Returns whether it is one of the first three."""
        return 0 <= row < 3

    def best_finite(self) -> int:
        """Returns a row of its own."""
        return 1


def guard(policy: Policy | None, fallback: Policy = FALLBACK) -> Guard:
    """Returns a guard."""
    return Guard(policy=policy, fallback=fallback)


def test_healthy_policy_decides() -> None:
    """Nothing is counted and no reason is set while all is well."""
    policy = Scripted()
    guarded = guard(policy)
    assert guarded.decide(Desk()) == Verdict(2, policy, "")
    assert sum(guarded.counts.values()) == 0


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (None, FallbackReason.NO_SNAPSHOT),
        (Scripted(NOT_FINITE), FallbackReason.NOT_FINITE),
        (Scripted(ValueError("broken")), FallbackReason.POLICY_ERROR),
        (Scripted(3), FallbackReason.BAD_ACTION),
        (Scripted(99), FallbackReason.BAD_ACTION),
        (Scripted(-99), FallbackReason.BAD_ACTION),
    ],
)
def test_fallback_decides_and_reason_is_counted(
    policy: Policy | None, reason: FallbackReason
) -> None:
    """Each fault hands over to the fallback under its own name."""
    guarded = guard(policy)
    assert guarded.decide(Desk()) == Verdict(0, FALLBACK, reason.value)
    assert guarded.counts[reason.value] == 1
    assert sum(guarded.counts.values()) == 1


@pytest.mark.parametrize("code", [NOTHING_ALLOWED, REFUSED])
@pytest.mark.parametrize("is_absent", [False, True])
def test_a_request_nobody_may_have_is_no_fault_of_the_policy(code: int, is_absent: bool) -> None:
    """Nothing usable, or refused by admission: the code comes back and nothing is counted."""
    policy = Scripted(code)
    guarded = guard(None, fallback=policy) if is_absent else guard(policy)
    assert guarded.decide(Desk())[:2] == (code, policy)
    assert sum(guarded.counts.values()) == 0


def test_a_fallback_that_is_partly_not_finite_takes_what_is() -> None:
    """There is nobody after it to ask."""
    assert guard(None, fallback=Scripted(NOT_FINITE)).decide(Desk()).action == 1


def test_the_error_is_kept() -> None:
    """What the policy raised can be read afterwards."""
    error = ValueError("broken")
    guarded = guard(Scripted(error))
    guarded.decide(Desk())
    assert guarded.last_error is error
