"""Health of an endpoint: hysteresis, ramp, gauges."""

from __future__ import annotations

import pytest

from router.fleet import EndpointSpec
from services.load_monitor.health import Counters, EndpointTracker, HealthRules
from services.load_monitor.model import Health
from tests.fakes.clock import FakeClock

SPEC = EndpointSpec(
    name="e",
    address="127.0.0.1:8001",
    device="gpu0",
    models={"small": "small", "large": "opt"},
)
RULES = HealthRules(down_after_failures=2, up_after_successes=2, ramp_s=5.0, ramp_start_weight=0.2)


@pytest.fixture
def tracker(clock: FakeClock) -> EndpointTracker:
    """A tracker that has seen nothing."""
    return EndpointTracker(SPEC, rules=RULES, clock=clock)


def see_all_good(tracker: EndpointTracker) -> None:
    """Tells the tracker of one good probe."""
    tracker.saw_answer()
    for tier in SPEC.models:
        tracker.saw_ready(tier, True)


def health(tracker: EndpointTracker) -> Health:
    """Returns the present health."""
    return tracker.view(draining=False).health


def test_first_probe_decides_at_once(tracker: EndpointTracker) -> None:
    """Unknown before, ready after, at full weight: nothing recovered."""
    assert health(tracker) is Health.UNKNOWN
    see_all_good(tracker)
    view = tracker.view(draining=False)
    assert (view.health, view.ramp_weight, view.reason) == (Health.READY, 1.0, "")


def test_one_failure_is_not_enough(tracker: EndpointTracker) -> None:
    """Down after the second failure in a row, with the reason; a good probe between resets."""
    see_all_good(tracker)
    tracker.saw_failure("refused")
    tracker.saw_answer()
    tracker.saw_failure("refused")
    assert health(tracker) is Health.READY
    tracker.saw_failure("refused")
    view = tracker.view(draining=False)
    assert (view.health, view.ramp_weight, view.reason) == (Health.DOWN, 0.0, "refused")
    assert not any(gauge.ready for gauge in view.gauges)
    assert tracker.failed_probe_count == 3


def test_recovery_needs_two_good_probes_and_ramps_up(
    tracker: EndpointTracker, clock: FakeClock
) -> None:
    """The weight grows from its start to 1 over the ramp."""
    see_all_good(tracker)
    tracker.saw_failure("refused")
    tracker.saw_failure("refused")
    see_all_good(tracker)
    assert health(tracker) is Health.DOWN
    see_all_good(tracker)
    assert health(tracker) is Health.READY
    weights = []
    for _ in range(3):
        weights.append(tracker.view(draining=False).ramp_weight)
        clock.move(2.5)
    assert weights == pytest.approx([0.2, 0.6, 1.0])
    assert not tracker.is_ramping()


def test_partial_names_the_tiers_that_are_not_ready(tracker: EndpointTracker) -> None:
    """A live endpoint without one of its models is partial."""
    tracker.saw_answer()
    tracker.saw_ready("small", True)
    tracker.saw_ready("large", False)
    view = tracker.view(draining=False)
    assert (view.health, view.reason) == (Health.PARTIAL, "not ready: large")
    assert [gauge.ready for gauge in view.gauges] == [True, False]
    tracker.saw_ready("large", True)
    tracker.saw_ready("large", True)
    assert health(tracker) is Health.READY


def test_draining_wins_and_gets_no_traffic(tracker: EndpointTracker) -> None:
    """An endpoint that is being removed has weight 0 whatever its probes say."""
    see_all_good(tracker)
    view = tracker.view(draining=True)
    assert (view.health, view.ramp_weight) == (Health.DRAINING, 0.0)


def test_means_are_over_the_time_between_two_readings(tracker: EndpointTracker) -> None:
    """Counters are totals; a restarted server and an idle interval give no mean."""
    tracker.saw_answer()

    def large() -> tuple[object, object, object]:
        gauge = tracker.view(draining=False).gauges[1]
        return gauge.success_count, gauge.mean_queue_s, gauge.mean_compute_s

    tracker.saw_counters({"opt": Counters(10, 0, 1.0, 5.0), "other": Counters(1, 1, 1.0, 1.0)})
    assert large() == (10, None, None)
    tracker.saw_counters({"opt": Counters(14, 0, 1.4, 7.0)})
    assert large() == (14, pytest.approx(0.1), pytest.approx(0.5))
    tracker.saw_counters({"opt": Counters(14, 0, 1.4, 7.0)})
    assert large() == (14, None, None)
    tracker.saw_counters({"opt": Counters(3, 0, 0.1, 0.3)})
    assert large() == (3, None, None)


def test_unread_queue_depth_is_unknown_not_zero(tracker: EndpointTracker) -> None:
    """Depth is per model; a page that cannot be read makes it unknown."""
    tracker.saw_queues({"opt": 3})
    assert [g.queue_depth for g in tracker.view(draining=False).gauges] == [None, 3]
    tracker.saw_queues(None)
    assert [g.queue_depth for g in tracker.view(draining=False).gauges] == [None, None]


def test_kind_is_asked_again_after_a_restart(tracker: EndpointTracker) -> None:
    """Another process at the address may serve another kind of tier."""
    see_all_good(tracker)
    tracker.saw_kind("small", "paced")
    assert list(tracker.models_without_kind()) == ["large"]
    tracker.saw_failure("x")
    tracker.saw_failure("x")
    see_all_good(tracker)
    see_all_good(tracker)
    assert list(tracker.models_without_kind()) == ["small", "large"]


def test_a_view_stays_until_something_changes(tracker: EndpointTracker, clock: FakeClock) -> None:
    """So that what nobody changed is not made and compared anew for every state."""
    see_all_good(tracker)
    first = tracker.view(draining=False)
    assert tracker.view(draining=False) is first
    assert tracker.view(draining=True) is not first
    tracker.saw_failure("gone")
    tracker.saw_failure("gone")
    for _ in range(2):
        see_all_good(tracker)
    weights = []
    for _ in range(3):
        weights.append(tracker.view(draining=False).ramp_weight)
        clock.move(RULES.ramp_s / 2)
    assert weights == pytest.approx([0.2, 0.6, 1.0])
