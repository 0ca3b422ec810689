"""The endpoint list changes on several monitors, with and without Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from services.load_monitor.topology import Topology
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import Monitor, endpoint

Make = Callable[[str], Monitor]


async def test_two_monitors_change_the_list_at_once(make: Make, clock: FakeClock) -> None:
    """Both additions survive."""
    one, two = make("m1"), make("m2")
    async with one.running(), two.running():
        await asyncio.gather(
            one.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9)),
            two.coordinator.change(lambda t: t.add(endpoint("e3"), max_endpoints=9)),
        )
        await clock.advance(1.0)
        names = [e.endpoint.endpoint for e in two.state.endpoints]
        assert names == ["e1", "e2", "e3"]
        assert one.board.topology.version == two.board.topology.version


async def test_numbers_of_the_list_never_fall_when_redis_returns(
    make: Make, clock: FakeClock, store: SwitchableStore
) -> None:
    """What clients saw while Redis was away stays below what they see afterwards."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        store.is_down = True
        numbers = [
            await monitor.coordinator.change(
                lambda t, name=name: t.add(endpoint(name), max_endpoints=9)  # type: ignore[misc]
            )
            for name in ("e2", "e3")
        ]
        await monitor.coordinator.change(lambda t: t.drop("e2"))
        numbers.append(monitor.board.topology.version)
        store.is_down = False
        await clock.advance(2.0)
        numbers.append(monitor.board.topology.version)
        assert numbers == sorted(numbers)
        assert len(set(numbers[:3])) == 3
        stored = await store.load_topology()
        assert stored is not None
        assert stored[0] == numbers[-1]
        assert list(monitor.board.topology.endpoints) == ["e1", "e3"]


async def test_monitors_with_different_settings_do_not_overrule_each_other(
    make: Make, clock: FakeClock
) -> None:
    """During a rolling change of the settings the list is renumbered once per new leader."""
    old, new = make("m1"), make("m2")
    configured = {"e1": endpoint("e1"), "e9": endpoint("e9")}
    new.board.use_topology(Topology(configured).renumbered())
    async with contextlib.AsyncExitStack() as stack:
        async with old.running():
            await stack.enter_async_context(new.running())
            await clock.advance(1.0)
            before = old.board.topology.version
            await clock.advance(5.0)
            assert old.board.topology.version == before
            assert [e.endpoint.endpoint for e in new.state.endpoints] == ["e1"]
        await clock.advance(4.0)
        assert [e.endpoint.endpoint for e in new.state.endpoints] == ["e1", "e9"]
        after = new.state.topology_version
        assert after > before
        await clock.advance(5.0)
        assert new.state.topology_version == after


async def test_settings_that_are_read_again_become_a_new_list(make: Make, clock: FakeClock) -> None:
    """Once, with what was changed while running; the endpoints that stay are not begun anew."""
    monitor = make("m1")
    async with monitor.running():
        await clock.advance(1.0)
        await monitor.coordinator.change(lambda t: t.add(endpoint("e2"), max_endpoints=9))
        tracker, before = monitor.board.trackers["e1"], monitor.board.topology.version
        configured = {"e1": endpoint("e1"), "e9": endpoint("e9")}
        monitor.coordinator._topology.use_settings(configured, is_alone=False)
        await clock.advance(2.0)
        assert [e.endpoint.endpoint for e in monitor.state.endpoints] == ["e1", "e2", "e9"]
        after = monitor.state.topology_version
        assert after > before
        assert monitor.board.trackers["e1"] is tracker
        await clock.advance(2.0)
        assert monitor.state.topology_version == after
