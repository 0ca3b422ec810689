"""The profiles in use and what a process has learned of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.profile import LatencyProfile, TierProfile
from services.router_inference.view.profiles import ProfileErrors

PROFILE = LatencyProfile(
    "a", "measured", {"small": TierProfile(0.01, 0.0, 0.0)}, "", 100.0, "by us"
)


def taught(errors: ProfileErrors, profile: str = "a", count: int = 30) -> None:
    """Answers that took twice their prediction."""
    for _ in range(count):
        errors.observe(profile, "small", 0, 0.0, 0.2, 0.1, finished=True)


def found(errors: ProfileErrors) -> list[float]:
    """Errors over all answers, by profile and tier."""
    return [e.error for status in errors.read(0.0) for e in status.errors if not e.range]


def test_errors_are_by_profile_and_tier() -> None:
    """What was learned stands beside the profile; one that is not in use learns nothing."""
    errors = ProfileErrors()
    errors.follow([replace(PROFILE, name="b"), PROFILE, PROFILE])
    taught(errors)
    taught(errors, "elsewhere")
    assert [status.profile.name for status in errors.read(0.0)] == ["a", "b"]
    assert found(errors) == [pytest.approx(-0.5)]


def test_a_profile_that_was_measured_again_starts_anew() -> None:
    """What is known of its old numbers says nothing of the new ones; others keep theirs."""
    errors = ProfileErrors()
    other = replace(PROFILE, name="b")
    errors.follow([PROFILE, other])
    taught(errors)
    taught(errors, "b")
    errors.follow([PROFILE, other])
    assert len(found(errors)) == 2
    errors.follow([replace(PROFILE, measured_s=200.0), other])
    assert found(errors) == [pytest.approx(-0.5)]
    errors.follow([other])
    assert [status.profile.name for status in errors.read(0.0)] == ["b"]
