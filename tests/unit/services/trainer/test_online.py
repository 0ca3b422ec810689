"""Online runs: what is learned, saved, published, and what a failure on the way costs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import AbortedError, ResourceExhaustedError, UnavailableError
from services.common.log import get_logger
from services.common.state.experience_stream import MemoryExperienceStream
from services.common.state.policy_store import MemoryPolicyStore
from services.common.state.shared_state import MemorySharedState
from services.trainer import online
from services.trainer.drops import BEGIN_S, MOST_WAITING
from services.trainer.gate import GateRefusedError
from services.trainer.jobs import OnlineSpec
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode
from services.trainer.online import OnlineTraining
from services.trainer.promotion import RoutersRefusedError
from services.trainer.registry import PolicyRegistry
from services.trainer.runs import Run
from services.trainer.settings import TrainerSettings
from services.trainer.turn import LEASE_NAME, TTL_S, Turn
from services.trainer.worker import WorkerDiedError, WorkerError
from tests.fakes.virtual_time import LoopClock, run_virtual
from tests.unit.services.trainer.entries import TASK, decision, key, unwatched
from tests.unit.services.trainer.test_registry import snapshot
from trainer.learning.checkpoint import OvertakenError
from trainer.learning.online.loop import LoopStatus

STEPS_PER_CALL = 10


class FakeLearner:
    """Does ten steps a call, keeps the keys it was given, and fails as told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, list[Exception]] = defaultdict(list)
        self.delays_s: dict[str, list[float]] = defaultdict(list)
        self.ingested: list[int] = []
        self.step_count = 0
        self.spec: OnlineSpec | None = None
        self.is_closed = False

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Answers."""
        self.calls.append(method)
        if self.delays_s[method]:
            await asyncio.sleep(self.delays_s[method].pop(0))
        if self.failures[method]:
            raise self.failures[method].pop(0)
        return getattr(self, f"_{method}")(*arguments)

    async def close(self) -> None:
        """Notes it."""
        self.is_closed = True

    def _learn(self, budget_s: float) -> LoopStatus:
        self.step_count += STEPS_PER_CALL if budget_s > 0.0 else 0
        return LoopStatus(self.step_count, len(self.ingested), 0, 0.5, 0.9)

    def _ingest(self, decisions: list[Any], outcomes: list[Any], processes: list[Any]) -> list[Any]:
        self.ingested += [record.key[2] for record in decisions]
        return []

    def _save(self) -> list[Any]:
        return [key(sequence) for sequence in self.ingested]

    def _drop(self, since_s: float, until_s: float) -> tuple[int, int]:
        return 3, 4

    def _snapshot(self, description: dict[str, Any]) -> bytes:
        return snapshot(self.step_count)


class FakeGate:
    """Is asked to promote, and fails as told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failure: Exception | None = None

    async def promote(self, registry: Any, record: Any, blob: bytes, *, by_hand: bool) -> None:
        """Notes the version."""
        assert not by_hand
        self.asked.append(record.version)
        if self.failure is not None:
            raise self.failure


class Bench:
    """An online training on stores in memory."""

    def __init__(self) -> None:
        clock, log = LoopClock(), get_logger("test")
        self.prometheus = CollectorRegistry()
        metrics = TrainerMetrics(self.prometheus)
        self.stream = MemoryExperienceStream(clock)
        self.shared = MemorySharedState(clock)
        self.learner = FakeLearner()
        self.gate = FakeGate()
        self.registry = PolicyRegistry(
            store=MemoryPolicyStore(),
            built_in=("price",),
            clock=clock,
            log=log,
            metrics=metrics,
        )
        self.training = OnlineTraining(
            settings=TrainerSettings(save_interval_s=1.0, publish_min_steps=1_000),
            deadline_s=0.4,
            stream=self.stream,
            turn=Turn(store=self.shared, owner="this", clock=clock, log=log),
            mesh=unwatched(),
            tasks=frozenset({TASK}),
            registry=self.registry,
            gate=self.gate,  # type: ignore[arg-type]
            clock=clock,
            log=log,
            metrics=metrics,
            fallback_initial=b"shipped",
            start_learner=self._start,
        )

    def _start(self, spec: OnlineSpec) -> FakeLearner:
        self.learner.spec = spec
        self.learner.calls.append("start")
        return self.learner

    def counted(self, name: str) -> float:
        """Returns a counter."""
        return self.prometheus.get_sample_value(f"tiercel_trainer_{name}_total") or 0.0

    def run(self, step_count: int = 20, *, promote: bool = False, entries: int = 0) -> Run:
        """Runs a training to its end in virtual time, after `entries` decisions came."""

        async def main() -> Run:
            run = Run(
                training_id="t", mode=Mode.ONLINE, step_count=step_count, seed=3, promote=promote
            )
            await self.stream.append([decision(number) for number in range(1, entries + 1)])
            async with asyncio.timeout(1_000.0):
                await self.training(run)
            return run

        return run_virtual(main())


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


def test_a_run_ends_after_its_steps_saved_and_published(bench: Bench) -> None:
    """The last things it does are a save and a snapshot, which the registry has."""
    run = bench.run(step_count=20)
    assert run.progress.step_count == 20
    assert bench.learner.calls[-2:] == ["save", "snapshot"]
    assert bench.learner.is_closed
    [_, record] = run_virtual(bench.registry.policies())
    assert record.version == run.progress.policy_version


def test_old_proposals_of_a_run_make_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody published himself stays."""
    monkeypatch.setattr(online, "_MOST_PROPOSED", 3)
    settings = TrainerSettings(publish_min_steps=1, publish_interval_s=0.1)
    bench.training = replace(bench.training, settings=settings)
    own = run_virtual(bench.registry.publish(snapshot(7), "by hand")).version
    run = bench.run(step_count=100)
    assert bench.learner.calls.count("snapshot") > 5
    left = [record.version for record in run_virtual(bench.registry.policies())[1:]]
    assert len(left) == 4
    assert {own, run.progress.policy_version} <= set(left)


def test_steps_of_earlier_runs_do_not_count(bench: Bench) -> None:
    """A learner restored with its state goes on for as many steps as this run plans."""
    bench.learner.step_count = 500
    run = bench.run(step_count=20)
    assert (bench.learner.step_count, run.progress.step_count) == (520, 20)


def test_a_run_starts_from_what_is_shipped_where_nothing_is_active(bench: Bench) -> None:
    """Seed and start reach the learner."""
    bench.run()
    assert bench.learner.spec is not None
    assert (bench.learner.spec.seed, bench.learner.spec.initial) == (3, b"shipped")


def test_experience_is_acknowledged_once_it_is_saved(bench: Bench) -> None:
    """Decisions reach the learner and leave the stream's open entries."""
    bench.run(entries=5)
    assert bench.learner.ingested == [1, 2, 3, 4, 5]
    assert bench.counted("entries_acked") == 5


def test_a_dead_learner_is_started_again_and_reads_again(bench: Bench) -> None:
    """What it held and had not saved comes once more; the run goes on to its end."""
    bench.learner.failures["learn"] = [WorkerDiedError("ended")]
    bench.learner.failures["save"] = [WorkerDiedError("ended")]
    run = bench.run(step_count=200, entries=3)
    assert run.progress.step_count == 200
    assert bench.learner.ingested == [1, 2, 3, 1, 2, 3]
    assert bench.counted("worker_failures") == 2


def test_a_learner_that_keeps_dying_ends_the_run(bench: Bench) -> None:
    """Nothing is gained by trying for ever."""
    bench.learner.failures["learn"] = [WorkerDiedError("ended")] * 100
    with pytest.raises(WorkerDiedError):
        bench.run()
    assert bench.learner.is_closed


def test_deaths_that_are_far_apart_end_no_run(bench: Bench) -> None:
    """A run goes on for months, and a learner may be killed now and then."""
    bench.learner.delays_s["learn"] = [601.0] * 8
    bench.learner.failures["learn"] = [WorkerDiedError("ended")] * 8
    during_a_run(bench, run_s=8 * 610.0)
    assert bench.counted("worker_failures") == 8
    assert bench.learner.step_count > 0


def test_what_could_not_be_saved_is_not_acknowledged(bench: Bench) -> None:
    """A full disk is counted; the entries stay in the stream."""
    bench.learner.failures["save"] = [WorkerError("OSError", "disk full")] * 100
    run = bench.run(entries=5)
    assert run.progress.step_count == 20
    assert bench.counted("save_failures") == bench.learner.calls.count("save") > 0
    assert bench.counted("entries_acked") == 0


def test_what_is_taken_in_is_bounded_while_nothing_can_be_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk may be full for days: the rest waits in the stream, and comes once there is room."""
    monkeypatch.setattr("services.trainer.online._MOST_UNSAVED", 10)
    taken = {}
    for failures in (100, 5):
        bench = Bench()
        settings = bench.training.settings.model_copy(update={"read_count": 5})
        bench.training = replace(bench.training, settings=settings)
        bench.learner.failures["save"] = [WorkerError("OSError", "disk full")] * failures
        bench.run(step_count=250, entries=50)
        taken[failures] = bench.learner.ingested
    assert len(taken[100]) <= 15
    assert taken[5] == list(range(1, 51))


def test_a_state_that_another_trainer_has_saved_over_is_given_up(bench: Bench) -> None:
    """Nothing could be saved on it any more: the run goes on from what the other one has saved."""
    overtaken = WorkerError("OvertakenError", "another process has saved", OvertakenError.reason)
    bench.learner.failures["save"] = [overtaken]
    bench.run(step_count=20, entries=5)
    assert bench.learner.calls.count("start") == 2
    assert bench.counted("entries_acked") == 5


@pytest.mark.parametrize(
    "failure",
    [
        GateRefusedError("no"),
        RoutersRefusedError("no"),
        AbortedError("another came"),
        WorkerError("ValueError", "x"),
        None,
    ],
)
def test_learning_goes_on_whatever_the_gate_says(bench: Bench, failure: Exception | None) -> None:
    """The snapshot is published and judged; a refusal is no failure of the run."""
    bench.gate.failure = failure
    run = bench.run(promote=True)
    assert bench.gate.asked == [run.progress.policy_version]


def test_replay_is_dropped_in_the_run_under_way_or_in_what_is_saved(bench: Bench) -> None:
    """The learner is told in both cases, and saves."""
    assert run_virtual(bench.training.drop_replay(5.0, 9.0)) == (3, 4)
    assert bench.learner.calls == ["start", "drop", "save"]
    assert bench.learner.is_closed


def during_a_run(bench: Bench, *drops: float, run_s: float = 100.0) -> list[Any]:
    """Asks for drops at moments of a run, in seconds; returns how each ended, and when.

    The run is stopped after `run_s`.
    """
    began_s = 0.0

    async def drop(at_s: float) -> tuple[Any, float]:
        await asyncio.sleep(at_s)
        try:
            answer: Any = await bench.training.drop_replay(5.0, 9.0)
        except (UnavailableError, ResourceExhaustedError) as error:
            answer = error.reason
        return answer, asyncio.get_running_loop().time() - began_s

    async def main() -> list[Any]:
        nonlocal began_s
        began_s = asyncio.get_running_loop().time()
        run = Run(training_id="t", mode=Mode.ONLINE, step_count=0, seed=3, promote=False)
        task = asyncio.create_task(bench.training(run))
        ends = asyncio.gather(*map(drop, drops))
        await asyncio.sleep(run_s)
        task.cancel()
        found = await ends
        await asyncio.gather(task, return_exceptions=True)
        await bench.training.close()
        return found

    return run_virtual(main())


def test_a_drop_waits_for_a_learner_that_starts(bench: Bench) -> None:
    """It is done as soon as the learner is up, before anything else, and saved."""
    bench.learner.delays_s["learn"] = [20.0]
    [(answer, at_s)] = during_a_run(bench, 1.0)
    assert (answer, at_s) == ((3, 4), pytest.approx(20.0))
    assert bench.learner.calls[:4] == ["start", "learn", "drop", "save"]


def test_a_drop_that_nobody_begins_is_withdrawn_and_its_caller_told(bench: Bench) -> None:
    """A learner that does not come up in time: nothing hangs, and nothing is dropped later."""
    bench.learner.delays_s["learn"] = [70.0]
    [(answer, at_s)] = during_a_run(bench, 1.0)
    assert (answer, at_s) == ("LEARNER_BUSY", pytest.approx(1.0 + BEGIN_S))
    assert "drop" not in bench.learner.calls


def test_more_drops_than_may_wait_are_refused(bench: Bench) -> None:
    """At once, while the others are done."""
    bench.learner.delays_s["learn"] = [20.0]
    ends = during_a_run(bench, *[1.0] * MOST_WAITING, 2.0)
    assert ends[-1] == ("TOO_MANY_DROPS", pytest.approx(2.0))
    assert [answer for answer, _ in ends[:-1]] == [(3, 4)] * MOST_WAITING


def test_a_learner_that_dies_in_a_drop_starts_again_and_reads_again(bench: Bench) -> None:
    """The caller is told; the run forgets what it had read, as after any death."""
    bench.learner.failures["drop"] = [WorkerDiedError("ended")]
    [(first, _), (second, _)] = during_a_run(bench, 10.0, 30.0)
    assert (first, second) == ("LEARNER_FAILED", (3, 4))
    assert bench.counted("worker_failures") == 1


def test_a_drop_that_could_not_be_saved_is_not_said_to_be_done(bench: Bench) -> None:
    """A full disk: what was dropped may come back, and the caller hears that."""
    bench.learner.failures["save"] = [WorkerError("OSError", "disk full")] * 200
    [(answer, _)] = during_a_run(bench, 10.0)
    assert answer == "NOT_SAVED"


def test_drops_between_runs_share_a_learner_and_a_run_waits_for_them(bench: Bench) -> None:
    """Otherwise the run would save, over what is left, the state that it had loaded before."""
    bench.learner.delays_s["drop"] = [15.0, 15.0]

    async def main() -> None:
        drops = asyncio.gather(*(bench.training.drop_replay(5.0, 9.0) for _ in range(2)))
        await asyncio.sleep(1.0)
        run = Run(training_id="t", mode=Mode.ONLINE, step_count=10, seed=3, promote=False)
        await asyncio.wait_for(bench.training(run), 1_000.0)
        assert await drops == [(3, 4), (3, 4)]

    run_virtual(main())
    begun = ["start", "drop", "save", "drop", "save", "start", "learn"]
    assert bench.learner.calls[: len(begun)] == begun


def test_a_drop_whose_caller_leaves_is_done_to_its_end(bench: Bench) -> None:
    """The learner is not ended in its middle, which would cost what it had not saved."""
    bench.learner.delays_s["drop"] = [15.0]

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bench.training.drop_replay(5.0, 9.0), 1.0)
        await asyncio.sleep(20.0)

    run_virtual(main())
    assert bench.learner.calls == ["start", "drop", "save"]


def test_a_drop_that_waits_outlives_the_run(bench: Bench) -> None:
    """A run that is stopped before it came to it leaves it to a learner of its own."""
    bench.learner.delays_s["learn"] = [70.0]
    [(answer, _)] = during_a_run(bench, 1.0, run_s=5.0)
    assert answer == (3, 4)
    assert bench.learner.calls == ["start", "learn", "start", "drop", "save"]


def test_it_learns_once_another_trainer_has_ended(bench: Bench) -> None:
    """While the other one has the turn, no experience is read and nothing is saved."""

    async def main() -> list[str]:
        await bench.shared.acquire_lease(LEASE_NAME, "other", TTL_S)
        run = Run(training_id="t", mode=Mode.ONLINE, step_count=20, seed=3, promote=False)
        task = asyncio.create_task(bench.training(run))
        await asyncio.sleep(0.9 * TTL_S)
        meanwhile = list(bench.learner.calls)
        await asyncio.wait_for(task, 1_000.0)
        return meanwhile

    assert run_virtual(main()) == []
    assert bench.learner.calls[-2:] == ["save", "snapshot"]


def test_a_lost_turn_saves_nothing_over_the_others_state(bench: Bench) -> None:
    """A trainer that was frozen goes back to the line; the next turn starts with a new learner."""

    async def main() -> int:
        run = Run(training_id="t", mode=Mode.ONLINE, step_count=0, seed=3, promote=False)
        task = asyncio.create_task(bench.training(run))
        await asyncio.sleep(3.0)
        await bench.shared.release_lease(LEASE_NAME, "this")
        await bench.shared.acquire_lease(LEASE_NAME, "other", 100.0)
        saves = bench.learner.calls.count("save")
        await asyncio.sleep(50.0)
        assert bench.learner.is_closed
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return bench.learner.calls.count("save") - saves

    assert run_virtual(main()) == 0


def test_what_another_trainer_learns_from_is_not_dropped_behind_its_back(bench: Bench) -> None:
    """Whoever asks is told that another trainer has it."""

    async def main() -> None:
        await bench.shared.acquire_lease(LEASE_NAME, "other", TTL_S)
        await bench.training.drop_replay(5.0, 9.0)

    with pytest.raises(UnavailableError, match="another trainer"):
        run_virtual(main())
    assert bench.learner.calls == []
