"""How many devices static-large would need."""

from __future__ import annotations

import dataclasses

import pytest

from router.catalog import parse_quality
from router.profile import parse_profile
from services.demo.devices import static_large_devices
from services.demo.replay import PolicyRun
from services.local import reference
from tests.unit.services.demo.runs import PLAN, TIERS, records, run_of

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
PROFILE = parse_profile(reference.shipped_profile().read_text(), "profile")
QUALITY = parse_quality(reference.shipped_quality().read_text(), "quality")


def with_performance(run: PolicyRun, performance: float) -> PolicyRun:
    """The same replay with another result."""
    total = {**run.summary["total"], "performance": performance}
    return dataclasses.replace(run, summary={**run.summary, "total": total})


def found(best: PolicyRun, *others: PolicyRun) -> dict[str, object]:
    """What is reckoned of made-up replays: 57 requests/s, all of one task."""
    return static_large_devices(
        [*others, best],
        best.policy,
        profile=PROFILE,
        quality=QUALITY,
        tiers=TIERS,
        deadline_s=0.1,
        burst_factor=PLAN.burst_factor,
        seed=1,
    )


def test_more_performance_takes_more_devices() -> None:
    """The number follows from the goal; the check on one device stands beside it."""
    run = run_of("dqn", records(1))
    static = with_performance(run_of("static-large", records(1)), 0.3)
    one = found(with_performance(run, 0.01), static)
    many = found(with_performance(run, 0.99), static)
    assert one["needed"] == 1
    assert isinstance(many["needed"], int)
    assert many["needed"] > 1
    assert many["measured_on_one"] == 0.3
    assert 0.01 < float(str(many["simulated_on_one"])) < 0.99


def test_a_goal_out_of_reach_has_no_number() -> None:
    """No count of devices earns more than everything."""
    none = found(with_performance(run_of("dqn", records(1)), 1.01))
    assert none["needed"] is None
    assert none["most_tried"] == 11
    assert none["measured_on_one"] is None
