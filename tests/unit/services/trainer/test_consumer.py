"""Experience from the stream: read once, acknowledged once saved, never lost on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import MemoryExperienceStream
from services.trainer.consumer import ExperienceConsumer
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from tests.fakes.clock import FakeClock
from tests.fakes.state_store import SwitchableStore
from tests.unit.services.trainer.entries import TASK, decision, key, outcome, process, seen_state

GROUP = "trainer"
ORPHAN_S = 100.0
CLAIM_IDLE_S = 30.0


class Bench:
    """A stream that can be switched off, and consumers of one name on it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.stream: Any = SwitchableStore(MemoryExperienceStream(self.clock))
        self.prometheus = CollectorRegistry()
        self.mesh = MeshView(
            channel=None,
            candidates=[("small", "e0")],
            clock=self.clock,
            log=get_logger("test"),
        )
        self.consumer = self.another(self.prometheus)

    def another(self, prometheus: CollectorRegistry | None = None) -> ExperienceConsumer:
        """Returns one more consumer of the name, as a restarted trainer has."""
        return ExperienceConsumer(
            stream=self.stream,
            clock=self.clock,
            log=get_logger("test"),
            metrics=TrainerMetrics(prometheus or CollectorRegistry()),
            group=GROUP,
            consumer="one",
            read_count=100,
            claim_idle_s=CLAIM_IDLE_S,
            orphan_s=ORPHAN_S,
            mesh=self.mesh,
            tasks={TASK},
        )

    def counted(self, name: str, **labels: str) -> float:
        """Returns a counter of the first consumer."""
        return self.prometheus.get_sample_value(f"tiercel_trainer_{name}_total", labels) or 0.0

    def pending_count(self) -> int:
        """Returns how many entries are read and not acknowledged."""
        return len(self.stream.target._pending.get(GROUP, {}))


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


async def sequences(consumer: ExperienceConsumer) -> list[int]:
    """Reads once; returns the numbers of the decisions that came."""
    found = await consumer.read(0.0)
    assert found is not None
    return [record.key[2] for record in found[0]]


async def test_records_are_told_apart(bench: Bench) -> None:
    """Decisions and outcomes come decoded, each once."""
    await bench.stream.append([decision(1), outcome(1), decision(2), process(ended=True)])
    found = await bench.consumer.read(0.0)
    assert found is not None
    decisions, outcomes, processes = found
    assert [record.key for record in decisions] == [key(1), key(2)]
    assert [record.key for record in outcomes] == [key(1)]
    assert [record.key for record in processes] == [("r0", 7, 0)]
    assert await bench.consumer.read(0.0) == ([], [], [])
    assert bench.counted("entries_read") == 4


async def test_only_what_is_saved_is_acknowledged(bench: Bench) -> None:
    """Both entries of a settled decision are; those of others stay pending."""
    await bench.stream.append([decision(1), outcome(1), decision(2)])
    await bench.consumer.read(0.0)
    assert bench.pending_count() == 3
    await bench.consumer.settle([key(1)])
    assert bench.pending_count() == bench.consumer.open_count == 1
    assert bench.counted("entries_acked") == 2


async def test_a_malformed_entry_is_counted_and_let_go(bench: Bench) -> None:
    """It is no reason to stop, nor to read it again."""
    await bench.stream.append([b"\xff\xff", decision(1)])
    assert await sequences(bench.consumer) == [1]
    assert bench.counted("entries_bad") == 1
    await bench.consumer.settle([])
    assert bench.pending_count() == 1


async def reasons(bench: Bench) -> list[str]:
    """Returns why entries were set aside."""
    return [letter.reason for letter in bench.stream.target.dead_letters]


async def test_what_is_refused_is_set_aside_with_its_reason(bench: Bench) -> None:
    """A stamp a year ahead and the largest epoch stop nothing, and can be looked at."""
    ahead_s = round(bench.clock.wall_ns() / 1e9) + 365 * 86_400
    await bench.stream.append(
        [decision(1, stamp_s=ahead_s), decision(2, epoch=2**63 - 1), decision(3)]
    )
    assert await sequences(bench.consumer) == [3]
    clock, epoch = await reasons(bench)
    assert "ahead" in clock
    assert epoch.startswith("epoch")
    await bench.consumer.settle([])
    assert bench.pending_count() == 1


async def test_experience_goes_on_when_all_clocks_are_set_back(bench: Bench) -> None:
    """What was written before is not refused, what is written afterwards keeps its place."""
    now_s = round(bench.clock.wall_ns() / 1e9)
    await bench.stream.append([decision(1, stamp_s=now_s)])
    assert await sequences(bench.consumer) == [1]
    await bench.stream.append([decision(2, stamp_s=now_s + 1)])
    bench.clock.move(2.0)
    bench.clock.set_by(-3600.0)
    await bench.stream.append([decision(3, stamp_s=now_s - 3598)])
    read = await bench.consumer.read(0.0)
    assert read is not None
    assert [each.time_s - now_s for each in read[0]] == [1.0, 1.0]
    assert await reasons(bench) == []


async def test_records_of_a_router_nobody_knows_wait_and_are_then_refused(bench: Bench) -> None:
    """A new router is given time to be seen; a stranger's records end aside."""
    bench.mesh.take(seen_state(("r0", 7)))
    stamp_s = round(bench.clock.wall_ns() / 1e9) + 1
    await bench.stream.append(
        [decision(n, router, stamp_s=stamp_s) for n, router in ((1, "r0"), (2, "new"), (3, "odd"))]
    )
    assert await sequences(bench.consumer) == [1]
    bench.clock.move(CLAIM_IDLE_S + 1.0)
    bench.mesh.take(seen_state(("r0", 7), ("new", 7)))
    assert await sequences(bench.consumer) == [2]
    assert [reason[:12] for reason in await reasons(bench)] == ["router 'odd'"]


async def test_records_from_before_the_mesh_was_seen_are_taken(bench: Bench) -> None:
    """A router that died while the trainer was away has its experience counted all the same."""
    await bench.stream.append([decision(1, "dead")])
    bench.mesh.take(seen_state(("r0", 7)))
    assert await sequences(bench.consumer) == [1]


async def test_what_cannot_be_set_aside_is_not_acknowledged(bench: Bench) -> None:
    """It comes again."""
    await bench.stream.append([b"\xff"])
    await bench.consumer.read(0.0)
    assert await reasons(bench) == ["not an ExperienceEntry"]
    assert bench.counted("entries_bad") == 1


async def test_a_restart_reads_first_what_was_not_saved(bench: Bench) -> None:
    """What a former life had read comes before anything newer."""
    await bench.stream.append([decision(1), decision(2)])
    await bench.consumer.read(0.0)
    await bench.consumer.settle([key(1)])
    await bench.stream.append([decision(3)])
    bench.clock.move(1.0)
    restarted = bench.another()
    assert await sequences(restarted) == [2]
    assert await sequences(restarted) == [3]


async def test_what_a_lost_worker_held_is_read_again(bench: Bench) -> None:
    """After `forget` everything open comes once more."""
    await bench.stream.append([decision(1)])
    await bench.consumer.read(0.0)
    bench.clock.move(1.0)
    bench.consumer.forget()
    assert bench.consumer.open_count == 0
    assert await sequences(bench.consumer) == [1]


async def test_entries_of_a_dead_consumer_are_claimed(bench: Bench) -> None:
    """Entries another consumer read long ago and never acknowledged are taken over."""
    assert await sequences(bench.consumer) == []
    await bench.stream.append([decision(1)])
    await bench.stream.read(GROUP, "dead", 10, 0.0)
    bench.clock.move(CLAIM_IDLE_S + 1.0)
    assert await sequences(bench.consumer) == [1]


async def test_a_stream_that_is_away_is_nothing_to_read(bench: Bench) -> None:
    """None while it is away; when it is back nothing is missing."""
    await bench.stream.append([decision(1)])
    bench.stream.is_down = True
    assert await bench.consumer.read(0.0) is None
    assert not bench.consumer.is_reachable
    bench.stream.is_down = False
    assert await sequences(bench.consumer) == [1]
    assert bench.consumer.is_reachable


async def test_an_acknowledgement_that_failed_is_repeated(bench: Bench) -> None:
    """What could not be acknowledged is at the next call."""
    await bench.stream.append([decision(1)])
    await bench.consumer.read(0.0)
    bench.stream.is_down = True
    await bench.consumer.settle([key(1)])
    assert bench.pending_count() == 1
    bench.stream.is_down = False
    await bench.consumer.settle([])
    assert bench.pending_count() == 0


async def test_a_great_deal_is_acknowledged_bit_by_bit(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it at once takes Redis longer than a call may take, this time and every time."""
    ack, sent = bench.stream.target.ack, []

    async def slow(group: str, entry_ids: Sequence[str]) -> int:
        sent.append(len(entry_ids))
        if len(entry_ids) > 10_000 or len(sent) == 2:
            raise StateUnavailableError("Redis did not answer within 0.5 s")
        return await ack(group, entry_ids)  # type: ignore[no-any-return]

    monkeypatch.setattr(bench.stream.target, "ack", slow)
    await bench.stream.append([b"\xff"] * 12_000)  # refused, so that nothing need be saved
    while await bench.consumer.read(0.0) and bench.counted("entries_read") < 12_000:
        pass
    await bench.consumer.settle([])
    done = bench.counted("entries_acked")
    assert 0 < done < 12_000
    assert bench.pending_count() == 12_000 - done
    await bench.consumer.settle([])
    assert bench.pending_count() == 0
    assert bench.counted("entries_acked") == 12_000


async def test_what_nothing_settles_is_given_up(bench: Bench) -> None:
    """An outcome without its decision does not stay open for ever."""
    await bench.stream.append([outcome(1)])
    await bench.consumer.read(0.0)
    bench.clock.move(ORPHAN_S - 1.0)
    await bench.consumer.settle([])
    assert bench.consumer.open_count == 1
    bench.clock.move(2.0)
    await bench.consumer.settle([])
    assert bench.consumer.open_count == bench.pending_count() == 0
    assert bench.counted("records_dropped", reason="alone") == 1


async def test_a_decision_is_never_given_up(bench: Bench) -> None:
    """However long it waits for what it takes to be saved, as after the end of all traffic."""
    await bench.stream.append([decision(1), outcome(1), process()])
    await bench.consumer.read(0.0)
    bench.clock.move(10.0 * ORPHAN_S)
    await bench.consumer.settle([])
    assert bench.consumer.open_count == bench.pending_count() == 3
    assert bench.counted("records_dropped", reason="alone") == 0
    await bench.consumer.settle([key(1), ("r0", 7, 0)])
    assert bench.pending_count() == 0


async def test_what_a_lost_answer_had_delivered_comes_before_anything_newer(bench: Bench) -> None:
    """Redis that dies behind its answer has marked the entries as read; nobody has seen them."""
    await bench.stream.append([decision(1)])
    assert await sequences(bench.consumer) == [1]
    await bench.stream.append([decision(2)])
    await bench.stream.read(GROUP, "one", 10, 0.0)  # the answer that is lost
    bench.stream.is_down = True
    assert await bench.consumer.read(0.0) is None
    bench.stream.is_down = False
    await bench.stream.append([decision(3)])
    bench.clock.move(1.0)
    assert await sequences(bench.consumer) == [2]
    assert await sequences(bench.consumer) == [3]
    assert bench.consumer.open_count == 3


async def test_a_router_whose_clock_was_set_right_after_its_start_is_learned_from(
    bench: Bench,
) -> None:
    """Its epoch lies ahead for as long as its clock did; others cannot claim one that does."""
    ahead = (1_700_000_000 + 365 * 86_400) * 10**9
    bench.mesh.take(seen_state(("r0", ahead)))
    now_s = 1_700_000_000
    await bench.stream.append(
        [decision(1, epoch=ahead, stamp_s=now_s), decision(2, epoch=ahead + 1, stamp_s=now_s)]
    )
    assert await sequences(bench.consumer) == [1]
