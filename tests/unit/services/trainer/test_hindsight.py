"""Looking back at minutes of the experience stream; the reckoner only notes the requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from router.catalog import QualityTable
from router.profile import LatencyProfile
from router.types import SloKind
from services.common.log import get_logger
from services.common.state import keys
from services.common.state.experience_stream import MemoryExperienceStream
from services.common.state.minute_store import MemoryMinuteStore
from services.trainer.hindsight import HindsightKeeper
from services.trainer.jobs import MeshSpec
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.worker import WorkerError
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.trainer.entries import seen_state
from tiercel.common.v1 import common_pb2, experience_pb2
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from trainer.evaluation.past import LookBack, PastRequest

ON_TIME = common_pb2.OUTCOME_STATUS_ON_TIME
SPEC = MeshSpec(
    profile=LatencyProfile("p", "assumed", {}),
    quality=QualityTable("q", "assumed", {}, {}),
    tasks=(),
    deadline_s=0.4,
    devices=(("small", "large"),) * 3,
)


LEARNED = replace(SPEC.quality, name="learned")


class Bench:
    """A keeper that starts in the middle of a minute, and what it hands to its reckoner."""

    def __init__(self, most_requests: int = 100) -> None:
        self.clock = FakeClock(wall_ns=1_700_000_070 * 10**9)
        self.stream: Any = SwitchableStore(MemoryExperienceStream(self.clock))
        self.store = MemoryMinuteStore()
        self.mesh = MeshView(channel=None, candidates=(), clock=self.clock, log=get_logger("test"))
        self.asked: list[tuple[Any, list[PastRequest]]] = []
        self.error: Exception | None = None
        self.written = 0
        self.keeper = self.another(most_requests)

    def another(self, most_requests: int = 100) -> HindsightKeeper:
        """Returns one more, as of another trainer."""
        return HindsightKeeper(
            stream=self.stream,
            store=self.store,
            reckoner=self,
            spec=SPEC,
            mesh=self.mesh,
            tasks={"a", "b"},
            most_requests=most_requests,
            timeout_s=9.0,
            clock=self.clock,
            log=get_logger("test"),
            metrics=TrainerMetrics(CollectorRegistry()),
            learned=lambda spec: replace(spec, quality=LEARNED),
        )

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> LookBack:
        """Takes the place of a worker."""
        assert (method, timeout_s) == ("look_back", 9.0)
        self.spec, devices, requests = arguments
        self.asked.append((devices, requests))
        if self.error is not None:
            raise self.error
        return LookBack({"a": 7.5, "b": 0.5}, ((1, 0.25), (2, 0.75)))

    async def write(
        self,
        sequence: int,
        task: str = "a",
        status: common_pb2.OutcomeStatus.ValueType = ON_TIME,
        router_id: str = "r",
        stay: common_pb2.ConversationStay.ValueType = common_pb2.CONVERSATION_STAY_UNSPECIFIED,
        slo_kind: common_pb2.SloKind.ValueType = common_pb2.SLO_KIND_UNSPECIFIED,
        interval_ms: int = 0,
        **more: Any,
    ) -> None:
        """Writes a decision made 100 ms after the arrival, 300 ms ago, and its outcome."""
        decision = experience_pb2.DecisionRecord(
            router_id=router_id,
            epoch=1,
            sequence=sequence,
            task=task,
            prompt_token_count=30,
            predicted_output_token_count=8,
            conversation_stay=stay,
            slo_kind=slo_kind,
        )
        decision.token_interval.FromMilliseconds(interval_ms)
        decision.slack.FromMilliseconds(900)
        decision.decide_time.FromNanoseconds(self.clock.wall_ns() - 300_000_000)
        outcome = experience_pb2.OutcomeRecord(
            router_id=router_id, epoch=1, sequence=sequence, status=status, **more
        )
        outcome.latency.FromMilliseconds(400)
        outcome.end_time.FromNanoseconds(self.clock.wall_ns())
        await self.stream.append(
            [
                experience_pb2.ExperienceEntry(decision=decision).SerializeToString(),
                experience_pb2.ExperienceEntry(outcome=outcome).SerializeToString(),
            ]
        )

    async def minutes_looked_at(self, seconds: int = 180) -> int:
        """Answers a request every 10 seconds; returns how many minutes were looked at."""
        before = len(self.asked)
        for _ in range(seconds // 10):
            self.written += 1
            await self.write(self.written)
            await self.run(10)
        return len(self.asked) - before

    async def run(self, seconds: int) -> None:
        """Lets time pass."""
        for _ in range(seconds):
            self.clock.move(1.0)
            await self.keeper.look()

    async def found(self) -> list[tuple[int, pb.Hindsight]]:
        """Returns what was stored."""
        stored = await self.store.read(keys.MINUTE_HINDSIGHT, 0.0, 1e11, 100)
        return [(minute_s, pb.Hindsight.FromString(payload)) for minute_s, payload in stored]


async def test_a_minute_is_looked_at_once_it_is_over() -> None:
    """All that ended in it and counts; the one under way at the start is left out."""
    bench = Bench()
    await bench.write(1)
    await bench.run(40)
    await bench.write(2, output_token_count=5, delivered_reward=0.5)
    await bench.write(3, status=common_pb2.OUTCOME_STATUS_LATE, output_token_count=2)
    await bench.write(4, task="b", status=common_pb2.OUTCOME_STATUS_FAILED)
    await bench.write(5, status=common_pb2.OUTCOME_STATUS_CANCELLED)
    await bench.write(6, task="none of ours")
    await bench.run(90)
    assert bench.spec == replace(SPEC, quality=LEARNED)
    ((devices, requests),) = bench.asked
    assert devices == SPEC.devices
    second, third, fourth = requests
    end_s = 1_700_000_110.0
    assert second.arrival_s == pytest.approx(end_s - 0.4)
    assert (second.prompt_tokens, second.output_tokens, second.reward) == (30, 5, 0.5)
    assert second.slack_s == pytest.approx(1.0)
    # What a late or failed answer would have been is not known.
    assert (third.output_tokens, third.reward, fourth.task) == (8, 0.0, "b")
    ((minute_s, found),) = await bench.found()
    assert (minute_s, found.problem, found.device_count) == (1_700_000_100, "", 3)
    told = [(each.task, each.recorded_count, each.bound_sum) for each in found.tasks]
    assert told == [("a", 2, 7.5), ("b", 1, 0.5)]
    assert found.tasks[0].delivered_reward_sum == 0.5
    assert [each.performance for each in found.static_large] == [0.25, 0.75]


async def test_of_prompts_is_told_what_was_cached_and_what_may_have_been() -> None:
    """All but one token of a conversation that left its seat, at the decision or after it."""
    bench = Bench()
    await bench.run(40)
    await bench.write(1)
    await bench.write(2, stay=common_pb2.CONVERSATION_STAY_NEW)
    kept = common_pb2.CONVERSATION_STAY_KEPT
    await bench.write(3, stay=kept, cached_prompt_token_count=16)
    await bench.write(4, stay=kept, rescued=True)
    await bench.write(5, stay=kept, retry_count=1)
    await bench.write(6, stay=common_pb2.CONVERSATION_STAY_WORTH)
    await bench.write(7, stay=kept, cached_prompt_token_count=-1)
    await bench.run(90)
    ((_devices, requests),) = bench.asked
    assert [each.cached_tokens for each in requests] == [0, 0, 16, 29, 29, 29]


async def test_a_request_comes_with_what_its_own_deadline_was_for() -> None:
    """None where a router did not say; one with an interval that cannot be is left out."""
    bench = Bench()
    await bench.run(40)
    paced = common_pb2.SLO_KIND_PER_TOKEN
    await bench.write(1)
    await bench.write(2, slo_kind=common_pb2.SLO_KIND_FIRST_TOKEN)
    await bench.write(3, slo_kind=paced, interval_ms=50)
    await bench.write(4, slo_kind=paced, interval_ms=60_001)
    await bench.run(90)
    ((_devices, requests),) = bench.asked
    kinds = [(each.slo_kind, each.token_interval_s) for each in requests]
    assert kinds == [(None, 0.0), (SloKind.FIRST_TOKEN, 0.0), (SloKind.PER_TOKEN, 0.05)]


async def test_a_late_answer_that_was_delivered_is_as_long_as_it_was() -> None:
    """A stream goes on after its deadline; what was cut off would have been as predicted."""
    bench = Bench()
    await bench.run(40)
    late = common_pb2.OUTCOME_STATUS_LATE
    by = common_pb2.Candidate(tier="small", endpoint="e0")
    await bench.write(1, status=late, output_token_count=20, served_by=by)
    await bench.write(2, status=late, output_token_count=20)
    await bench.run(90)
    ((_devices, requests),) = bench.asked
    assert [each.output_tokens for each in requests] == [20, 8]


async def test_two_trainers_look_once() -> None:
    """The later one finds what the other wrote."""
    bench = Bench()
    other = bench.another()
    await bench.run(40)
    await other.look()
    await bench.write(1)
    await bench.run(80)
    await other.look()
    assert len(bench.asked) == len(await bench.found()) == 1


async def test_what_cannot_be_looked_at_has_a_reason() -> None:
    """Too many requests, an endpoint with a profile of its own, a failure; then all is well."""
    bench = Bench(most_requests=2)
    await bench.keeper.look()
    bench.clock.move(31.0)
    for sequence in range(3):
        await bench.write(sequence + 1)
    await bench.run(80)
    state = seen_state(("r", 1))
    state.endpoints[0].endpoint.profile = "theirs"
    bench.mesh.take(state)
    await bench.write(11)
    await bench.run(80)
    state.endpoints[0].endpoint.profile = "p"
    bench.mesh.take(state)
    bench.error = WorkerError("ScenarioError", "no tier")
    await bench.write(21)
    await bench.run(80)
    bench.error = None
    await bench.write(31)
    await bench.run(90)
    problems = [found.problem for _, found in await bench.found()]
    assert problems == [
        "more than 2 requests (trainer.hindsight_max_requests)",
        "the trainer does not know profile theirs of an endpoint",
        "the trainer failed at it: ScenarioError: no tier",
        "",
    ]
    assert bench.asked[-1][0] == (("small",),)


async def test_a_stream_that_is_away_is_read_on_later() -> None:
    """Nothing is lost by it, and nothing is raised."""
    bench = Bench()
    await bench.run(40)
    await bench.write(1)
    bench.stream.is_down = True
    await bench.run(90)
    assert bench.asked == []
    bench.stream.is_down = False
    await bench.run(1)
    assert [len(requests) for _, requests in bench.asked] == [1]


async def test_a_clock_that_is_not_that_of_redis_hides_no_record() -> None:
    """Entries get their ids by the clock of Redis; what is read next is told by them alone."""
    bench = Bench()
    bench.clock.set_by(3600.0)
    ahead = bench.another()
    bench.clock.set_by(-3600.0)
    bench.keeper = ahead
    assert await bench.minutes_looked_at() == 2


async def test_a_redis_that_begins_anew_is_read_from_its_beginning() -> None:
    """Its ids may be lower than those that were read last."""
    bench = Bench()
    await bench.minutes_looked_at()
    bench.clock.set_by(-3600.0)
    bench.stream.target = MemoryExperienceStream(bench.clock)
    bench.clock.set_by(3600.0)
    assert await bench.minutes_looked_at() == 3


@pytest.mark.parametrize("shift_s", [-3600.0, 3600.0, 10 * 365 * 86_400.0])
async def test_a_clock_that_is_set_costs_the_minutes_around_it(shift_s: float) -> None:
    """Not as many as it was set by, nor is each that was skipped walked through."""
    bench = Bench()
    await bench.minutes_looked_at()
    bench.clock.set_by(shift_s)
    found = await bench.minutes_looked_at(240)
    assert 2 <= found <= 4
    assert len(bench.asked) == len(await bench.found()) <= 8


async def test_records_that_cannot_be_right_spoil_no_minute() -> None:
    """Of routers nobody knows, of another time, with an answer of fewer than no tokens."""
    bench = Bench()
    bench.mesh.take(seen_state(("r", 1)))
    bench.clock.move(31.0)
    await bench.keeper.look()
    await bench.write(1, output_token_count=-5)
    await bench.write(2, output_token_count=2**31 - 1)
    await bench.write(3, router_id="stranger")
    await bench.write(4, router_id="r" * 1_000_000)
    bench.clock.set_by(-86_400.0)
    await bench.write(5)
    bench.clock.set_by(86_400.0)
    await bench.write(6)
    await bench.run(90)
    ((_devices, requests),) = bench.asked
    assert [each.output_tokens for each in requests] == [8]
