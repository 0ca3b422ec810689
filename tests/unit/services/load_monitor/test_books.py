"""A monitor's books: closed each minute, stored by whoever publishes, told from store or memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.state import keys
from services.common.state.minute_store import MINUTE_S, MemoryMinuteStore
from services.load_monitor.books import MinuteBooks
from services.load_monitor.tally import start_of
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import LOG, Monitor
from tests.unit.services.load_monitor.test_tally import counted
from tiercel.load_monitor.v1 import minutes_pb2 as pb

Make = Callable[[str], Monitor]
FOR_EVER = (0.0, 1e11)


class Keeper:
    """A monitor with books, and a router that answers ten requests a second."""

    def __init__(self, make: Make, clock: FakeClock, store: object, name: str = "m1") -> None:
        self.monitor = make(name)
        self.clock = clock
        self.store = SwitchableStore(store)
        self.books = MinuteBooks(
            store=self.store,
            broadcast=self.monitor.broadcast,
            coordinator=self.monitor.coordinator,
            clock=clock,
            log=LOG,
        )
        self.started_s = clock.wall_ns() // 10**9
        self.answered = 0

    async def run(self, seconds: int) -> None:
        """Answers for some seconds."""
        for _ in range(seconds):
            await self.monitor.coordinator.round()
            self.clock.move(1.0)
            self.answered += 10
            self.monitor.board.take_report(counted("r", self.started_s, self.answered))
            self.monitor.publisher.tick()
            await self.books.look()


async def test_every_minute_is_stored_and_told(make: Make, clock: FakeClock) -> None:
    """Whole ones have all, with what a trainer adds; the one under way is not there yet."""
    store = MemoryMinuteStore()
    keeper = Keeper(make, clock, store)
    await keeper.run(200)
    minutes, goes_on_s = await keeper.books.minutes(*FOR_EVER)
    assert [each.tasks[0].on_time_count for each in minutes][1:] == [600, 600]
    assert (goes_on_s, len(await store.read(keys.MINUTE_BOOKS, *FOR_EVER, 9))) == (None, 3)
    hindsight = pb.Hindsight(
        tasks=[pb.TaskHindsight(task="sort", recorded_count=600, bound_sum=450.0)]
    )
    await store.put(keys.MINUTE_HINDSIGHT, start_of(minutes[2]), hindsight.SerializeToString())
    minutes, _ = await keeper.books.minutes(start_of(minutes[1]), start_of(minutes[2]) + 1)
    assert [each.HasField("hindsight") for each in minutes] == [False, True]
    await keeper.run(10)
    last, reckoned = keeper.books.last
    assert last is not None
    assert reckoned is not None
    assert last.tasks["sort"].ended == 600
    regret = reckoned.tasks["sort"].reckoned.regret
    assert regret == pytest.approx(0.25)


async def test_a_store_that_was_away_gets_the_minutes_later(make: Make, clock: FakeClock) -> None:
    """Meanwhile the process tells what it remembers."""
    store = MemoryMinuteStore()
    keeper = Keeper(make, clock, store)
    keeper.store.is_down = True
    await keeper.run(150)
    minutes, _ = await keeper.books.minutes(*FOR_EVER)
    assert len(minutes) == 2
    keeper.store.is_down = False
    await keeper.run(1)
    assert len(await store.read(keys.MINUTE_BOOKS, *FOR_EVER, 9)) == 2


async def test_another_monitor_tells_the_stored_minutes(make: Make, clock: FakeClock) -> None:
    """One minute once, as the one that watched longer has it; what cannot be read is left out."""
    store = MemoryMinuteStore()
    keeper = Keeper(make, clock, store)
    await keeper.run(150)
    (first, second), _ = await keeper.books.minutes(*FOR_EVER)
    second.tasks[0].on_time_count = 1
    second.observed.FromSeconds(5)
    await store.put(keys.MINUTE_BOOKS, start_of(second), second.SerializeToString())
    await store.put(keys.MINUTE_BOOKS, start_of(second) + MINUTE_S, b"\xff\xff")
    other = Keeper(make, clock, store, "m2")
    minutes, _ = await other.books.minutes(*FOR_EVER)
    assert [start_of(each) for each in minutes] == [start_of(first), start_of(second)]
    assert minutes[1].tasks[0].on_time_count == 600


async def test_a_long_time_is_told_in_parts(make: Make, clock: FakeClock) -> None:
    """Each part names where to go on, and together they are all there is."""
    store = MemoryMinuteStore()
    for number in range(1_200):
        minute = pb.Minute()
        minute.start_time.FromSeconds(number * MINUTE_S)
        await store.put(keys.MINUTE_BOOKS, number * MINUTE_S, minute.SerializeToString())
    keeper = Keeper(make, clock, store)
    found, start_s, parts = [], 0.0, 0
    while True:
        minutes, goes_on_s = await keeper.books.minutes(start_s, 1e11)
        found += [start_of(each) for each in minutes]
        parts += 1
        if goes_on_s is None:
            break
        start_s = goes_on_s
    assert (found, parts) == ([number * MINUTE_S for number in range(1_200)], 3)


async def test_what_others_wrote_into_the_store_is_not_believed(
    make: Make, clock: FakeClock
) -> None:
    """A number of devices that no memory holds, a minute that cannot be added up: left out."""
    store = MemoryMinuteStore()
    keeper = Keeper(make, clock, store)
    await keeper.run(130)
    minutes, _ = await keeper.books.minutes(*FOR_EVER)
    bad = pb.Hindsight(tasks=[pb.TaskHindsight(task="sort", recorded_count=600, bound_sum=450.0)])
    bad.static_large.add(device_count=2**31 - 1, performance=1.0)
    await store.put(keys.MINUTE_HINDSIGHT, start_of(minutes[-1]), bad.SerializeToString())
    broken = pb.Minute(tasks=[pb.TaskMinute(task="sort", on_time_count=-5)])
    broken.start_time.seconds = start_of(minutes[0]) - 600
    await store.put(keys.MINUTE_BOOKS, start_of(broken), broken.SerializeToString())
    await keeper.run(12)
    found, _ = await keeper.books.minutes(*FOR_EVER)
    assert found == minutes
    assert keeper.books.last[1] is None
