"""When states are made: after changes, once in a while, and not before the first probes."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.clock import FakeClock
from tests.unit.services.load_monitor.rig import Monitor, report

Make = Callable[[str], Monitor]


async def test_changes_are_published_at_ten_hertz(make: Make, clock: FakeClock) -> None:
    """A report each 50 ms gives at least ten states a second, each with the last report."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(0.1)
        first = monitor.state.version
        for sequence in range(1, 21):
            monitor.board.take_report(report("r1", sequence))
            await clock.advance(0.05)
        assert monitor.state.version - first >= 10
        assert [r.sequence for r in monitor.state.routers] in ([19], [20])


async def test_idle_monitor_publishes_once_a_second(make: Make, clock: FakeClock) -> None:
    """Nothing changes, yet watchers see that the monitor lives."""
    monitor = make("m1")
    await monitor.coordinator.round()
    clock.move(3.0)
    assert monitor.publisher.tick()
    published = 0
    for _ in range(30):
        clock.move(0.1)
        published += monitor.publisher.tick()
    assert published in (2, 3)


async def test_first_state_waits_for_the_first_probes_but_not_for_ever(
    make: Make, clock: FakeClock
) -> None:
    """A state that knows nothing of any endpoint is only published when probes take too long."""
    monitor = make("m1")
    await monitor.coordinator.round()
    assert not monitor.publisher.tick()
    clock.move(2.0)
    assert monitor.publisher.tick()
