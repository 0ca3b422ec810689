"""The targets in force: the settings', unless another was set while the mesh runs."""

from __future__ import annotations

import pytest

from router.types import RewardKind, Task
from services.common.log import get_logger
from services.router_inference.job import Outcome
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.targets import Targets
from services.router_inference.view.seen import SeenTarget
from tests.fakes.clock import FakeClock
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario

TASKS = (
    Task("copa", 0.4),
    Task("piqa", 0.4, target=0.9),
    Task("soft", 0.4, reward_kind=RewardKind.SOFT),
)


def targets(clock: FakeClock, *, is_held: bool = True) -> Targets:
    """Returns those of three tasks."""
    return Targets(
        hold=TargetHold((), clock.monotonic_s()),
        tasks=TASKS,
        is_held=is_held,
        clock=clock,
        log=get_logger("test"),
    )


def in_force(found: Targets) -> list[float]:
    """Returns the target of each task."""
    return [target for target, _ in found.by_task().values()]


def test_what_is_set_wins_and_what_is_told_no_more_ends() -> None:
    """Tasks that this router does not know are left out; soft ones have no target."""
    found = targets(FakeClock())
    assert in_force(found) == [0.99, 0.9, 0.0]
    told = [SeenTarget(name, 0.999, "ops", 0) for name in ("piqa", "soft", "unknown")]
    found.apply(told)
    assert found.by_task() == {"copa": (0.99, 0.99), "piqa": (0.999, 0.9), "soft": (0.0, 0.0)}
    found.apply([SeenTarget("copa", 0.0, "ops", 0)])
    assert in_force(found) == [0.0, 0.9, 0.0]
    found.apply([])
    assert in_force(found) == [0.99, 0.9, 0.0]


def test_settings_read_again_change_what_was_not_set() -> None:
    """What was set while the mesh runs stays; a task that joins may have been set before."""
    found = targets(FakeClock())
    found.apply([SeenTarget("copa", 0.999, "ops", 0), SeenTarget("boolq", 0.5, "ops", 0)])
    found.configure([Task("copa", 0.4, target=0.95), Task("boolq", 0.4)], is_held=True)
    assert found.by_task() == {"copa": (0.999, 0.95), "boolq": (0.5, 0.99)}


def test_what_is_set_for_a_time_ends_without_a_monitor() -> None:
    """A router that hears nothing keeps its last, but not for longer than was asked."""
    clock = FakeClock()
    found = targets(clock)
    found.apply([SeenTarget("copa", 0.999, "ops", clock.wall_ns() + 5 * 10**9)])
    clock.move(4.0)
    found.expire()
    assert in_force(found) == [0.999, 0.9, 0.0]
    clock.move(1.0)
    found.expire()
    assert in_force(found) == [0.99, 0.9, 0.0]


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0])
def test_a_clock_that_differs_from_the_monitors_ends_nothing_early_or_late(shift_s: float) -> None:
    """What is told is in force, for no longer than it was set for, however often it is told."""
    clock = FakeClock()
    told = SeenTarget("copa", 0.999, "ops", clock.wall_ns() + 5 * 10**9, clock.wall_ns())
    clock.set_by(shift_s)
    found = targets(clock)
    found.apply([told])
    clock.move(4.0)
    found.apply([told])
    found.expire()
    assert in_force(found) == [0.999, 0.9, 0.0]
    clock.move(1.0)
    found.expire()
    assert in_force(found) == [0.99, 0.9, 0.0]


def test_without_the_safety_net_no_target_is_held() -> None:
    """Whatever is set."""
    found = targets(FakeClock(), is_held=False)
    found.apply([SeenTarget("copa", 0.999, "ops", 0)])
    assert in_force(found) == [0.0, 0.0, 0.0]


@scenario
async def test_another_target_keeps_what_was_learned() -> None:
    """The pressure goes on from where it was; the next request is held to the new one."""
    rig = make_rig()
    core, now_s = rig.core, rig.clock.monotonic_s()
    job = rig.job()
    job.outcome = Outcome.LATE
    core.hold.on_end(job, now_s, is_hopeless=False)
    before = core.hold.pressure()
    core.targets.apply([SeenTarget("hard", 0.999, "ops", 0)])
    held = core.hold.held(rig.job().request, now_s)
    assert (held.target, held.pressure) == (0.999, before)
    assert before > 0.0
