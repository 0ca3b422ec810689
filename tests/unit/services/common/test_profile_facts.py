"""How profiles stand, by what routers say."""

from __future__ import annotations

import pytest

from services.common.profile_facts import (
    age_text,
    off_text,
    profile_facts,
    profile_json,
    source_and_age,
)
from tiercel.common.v1 import common_pb2 as pb


def told(name: str = "a", measured_s: int = 0, **errors: tuple[float, int]) -> pb.ProfileState:
    """What a router says of a profile: by tier an error and the answers behind it."""
    message = pb.ProfileState(profile=name, source="measured", method="tiercel calibrate")
    if measured_s:
        message.measured_time.FromSeconds(measured_s)
    for tier, (error, count) in errors.items():
        message.errors.add(tier=tier, error=error, compared_count=count)
    return message


def test_errors_of_routers_are_weighted_by_their_answers() -> None:
    """As ratios: three answers in half the predicted time outweigh one in twice of it."""
    (facts,) = profile_facts([told(small=(1.0, 300)), told(small=(-0.5, 100), large=(0.1, 20))])
    small, large = facts.errors
    assert small.answers == 400
    assert small.error == pytest.approx(2**0.5 - 1.0)
    assert large.tier == "large"
    assert large.error == pytest.approx(0.1)


def test_the_oldest_measurement_counts_where_routers_do_not_agree() -> None:
    """One that has not read the new file yet still decides by the old one."""
    names = [told("b"), told("a", 200), told("a", 100)]
    first, second = profile_facts(names)
    assert (first.profile, first.measured_s) == ("a", 100.0)
    assert (second.profile, second.measured_s) == ("b", None)
    assert profile_json(first)["measured_s"] == 100.0


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        (-5.0, "0 minutes"),
        (60.0, "1 minute"),
        (3_599.0, "59 minutes"),
        (3_600.0, "1 hour"),
        (86_400.0, "1 day"),
        (200_000.0, "2 days"),
    ],
)
def test_ages_are_told_in_their_largest_unit(age_s: float, text: str) -> None:
    """Days, hours or minutes; a clock that is behind makes no age below 0."""
    assert age_text(age_s) == text
    assert source_and_age("measured", 1_000.0, 1_000.0 + age_s) == f"measured {text} ago"


def test_what_is_unknown_and_what_is_off_is_said_in_words() -> None:
    """The tier, the range, the ratio and the answers behind it."""
    assert source_and_age("published", None, 0.0) == "published, age unknown"
    message = told(large=(-0.31, 312))
    message.errors[0].range = "idle device, prompts of 1 to 64 tokens"
    (facts,) = profile_facts([message])
    assert off_text(facts.errors[0]) == (
        "large, idle device, prompts of 1 to 64 tokens: predicted 0.69 times what was observed "
        "(312 answers)"
    )
