"""Iteration-level batching of a paced tier, on a device of its own and a hand-moved clock."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paced_engine import (
    DEVICE_LOST,
    QUEUE_TIMEOUT,
    Control,
    Job,
    PacedEngine,
    TierTiming,
    output_token_count,
    prompt_token_count,
)

TIMING = TierTiming(
    step_s=0.010,
    per_sequence_s=0.001,
    per_prompt_token_s=0.0001,
    max_batch=2,
    max_prompt_tokens_per_step=100,
)
NEVER = math.inf


class World:
    """An engine with its time, its device and what it reported."""

    def __init__(self, tmp_path: Path, timing: TierTiming = TIMING, queue: int = 100) -> None:
        self.now_s = 0.0
        self.end_s = 0.0
        self.durations: list[float] = []
        self.done: list[tuple[float, Job]] = []
        self.dropped: list[tuple[Job, str]] = []
        self.control_path = tmp_path / "gpu0.control.json"
        self.asked_cv: list[float] = []
        self.factor = 1.0
        self.engine = PacedEngine(
            timing=timing,
            clock=self,
            control=Control(self.control_path),
            on_tokens=self._tokens,
            on_dropped=lambda job, reason: self.dropped.append((job, reason)),
            max_queue_count=queue,
            stretch=self._stretch,
            now=lambda: self.now_s,
            sleep=self._sleep,
        )

    def _stretch(self, cv: float) -> float:
        """The factor that is drawn next."""
        self.asked_cv.append(cv)
        return self.factor

    def take_turn(
        self, ready_s: float, least_duration_s: float, compose: Callable[[float], float]
    ) -> Any:
        """A device that nobody else uses."""
        duration_s = compose(ready_s)
        if duration_s <= 0.0:
            return None
        self.durations.append(duration_s)
        return SimpleNamespace(start_s=ready_s, end_s=ready_s + duration_s)

    def submit(self, prompt: int = 10, output: int = 2, deadline_s: float = NEVER) -> Job:
        """Submits a job that arrives now."""
        job = Job(
            sink=None,
            arrival_s=self.now_s,
            deadline_s=deadline_s,
            prompt_token_count=prompt,
            output_token_count=output,
        )
        assert self.engine.submit(job) == ""
        return job

    def step(self) -> None:
        """Runs one iteration."""
        self.end_s = self.engine.step(self.end_s)

    def fault(self, **content: object) -> None:
        """Writes the control file."""
        self.control_path.write_text(json.dumps(content))

    def _sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def _tokens(self, jobs: Sequence[Job]) -> None:
        self.done += [(self.now_s, job) for job in jobs if job.is_complete]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An idle engine."""
    return World(tmp_path)


def test_lone_request_takes_the_formula(world: World) -> None:
    """Prompt once, then one step per token, the first token within the first iteration."""
    job = world.submit(prompt=10, output=3)
    for _ in range(3):
        world.step()
    assert world.durations == pytest.approx([0.012, 0.011, 0.011])
    [(at_s, finished)] = world.done
    assert finished is job
    assert at_s == pytest.approx(0.034)


def test_every_iteration_takes_the_factor_that_is_drawn_for_it(tmp_path: Path) -> None:
    """For the spread of its profile; one that has none asks for none."""
    world = World(tmp_path, replace(TIMING, iteration_cv=0.2))
    world.submit(prompt=10, output=2)
    world.factor = 1.5
    world.step()
    world.factor = 0.5
    world.step()
    assert world.durations == pytest.approx([1.5 * 0.012, 0.5 * 0.011])
    assert world.asked_cv == [0.2, 0.2]
    costs = {"step_s": 1.0, "per_sequence_s": 0.0, "per_prompt_token_s": 0.0}
    for more, cv in (({}, 0.0), ({"iteration_cv": 0.1}, 0.1)):
        profile = {"tiers": {"small": {**costs, **more}}}
        assert TierTiming.from_profile(profile, "small", 2.0).iteration_cv == cv


def test_batch_costs_per_sequence(world: World) -> None:
    """Two requests that run together share the step and pay for themselves."""
    world.submit()
    world.submit()
    world.step()
    assert world.durations == pytest.approx([0.010 + 2 * 0.001 + 20 * 0.0001])


def test_request_waits_for_a_slot(world: World) -> None:
    """With `max_batch` running, the next one joins when one has finished."""
    first, _second = world.submit(output=1), world.submit(output=3)
    third = world.submit(output=1)
    world.step()
    assert [job for _, job in world.done] == [first]
    world.step()
    assert world.done[-1][1] is third


def test_prompt_tokens_per_step_are_limited(world: World) -> None:
    """A request that would exceed the limit joins one iteration later."""
    world.submit(prompt=60)
    late = world.submit(prompt=60)
    world.step()
    assert late.produced_count == 0
    world.step()
    assert late.produced_count == 1


def test_overlong_prompt_joins_alone(world: World) -> None:
    """One prompt above the limit is not kept waiting for ever."""
    job = world.submit(prompt=500)
    world.step()
    assert job.produced_count == 1


def test_request_after_the_start_waits_for_the_next_iteration(world: World) -> None:
    """Work that came after the computed start does not join, even if it is known by then."""
    first = world.submit()
    world.now_s = 0.005
    second = world.submit()
    world.step()
    assert (first.produced_count, second.produced_count) == (1, 0)
    world.step()
    assert second.produced_count == 1


def test_cancelled_request_frees_its_slot(world: World) -> None:
    """A cancelled job is gone before the next iteration, and the waiting one takes its place."""
    first, second = world.submit(output=50), world.submit(output=50)
    waiting = world.submit(output=1)
    world.step()
    first.cancelled = True
    world.step()
    assert world.dropped == [(first, "")]
    assert waiting.is_complete
    assert (first.produced_count, second.produced_count) == (1, 2)


def test_late_request_is_dropped_from_the_queue(world: World) -> None:
    """A request that waited past its deadline is answered with Triton's own words."""
    world.submit(output=50)
    world.submit(output=50)
    late = world.submit(deadline_s=0.012)
    for _ in range(2):
        world.step()
    assert world.dropped == [(late, QUEUE_TIMEOUT)]


def test_full_queue_refuses(tmp_path: Path) -> None:
    """One more than fits is refused at once, with the limit."""
    world = World(tmp_path, queue=1)
    world.submit()
    job = Job(
        sink=None, arrival_s=0.0, deadline_s=NEVER, prompt_token_count=1, output_token_count=1
    )
    assert world.engine.submit(job) == "Exceeds maximum queue size 1"


def test_slow_down_stretches_iterations(world: World) -> None:
    """A device slowed down by 1.5 takes 1.5 times as long, until it is healed."""
    world.submit(output=5)
    world.fault(slow_down=1.5)
    world.step()
    assert world.durations == pytest.approx([1.5 * 0.012])
    world.control_path.unlink()
    world.step()
    assert world.durations[1] == pytest.approx(0.011)


def test_lost_device_fails_everything(world: World) -> None:
    """Running and new requests fail with the reason."""
    job = world.submit(output=5)
    world.step()
    world.fault(state="lost")
    world.step()
    assert world.dropped == [(job, DEVICE_LOST)]
    again = Job(
        sink=None, arrival_s=0.0, deadline_s=NEVER, prompt_token_count=1, output_token_count=1
    )
    assert world.engine.submit(again) == DEVICE_LOST


def test_hung_device_moves_nothing_but_lets_go(world: World) -> None:
    """While it hangs no token is made; a cancelled request still leaves."""
    stays, leaves = world.submit(output=5), world.submit(output=5)
    world.fault(state="hung")
    leaves.cancelled = True
    world.step()
    assert world.durations == []
    assert world.dropped == [(leaves, "")]
    world.fault(state="ok")
    world.step()
    assert stays.produced_count == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"slow_down": -1}', '{"slow_down": "x"}'])
def test_unreadable_control_file_means_an_unhurt_device(world: World, content: str) -> None:
    """A half-written or wrong control file injects nothing."""
    world.submit()
    world.control_path.write_text(content)
    world.step()
    assert world.durations == pytest.approx([0.012])


def test_time_scale_stretches_every_cost() -> None:
    """All three costs of the profile are multiplied."""
    costs = {"step_s": 1.0, "per_sequence_s": 2.0, "per_prompt_token_s": 3.0}
    profile = {"name": "p", "tiers": {"small": costs}}
    timing = TierTiming.from_profile(profile, "small", 4.0)
    assert timing.duration_s(2, 5) == 4.0 * (1.0 + 2 * 2.0 + 5 * 3.0)


def test_missing_tier_is_named() -> None:
    """A profile without the tier says so."""
    with pytest.raises(ValueError, match=r"'p'.*'tiers' is missing"):
        TierTiming.from_profile({"name": "p"}, "small", 1.0)


def test_length_is_a_function_of_prompt_and_seed() -> None:
    """The same request has the same length, another seed may have another."""
    lengths = {output_token_count(b"prompt", seed, 100, 8.0, 0.5) for seed in range(50)}
    assert len(lengths) > 5
    assert output_token_count(b"a", 3, 100, 8.0, 0.5) == output_token_count(b"a", 3, 100, 8.0, 0.5)


def test_lengths_have_the_wanted_mean_and_limit() -> None:
    """The mean is met, no length passes the limit, and mean 0 means the limit itself."""
    lengths = [output_token_count(b"x%d" % i, i, 1000, 20.0, 0.5) for i in range(2000)]
    assert statistics.mean(lengths) == pytest.approx(20.0, rel=0.05)
    assert statistics.stdev(lengths) == pytest.approx(10.0, rel=0.15)
    assert max(output_token_count(b"x%d" % i, i, 8, 20.0, 0.5) for i in range(200)) == 8
    assert output_token_count(b"x", 0, 7, 0.0, 0.5) == 7


def test_prompt_tokens_are_words() -> None:
    """Words count; an empty prompt is one token."""
    assert prompt_token_count(b"three short words") == 3
    assert prompt_token_count(b"  ") == 1
