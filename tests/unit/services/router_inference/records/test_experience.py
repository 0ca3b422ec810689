"""Experience: written in the background, bounded while Redis is away, counted when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from router.features import FEATURE_COUNT, SCHEMA
from router.types import SloKind
from services.common.state.experience_stream import MemoryExperienceStream
from services.router_inference.job import Choice
from services.router_inference.records.convert import OutcomeEntry
from tests.fakes.state_store import SwitchableStore
from tests.fakes.virtual_time import LoopClock
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.policy.test_slot import snapshot_bytes
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2, experience_pb2


def switchable() -> Any:
    """A stream that can be switched off."""
    return SwitchableStore(MemoryExperienceStream(LoopClock()))


async def entries(stream: Any) -> list[experience_pb2.ExperienceEntry]:
    """Everything in a stream."""
    return [
        experience_pb2.ExperienceEntry.FromString(entry.payload)
        for entry in await stream.behind("0-0", 1_000)
    ]


@scenario
async def test_a_request_leaves_a_decision_and_an_outcome() -> None:
    """Both records carry the same identity and what the trainer joins them by."""
    rig = make_rig()
    await rig.answer(rig.job(request_id="mine"))
    decision, outcome = [
        getattr(entry, entry.WhichOneof("record") or "") for entry in await rig.records()
    ]
    assert (decision.router_id, decision.sequence) == ("r1", 1)
    assert (outcome.router_id, outcome.epoch, outcome.sequence) == (
        "r1", decision.epoch, 1,
    )  # fmt: skip
    assert [c.tier for c in decision.candidates] == ["small", "medium", "large"]
    assert decision.action == 2
    assert decision.feature_schema == SCHEMA
    assert decision.slack.ToTimedelta().total_seconds() == pytest.approx(0.4)
    assert (outcome.status, outcome.served_by.tier, outcome.reward) == (1, "large", 1.0)
    assert outcome.latency.ToTimedelta().total_seconds() == pytest.approx(0.02)
    assert outcome.first_token_latency.ToTimedelta().total_seconds() == pytest.approx(0.01)
    assert decision.decide_time.ToNanoseconds() < outcome.end_time.ToNanoseconds()
    assert decision.slo_kind == common_pb2.SLO_KIND_COMPLETE_ANSWER
    assert not decision.HasField("token_interval")


@scenario
async def test_a_decision_says_what_its_deadline_is_for() -> None:
    """The request's own kind, and the time between tokens where each has its own due time."""
    rig = make_rig()
    await rig.answer(rig.job(task="first", is_stream=True))
    paced = {"slo_kind": SloKind.PER_TOKEN, "token_interval_s": 0.05}
    await rig.answer(rig.job(is_stream=True, **paced))
    first, second = [e.decision for e in await rig.records() if e.HasField("decision")]
    assert first.slo_kind == common_pb2.SLO_KIND_FIRST_TOKEN
    assert second.slo_kind == common_pb2.SLO_KIND_PER_TOKEN
    assert second.token_interval.ToMilliseconds() == 50


@scenario
async def test_a_learned_decision_carries_its_features() -> None:
    """Row-major little-endian float32, one row per candidate."""
    rig = make_rig()
    rig.core.slot._snapshots["dqn"] = snapshot_bytes()
    rig.core.slot.use("dqn")
    await rig.answer(rig.job())
    decision = (await rig.records())[0].decision
    assert decision.feature_count == FEATURE_COUNT
    features_CF = np.frombuffer(decision.features, "<f4").reshape(3, FEATURE_COUNT)
    # Feature 0 is the quality.
    assert features_CF[:, 0].tolist() == pytest.approx([0.5, 0.8, 1.0])


@scenario
async def test_features_that_were_read_are_those_that_would_be_found_again() -> None:
    """Bit by bit, on any load; they are kept only while records are written before long."""
    stream = switchable()
    rig = make_rig(endpoint_count=3, experience=stream)
    rig.core.slot._snapshots["dqn"] = snapshot_bytes(tier_bias=1.0)
    rig.core.slot.use("dqn")
    writer = rig.core.experience
    for number in range(20):
        rig.core.leases.route(rig.job(prompt=None, prompt_tokens=10 * number + 1))
    kept = [each for each in writer._buffer if isinstance(each.entry, Choice)]
    assert len(kept) == 20
    assert len({each.features for each in kept}) > 10
    for each in kept:
        assert each.features
        written, found = (
            writer._builder.payload(each.entry, features) for features in (each.features, b"")
        )
        assert written == found
    writer.is_reachable = False
    rig.core.leases.route(rig.job(prompt=None, prompt_tokens=9))
    assert writer._buffer[-1].features == b""


@scenario
async def test_features_of_a_shortlist_are_left_to_be_found() -> None:
    """The network has read a part of them; records have those of every candidate."""
    rig = make_rig(endpoint_count=22)
    rig.core.slot._snapshots["dqn"] = snapshot_bytes(tier_bias=1.0)
    rig.core.slot.use("dqn")
    rig.core.leases.route(rig.job(prompt=None, prompt_tokens=9))
    (kept,) = rig.core.experience._buffer
    assert kept.features == b""


@scenario
async def test_records_wait_for_redis_and_the_oldest_give_way() -> None:
    """While the store is away the buffer is bounded, losses are counted, the rest arrives."""
    stream = switchable()
    rig = make_rig(experience=stream, experience_buffer_count=6, reconnect_s=0.5)
    writer = asyncio.ensure_future(rig.core.experience.run())
    stream.is_down = True
    for _ in range(5):
        await rig.answer(rig.job())
    await asyncio.sleep(1.0)
    assert "REDIS_UNREACHABLE" in rig.core.status.read().degraded_reasons
    assert rig.core.experience.dropped_count == 4
    assert rig.core.experience.waiting_count == 6
    stream.is_down = False
    await asyncio.sleep(1.0)
    kinds = [entry.WhichOneof("record") for entry in await entries(stream)]
    assert kinds == ["decision", "outcome"] * 3 + ["process"]
    assert "REDIS_UNREACHABLE" not in rig.core.status.read().degraded_reasons
    writer.cancel()


@scenario
async def test_records_wait_no_longer_than_they_may_and_what_is_missing_is_told() -> None:
    """What is older is dropped by its reason, shown in the status, and told to the trainer."""
    stream = switchable()
    rig = make_rig(experience=stream, experience_buffer_s=3.0, reconnect_s=0.5)
    writer = asyncio.ensure_future(rig.core.experience.run())
    stream.is_down = True
    await rig.answer(rig.job())
    await asyncio.sleep(2.0)
    await rig.answer(rig.job())
    await asyncio.sleep(2.0)
    waiting = rig.core.status.read().experience
    assert waiting is not None
    assert (waiting.count, waiting.dropped) == (2, {"age": 2})
    assert 1.9 < waiting.oldest_s <= 3.0
    stream.is_down = False
    await asyncio.sleep(1.0)
    last, *process = [entry for entry in await entries(stream) if entry.HasField("process")]
    assert not process
    told = last.process
    assert (told.router_id, told.dropped_decision_count, told.dropped_outcome_count) == ("r1", 1, 1)
    assert not told.ended
    assert rig.core.experience.oldest_s() == 0.0
    writer.cancel()


@scenario
async def test_a_gap_is_told_though_nothing_else_is_to_be_written() -> None:
    """Nobody has to ask anything before the trainer learns of it."""
    stream = switchable()
    rig = make_rig(experience=stream, experience_buffer_s=1.0, reconnect_s=0.5)
    writer = asyncio.ensure_future(rig.core.experience.run())
    stream.is_down = True
    await rig.answer(rig.job())
    await asyncio.sleep(3.0)
    stream.is_down = False
    await asyncio.sleep(1.0)
    [only] = await entries(stream)
    assert (only.process.dropped_decision_count, only.process.dropped_outcome_count) == (1, 1)
    writer.cancel()


@scenario
async def test_a_process_that_ends_in_order_says_so_last() -> None:
    """A trainer can tell it from one that was killed with records in hand."""
    stream = switchable()
    rig = make_rig(experience=stream)
    await rig.answer(rig.job())
    await rig.core.experience.flush(1.0)
    await rig.core.experience.flush(1.0)
    *records, last = await entries(stream)
    assert [entry.WhichOneof("record") for entry in records] == ["decision", "outcome"]
    assert last.process.ended


@scenario
async def test_a_process_that_never_wrote_says_nothing_at_its_end() -> None:
    """There is nothing to tell of it."""
    stream = switchable()
    rig = make_rig(experience=stream)
    await rig.core.experience.flush(1.0)
    assert await stream.count() == 0


@scenario
async def test_a_process_says_that_it_begins_before_anything_is_asked_of_it() -> None:
    """So that it is known of one killed before its first record that there was one."""
    stream = switchable()
    rig = make_rig(experience=stream)
    writer = asyncio.ensure_future(rig.core.experience.run())
    await asyncio.sleep(1.0)
    [begun] = await entries(stream)
    assert (begun.process.router_id, begun.process.ended) == ("r1", False)
    writer.cancel()


@scenario
async def test_records_of_a_write_that_was_cut_off_are_written_once_more() -> None:
    """Whether the store took them or not; none is counted as dropped meanwhile."""

    class SlowStream(MemoryExperienceStream):
        async def append(self, payloads: Sequence[bytes]) -> None:
            await super().append(payloads)
            await asyncio.sleep(1000.0 if await self.count() <= 3 else 0.0)

    stream = SlowStream(LoopClock())
    rig = make_rig(experience=stream)
    writer = asyncio.ensure_future(rig.core.experience.run())
    await rig.answer(rig.job())
    await asyncio.sleep(1.0)
    assert rig.core.experience.waiting_count == 2
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    await rig.core.experience.flush(1.0)
    kinds = [entry.WhichOneof("record") for entry in await entries(stream)]
    assert kinds == ["decision", "outcome", "process"] * 2
    assert rig.core.experience.dropped_count == 0


@scenario
async def test_a_store_that_is_back_is_noticed_without_traffic() -> None:
    """Nothing has to be lost for the reason to clear."""
    stream = switchable()
    rig = make_rig(experience=stream, reconnect_s=0.5)
    writer = asyncio.ensure_future(rig.core.experience.run())
    stream.is_down = True
    await rig.answer(rig.job())
    await asyncio.sleep(1.0)
    assert "REDIS_UNREACHABLE" in rig.core.status.read().degraded_reasons
    stream.is_down = False
    rig.core.experience._buffer.clear()
    await asyncio.sleep(1.0)
    assert "REDIS_UNREACHABLE" not in rig.core.status.read().degraded_reasons
    writer.cancel()


@scenario
async def test_the_last_flush_is_bounded_and_counts_what_it_loses() -> None:
    """A store that is away cannot hold up the end of the process."""
    stream = switchable()
    rig = make_rig(experience=stream)
    stream.is_down = True
    await rig.answer(rig.job())
    await rig.core.experience.flush(1.0)
    assert rig.core.experience.dropped_count == 2
    assert rig.core.experience.waiting_count == 0


@scenario
async def test_a_store_that_hangs_is_not_noticed_by_requests() -> None:
    """No Redis on the request path: answers take what the tier takes while a write hangs."""

    class HangingStream(MemoryExperienceStream):
        async def append(self, payloads: Sequence[bytes]) -> None:
            await asyncio.sleep(1000.0)

    rig = make_rig(experience=HangingStream(LoopClock()))
    writer = asyncio.ensure_future(rig.core.experience.run())
    await rig.answer(rig.job())
    await asyncio.sleep(1.0)
    job = rig.job()
    await rig.answer(job)
    assert job.end_s - job.arrival_s == pytest.approx(0.02)
    writer.cancel()


@scenario
async def test_features_can_be_recorded_whatever_the_policy() -> None:
    """What is recorded for another policy is what the learned one would have seen."""
    rows = []
    for policy in ("static-large", "dqn"):
        rig = make_rig(features_always=True)
        rig.core.slot._snapshots["dqn"] = snapshot_bytes(tier_bias=1.0)
        rig.core.slot.use(policy)
        await rig.answer(rig.job())
        rows.append((await rig.records())[0].decision.features)
    assert rows[0] == rows[1]
    assert rows[0]


@scenario
async def test_a_record_that_cannot_be_written_keeps_no_other() -> None:
    """It is dropped and counted; the writer goes on."""
    rig = make_rig()
    await rig.answer(rig.job())
    good = rig.core.experience._buffer[-1].entry
    assert isinstance(good, OutcomeEntry)
    rig.core.experience.add(good._replace(output_tokens=2**40))
    await rig.answer(rig.job())
    records = await rig.records()
    assert [entry.WhichOneof("record") for entry in records] == ["decision", "outcome"] * 2
    assert rig.core.experience.dropped_count == 1
    assert rig.core.experience.waiting_count == 0
