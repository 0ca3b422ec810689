"""Both sides of the state exchange together: nothing is counted twice or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from prometheus_client import CollectorRegistry

from router.fleet import EndpointSpec
from services.common.state.minute_store import MemoryMinuteStore
from services.common.state.shared_state import MemorySharedState
from services.load_monitor.books import MinuteBooks
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_state import state_of_picture
from services.load_monitor.metrics import MonitorCounters
from services.load_monitor.servicer import LoadMonitorServicer
from services.load_monitor.topology import Topology
from services.router_inference.reconnect import CHANNEL_OPTIONS
from services.router_inference.view.convert import LoadWriter, StateReader
from services.router_inference.view.load import LoadView
from services.router_inference.view.monitor_link import MonitorLink
from services.router_inference.view.seen import SeenState
from services.router_inference.workers.siblings import NoSiblings
from tests.fakes.clock import FakeClock, settle
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.load_monitor.rig import LOG, Monitor
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.waiting import until
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb

Candidate = tuple[str, str]
Totals = dict[Candidate, tuple[float, float, float]]
NAMES = ("a", "b", "c", "d")
CANDIDATES = [(tier, name) for name in NAMES for tier in ("small", "large")]
CANDIDATE = common_pb2.Candidate(tier="small", endpoint="e0")
ENDPOINT = common_pb2.Endpoint(
    endpoint="e0", address="127.0.0.1:1", tiers=[common_pb2.ServedTier(tier="small")]
)
NOBODY = SimpleNamespace(peer_identities=lambda: None)
"""The context of a caller without a certificate."""
NOTHING = (0.0, 0.0, 0.0)
candidates = st.sampled_from(CANDIDATES)
number = st.integers(0, 2)
lists = st.lists(
    st.tuples(st.sampled_from(NAMES), st.permutations(["small", "large"]), st.booleans()),
    min_size=1,
    unique_by=lambda each: each[0],
)


class Stream:
    """A stream of reports, as the monitor's servicer takes them."""

    def __init__(self, servicer: LoadMonitorServicer) -> None:
        """Starts without a report."""
        self.loads = LoadWriter()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task = asyncio.ensure_future(servicer.ReportTraffic(self._requests(), NOBODY))

    async def _requests(self) -> AsyncIterator[pb.ReportTrafficRequest]:
        while (payload := await self._queue.get()) is not None:
            yield pb.ReportTrafficRequest.FromString(payload)

    async def send(self, payload: bytes | None) -> None:
        """Sends a report; None ends the stream in good order."""
        self._queue.put_nowait(payload)
        await settle()
        if self._task.done():
            self._task.result()

    async def break_off(self) -> None:
        """Ends it as a lost connection does."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class Router:
    """What a router knows, with the parts that take states in and write reports."""

    def __init__(self, number: int, epoch: int, *, packs: bool) -> None:
        """Starts with an empty ledger and no list."""
        self.router_id, self.epoch, self.packs = f"r{number}", epoch, packs
        self.load = LoadView(fleet_of(()), NoSiblings())
        self.stream: Stream | None = None
        self.held: list[tuple[Stream, int, bytes, Totals]] = []
        self.watch: Any = None
        self.sequence = self._key = 0
        self._keys: list[int] = []

    def dispatch(self, candidate: Candidate) -> None:
        """Sends a request somewhere, whether or not the list has it."""
        self._key += 1
        self._keys.append(self._key)
        self.load.ledger.dispatch(self._key, candidate, 10.0 * self._key, 3.0)

    def finish(self) -> None:
        """Ends the oldest request."""
        if self._keys:
            self.load.ledger.finish(self._keys.pop(0))

    def report(self, stream: Stream) -> tuple[int, bytes, Totals]:
        """Returns the next report, its number and what is true while it is written."""
        self.sequence += 1
        message = state_pb.RouterLoad(
            router_id=self.router_id,
            epoch=self.epoch,
            sequence=self.sequence,
            arrival_rate_rps=float(self.sequence),
        )
        stream.loads.write(message, self.load, packs=self.packs)
        payload = pb.ReportTrafficRequest(load=message).SerializeToString()
        return self.sequence, payload, dict(self.load.totals())


def fleet_of(order: Sequence[Candidate]) -> Any:
    """Returns as much of a fleet as a LoadView looks at."""
    row = {candidate: index for index, candidate in enumerate(order)}
    return SimpleNamespace(row=row, candidate_count=len(order))


class Exchange(RuleBasedStateMachine):
    """Routers of both releases and a monitor, beside what each report said when it was taken in."""

    def __init__(self) -> None:
        """Starts a monitor and a few routers."""
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.routers: dict[int, Router] = {}
        self.taken: dict[str, tuple[int, int, Totals]] = {}
        self.epochs = self.versions = 0
        self.start_monitor()
        for router in range(3):
            self.start_router(router, packs=router > 0)

    def start_monitor(self) -> None:
        """Starts one that knows nothing, as after a crash."""
        self.clock = FakeClock()
        self.monitor = Monitor("m1", self.clock, SwitchableStore(MemorySharedState(self.clock)))
        self.servicer = LoadMonitorServicer(
            board=self.monitor.board,
            broadcast=self.monitor.broadcast,
            coordinator=self.monitor.coordinator,
            books=MinuteBooks(
                store=MemoryMinuteStore(),
                broadcast=self.monitor.broadcast,
                coordinator=self.monitor.coordinator,
                clock=self.clock,
                log=LOG,
            ),
            counters=MonitorCounters(CollectorRegistry()),
            tiers=("small", "large"),
            tasks=lambda: (),
            refusal=lambda _field, _address: None,
            max_endpoints=9,
            max_watchers=9,
            shared_certificate=False,
            clock=self.clock,
            log=LOG,
        )
        self.taken.clear()
        self.change_list([("a", ["small", "large"], False), ("b", ["small", "large"], False)])
        self.publish()

    def publish(self) -> None:
        """Publishes a picture of now."""
        self.versions += 1
        self.monitor.broadcast.offer(self.monitor.board.picture(self.versions))

    def run(self, work: Any) -> Any:
        """Runs it to its end."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        """Ends what runs."""
        for router in self.routers.values():
            self.run(self.disconnect(router))
        self.loop.close()

    async def disconnect(self, router: Router) -> None:
        """Breaks all its streams; what was on its way is lost."""
        streams = {stream for stream, *_rest in router.held} | {router.stream}
        for stream in streams - {None}:
            await stream.break_off()  # type: ignore[union-attr]
        router.stream, router.held = None, []
        if router.watch is not None:
            await router.watch.aclose()
            router.watch = None

    @rule(number=number, packs=st.booleans())
    def start_router(self, number: int, packs: bool) -> None:
        """A router joins, or one is killed and starts again under its name."""
        old = self.routers.get(number)
        if old is not None:
            self.run(self.disconnect(old))
        self.epochs += 1
        self.routers[number] = Router(number, self.epochs, packs=packs)

    @rule(number=number, candidate=candidates)
    def dispatch(self, number: int, candidate: Candidate) -> None:
        """A router sends a request somewhere."""
        if number in self.routers:
            self.routers[number].dispatch(candidate)

    @rule(number=number)
    def finish(self, number: int) -> None:
        """A request ends."""
        if number in self.routers:
            self.routers[number].finish()

    @rule(number=number, is_late=st.booleans())
    def report(self, number: int, is_late: bool) -> None:
        """A router reports; a late report is still on its way when the router connects anew."""
        router = self.routers.get(number)
        if router is None:
            return
        if router.stream is None:
            router.stream = self.run(self.connect())
        report = router.report(router.stream)
        if is_late:
            router.held.append((router.stream, *report))
            router.stream = None
        else:
            self.deliver(router, router.stream, *report)

    async def connect(self) -> Stream:
        """Opens a stream of reports."""
        return Stream(self.servicer)

    def deliver(
        self, router: Router, stream: Stream, sequence: int, payload: bytes, totals: Totals
    ) -> None:
        """Hands a report to the monitor."""
        self.run(stream.send(payload))
        epoch, last, _totals = self.taken.get(router.router_id, (0, 0, {}))
        if epoch != router.epoch or sequence > last:
            self.taken[router.router_id] = (router.epoch, sequence, totals)

    @rule(number=number)
    def deliver_late(self, number: int) -> None:
        """A late report arrives, maybe after newer ones."""
        router = self.routers.get(number)
        if router is not None and router.held:
            stream, sequence, payload, totals = router.held.pop()
            self.deliver(router, stream, sequence, payload, totals)
            if all(stream is not other for other, *_rest in router.held):
                self.run(stream.break_off())

    @rule(number=number)
    def leave(self, number: int) -> None:
        """A router stops in good order, once what was on its way has come or is lost."""
        router = self.routers.pop(number, None)
        if router is None:
            return
        stream, router.stream = router.stream, None
        self.run(self.disconnect(router))
        if stream is not None:
            known = self.taken.get(router.router_id)
            self.run(stream.send(None))
            self.run(self.clock.advance(0.1))  # until then it might have been broken off
            if stream_reported(router, known):
                del self.taken[router.router_id]

    @rule(entries=lists)
    def change_list(self, entries: list[tuple[str, list[str], bool]]) -> None:
        """The endpoint list shrinks, grows or changes its order, and may drain."""
        board = self.monitor.board
        specs = {
            name: EndpointSpec(name, f"{name}:1", name, {tier: tier for tier in tiers})
            for name, tiers, _drains in entries
        }
        topology = Topology(specs).renumbered().following(board.topology)
        for name, _tiers, drains in entries:
            topology = topology.drain(name, 10.0) if drains else topology
        board.use_topology(topology)

    @rule()
    def restart_monitor(self) -> None:
        """The monitor is killed; another one starts with its own list and knows nobody."""
        for router in self.routers.values():
            self.run(self.disconnect(router))
        self.start_monitor()

    @rule()
    def fall_silent(self) -> None:
        """Nobody reports for longer than the monitor remembers."""
        self.clock.move(4.0)
        self.monitor.board.expire()
        self.taken.clear()

    @rule(number=number, other=number, candidate=candidates)
    def report_and_read(self, number: int, other: int, candidate: Candidate) -> None:
        """A router reports something new, and another one, or itself, reads at once."""
        self.dispatch(number, candidate)
        self.report(number, is_late=False)
        self.read(other)

    @rule(number=number)
    def read(self, number: int) -> None:
        """A router reads the newest state: it sees the others' last reports, and no more."""
        if number in self.routers:
            self.check(self.routers[number])

    def check(self, router: Router) -> None:
        """Compares what a router reads with what the reports said."""
        self.publish()
        state = self.run(self.next_state(router))
        router.load.apply(state.candidates, state.others_LC, fleet_of(state.candidates))
        others = {name: each for name, each in self.taken.items() if name != router.router_id}
        own = self.taken.get(router.router_id)
        if own is not None and own[0] != router.epoch:
            others[router.router_id] = own
        is_own = own is not None and own[0] == router.epoch
        assert state.own_sequence == (own[1] if own is not None and is_own else 0)
        assert state.other_rate_rps == sum(each[1] for each in others.values())
        assert state.candidates == self.monitor.board.order.names
        for column, candidate in enumerate(state.candidates):
            loads = [each[2].get(candidate, NOTHING) for each in others.values()]
            expected = [sum(kind) for kind in zip(NOTHING, *loads, strict=True)]
            assert state.others_LC[:, column].tolist() == expected

    async def next_state(self, router: Router) -> SeenState:
        """Returns the newest state as the router reads it."""
        if router.watch is None:
            router.watch = self.states(router)
        state: SeenState = await anext(router.watch)
        return state

    async def states(self, router: Router) -> AsyncIterator[SeenState]:
        """Watches as a router of its release does."""
        reader = StateReader(router.router_id, router.epoch)
        request = pb.WatchSystemStateRequest()
        if router.packs:
            request = pb.WatchSystemStateRequest(router_id=router.router_id, epoch=router.epoch)
        watch: Any = self.servicer.WatchSystemState(request, NOBODY)
        async with contextlib.aclosing(watch) as responses:
            async for response in responses:
                assert response.HasField("others") is router.packs
                yield reader.read(
                    pb.WatchSystemStateResponse.FromString(response.SerializeToString())
                )

    @precondition(lambda self: self.routers)
    @rule()
    def report_all(self) -> None:
        """After one report of each, every router sees exactly what the others have under way."""
        for number, router in self.routers.items():
            while router.held:
                self.deliver_late(number)
            self.report(number, is_late=False)
        alive = {router.router_id for router in self.routers.values()}
        for router_id in set(self.taken) - alive:
            # What has left without a word is forgotten when it has been silent for long enough.
            epoch, _sequence, _totals = self.taken.pop(router_id)
            self.monitor.board.leave(router_id, epoch)
        for router in self.routers.values():
            self.check(router)
            assert self.taken[router.router_id][2] == dict(router.load.totals())

    @invariant()
    def sums_are_the_sums_of_the_parts(self) -> None:
        """The running total is what adding up anew gives."""
        loads = self.monitor.board.aggregator.loads()
        total_LC = sum((load_LC for _report, load_LC in loads.by_router.values()), 0)
        assert (loads.total_LC == total_LC).all()


def stream_reported(router: Router, known: tuple[int, int, Totals] | None) -> bool:
    """Returns whether what the monitor knows is this process's."""
    return known is not None and known[0] == router.epoch


TestExchange = Exchange.TestCase
TestExchange.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class LastRelease(pb_grpc.LoadMonitorServiceServicer):
    """A monitor of the last release: whole states, and reports whose packed loads it drops."""

    def __init__(self) -> None:
        """Starts without a report."""
        self.reports: list[state_pb.RouterLoad] = []

    async def ReportTraffic(self, requests: Any, context: Any) -> pb.ReportTrafficResponse:
        """Takes reports."""
        async for request in requests:
            self.reports.append(request.load)
        return pb.ReportTrafficResponse()

    async def WatchSystemState(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Sends one state, with what the watching router reported last in it."""
        state = state_pb.SystemState(version=1, topology_version=1)
        state.endpoints.add().endpoint.CopyFrom(ENDPOINT)
        for router_id, epoch, count in (("r1", 1, 5), ("r1", 2, 7), ("r2", 1, 3)):
            load = state_pb.CandidateLoad(candidate=CANDIDATE, in_flight_count=count)
            state.routers.add(router_id=router_id, epoch=epoch, loads=[load])
        yield pb.WatchSystemStateResponse(state=state)
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(servicer: Any, address: str) -> AsyncIterator[None]:
    """Serves a monitor."""
    server = grpc.aio.server()
    pb_grpc.add_LoadMonitorServiceServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def linked(rig: Rig, address: str) -> AsyncIterator[None]:
    """Links a router to whoever is at an address."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        link = MonitorLink(
            channel=channel,
            router_id="r1",
            epoch=2,
            view=rig.core.view,
            counts=rig.core.counts,
            targets=rig.core.targets,
            attainments=rig.core.attainments,
            hold=rig.core.hold,
            siblings=NoSiblings(),
            slot=rig.core.slot,
            trial=rig.core.trial,
            watch=rig.core.watch,
            quality=rig.core.quality,
            notes=rig.core.notes,
            clock=rig.clock,
            log=LOG,
            report_interval_s=0.02,
            silence_s=5.0,
            longest_wait_s=0.1,
        )
        tasks = [asyncio.create_task(work) for work in (link.watch(), link.report())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_router_goes_on_while_its_monitor_is_replaced(
    free_port: Callable[[], int],
) -> None:
    """By name with a monitor of the last release, packed with this one's, and back again."""
    address = f"127.0.0.1:{free_port()}"
    rig = make_rig()
    view = rig.core.view
    view.load.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    view.load.ledger.dispatch(2, ("small", "gone"), 10.0, 8.0)
    named = {("small", "e0"): 1, ("small", "gone"): 1}
    async with linked(rig, address):
        for _turn in range(2):
            old = LastRelease()  # type: ignore[abstract]  # routers call no more
            async with serving(old, address):
                await until(lambda: view.load.other_in_flight(0) == 8.0, "the others' load")
                count = len(old.reports)
                await until(lambda: len(old.reports) > count + 1, "reports by name")  # noqa: B023
                # One may have been on its way when the monitor was replaced.
                for load in old.reports[1:]:
                    assert in_flight_of(load) == named
            exchange = Exchange()
            exchange.loop.close()
            monitor = exchange.monitor
            specs = {"e0": EndpointSpec("e0", "127.0.0.1:1", "e0", {"small": "small"})}
            monitor.board.use_topology(Topology(specs).renumbered())
            peer = state_pb.RouterLoad(router_id="r2", epoch=1, sequence=1)
            peer.loads.add(candidate=CANDIDATE, in_flight_count=4)
            monitor.board.take_report(report_from_message(peer))
            async with serving(exchange.servicer, address):

                def packed() -> bool:
                    exchange.publish()  # noqa: B023
                    reports = monitor.board.aggregator.loads().by_router  # noqa: B023
                    return "r1" in reports and len(reports["r1"][0].loads.order) > 0

                await until(packed, "a packed report")
                await until(lambda: view.load.other_in_flight(0) == 4.0, "the others' load")
                state = state_of_picture(monitor.board.picture(1))
                (own,) = [each for each in state.routers if each.router_id == "r1"]
                assert in_flight_of(own) == named


def in_flight_of(load: state_pb.RouterLoad) -> dict[Candidate, int]:
    """Returns what a report says by name; only such a one is for everybody."""
    assert not load.HasField("packed_loads")
    return {
        (each.candidate.tier, each.candidate.endpoint): each.in_flight_count for each in load.loads
    }
