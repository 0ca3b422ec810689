"""Iteration-level batching of one paced tier: its work is timed by a profile, not computed.

The duration of an iteration is
    time_scale * slow_down * (step_s + per_sequence_s * batch + per_prompt_token_s * prompt tokens)
with the prompt tokens of the requests that join in it, times a factor drawn for each iteration
where the profile has a spread (`iteration_cv`). Every running sequence gets one token per
iteration, its first one at the end of the iteration it joins in.

Copied next to the paced `model.py`; standard library only, and no Triton, so that it can be
tested without.
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

QUEUE_FULL = "Exceeds maximum queue size"
QUEUE_TIMEOUT = "Request timeout expired"
DEVICE_LOST = "paced device is lost"
TOO_LARGE = "text_input: with its answer beyond the tier's room for keys and values"
STOPPING = "paced tier is stopping"
STATES = ("ok", "lost", "hung")
_HUNG_CHECK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class TierTiming:
    """Costs of one tier's iteration on an unhurt device, `time_scale` included.

    Attributes:
        step_s: Cost independent of the batch, seconds.
        per_sequence_s: Cost per sequence, seconds.
        per_prompt_token_s: Cost per prompt token that joins, seconds.
        max_batch: Most sequences in one iteration.
        max_prompt_tokens_per_step: Most prompt tokens that join in one iteration; one longer
            prompt still joins, alone.
        max_kv_tokens: Room for keys and values, tokens; infinite: it never runs out.
        iteration_cv: Coefficient of variation of iteration times about these costs; 0: none.
    """

    step_s: float
    per_sequence_s: float
    per_prompt_token_s: float
    max_batch: int
    max_prompt_tokens_per_step: int
    max_kv_tokens: float = math.inf
    iteration_cv: float = 0.0

    def duration_s(self, batch: int, prompt_token_count: int) -> float:
        """Returns the time of one iteration, seconds."""
        return (
            self.step_s + self.per_sequence_s * batch + self.per_prompt_token_s * prompt_token_count
        )

    @classmethod
    def from_profile(cls, profile: dict[str, Any], tier: str, time_scale: float) -> TierTiming:
        """Reads a tier's costs from a parsed profile file.

        Raises:
            ValueError: The profile has no such tier, or a cost is missing.
        """
        try:
            costs = profile["tiers"][tier]
            return cls(
                step_s=float(costs["step_s"]) * time_scale,
                per_sequence_s=float(costs["per_sequence_s"]) * time_scale,
                per_prompt_token_s=float(costs["per_prompt_token_s"]) * time_scale,
                max_batch=int(costs.get("max_batch", 64)),
                max_prompt_tokens_per_step=int(costs.get("max_prompt_tokens_per_step", 4096)),
                max_kv_tokens=float(costs.get("max_kv_tokens", math.inf)),
                iteration_cv=float(costs.get("iteration_cv", 0.0)),
            )
        except KeyError as error:
            raise ValueError(f"profile {profile.get('name')!r}: {error} is missing") from error


@dataclass(slots=True, eq=False)
class Job:
    """One request.

    Attributes:
        sink: Whatever the owner needs to answer it.
        arrival_s: When it came, monotonic seconds.
        deadline_s: When it is worth nothing any more; infinite: never.
        prompt_token_count: Length of the prompt, tokens.
        output_token_count: Length of its answer, tokens.
        streams: Whether tokens are sent as they come.
        cancelled: Set by the owner; the engine frees the slot before the next iteration.
        produced_count: Tokens made so far.
        sent_count: Tokens given to the client so far; kept by the owner.
    """

    sink: Any
    arrival_s: float
    deadline_s: float
    prompt_token_count: int
    output_token_count: int
    streams: bool = True
    cancelled: bool = False
    produced_count: int = 0
    sent_count: int = 0

    @property
    def kv_tokens(self) -> int:
        """Room it holds from the iteration it joins in until it leaves: prompt and whole answer."""
        return self.prompt_token_count + self.output_token_count

    @property
    def is_complete(self) -> bool:
        """Whether all its tokens are made."""
        return self.produced_count >= self.output_token_count


class Turns(Protocol):
    """What the engine needs of a device's clock; see `device_clock.DeviceClock`."""

    def take_turn(
        self, ready_s: float, least_duration_s: float, compose: Callable[[float], float]
    ) -> Any:
        """Waits for the turn and occupies the device; see `DeviceClock.take_turn`."""


@dataclass(slots=True)
class Control:
    """Faults injected into a device through its control file, read again when it changes.

    The file is JSON: `{"slow_down": 1.0, "state": "ok"}`; `slow_down` stretches every iteration,
    `state` is "ok", "lost" (everything fails at once) or "hung" (nothing moves). A missing or
    unreadable file means an unhurt device.
    """

    path: Path
    slow_down: float = 1.0
    state: str = "ok"
    _stamp: tuple[int, int] = field(default=(0, 0))

    def refresh(self) -> None:
        """Reads the file if it changed."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
        except OSError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.slow_down, self.state = 1.0, "ok"
        try:
            content = json.loads(self.path.read_text()) if stamp != (0, 0) else {}
            slow_down = float(content.get("slow_down", 1.0))
            state = str(content.get("state", "ok"))
        except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return
        if slow_down > 0.0 and math.isfinite(slow_down):
            self.slow_down = slow_down
        if state in STATES:
            self.state = state


@dataclass(slots=True)
class EngineStatistics:
    """What an engine did; `lateness` is how long after its computed end an iteration was seen."""

    iteration_count: int = 0
    sequence_count: int = 0
    lateness_total_s: float = 0.0
    lateness_max_s: float = 0.0

    def add(self, batch: int, lateness_s: float) -> None:
        """Counts one iteration."""
        self.iteration_count += 1
        self.sequence_count += batch
        self.lateness_total_s += lateness_s
        self.lateness_max_s = max(self.lateness_max_s, lateness_s)


class PacedEngine:
    """Queue, batch and loop of one tier. `run` belongs to one thread; the rest to any."""

    def __init__(
        self,
        *,
        timing: TierTiming,
        clock: Turns,
        control: Control,
        on_tokens: Callable[[Sequence[Job]], None],
        on_dropped: Callable[[Job, str], None],
        max_queue_count: int = 1024,
        stretch: Callable[[float], float] = lambda _: 1.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepares an idle engine.

        Args:
            timing: Costs of an iteration.
            clock: The device's clock.
            control: Injected faults.
            on_tokens: Called after each iteration with the jobs that got a token. Must be quick.
            on_dropped: Called with a job that leaves unfinished and the reason, "" when cancelled.
            max_queue_count: Most jobs that may wait.
            stretch: Draws the factor on an iteration's time for a coefficient of variation.
            now: Monotonic clock.
            sleep: Waits a number of seconds.
        """
        self._timing = timing
        self._clock = clock
        self._control = control
        self._on_tokens = on_tokens
        self._on_dropped = on_dropped
        self._max_queue_count = max_queue_count
        self._stretch = stretch
        self._now = now
        self._sleep = sleep
        self._arrived = threading.Condition()
        self._queue: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._stopping = False
        self.statistics = EngineStatistics()

    def submit(self, job: Job) -> str:
        """Queues a job; returns why it was refused instead, "" when it was not.

        A job larger than the whole room would hold the queue up for ever.
        """
        if job.kv_tokens > self._timing.max_kv_tokens:
            return f"{TOO_LARGE}: {job.kv_tokens} of {self._timing.max_kv_tokens:.0f} tokens"
        with self._arrived:
            if self._stopping:
                return STOPPING
            self._control.refresh()
            if self._control.state == "lost":
                return DEVICE_LOST
            if len(self._queue) >= self._max_queue_count:
                return f"{QUEUE_FULL} {self._max_queue_count}"
            self._queue.append(job)
            self._arrived.notify()
        return ""

    def outstanding(self) -> list[Job]:
        """Returns the jobs that run or wait, those that run first."""
        with self._arrived:
            return [*self._running, *self._queue]

    def stop(self) -> None:
        """Makes `run` return; jobs that are left are dropped."""
        with self._arrived:
            self._stopping = True
            self._arrived.notify()

    def run(self) -> None:
        """Runs iterations until `stop`."""
        free_s = self._now()
        while self._wait_for_work():
            free_s = self.step(free_s)
        self._drop_all(STOPPING)

    def step(self, previous_end_s: float) -> float:
        """Runs one iteration, if there is work, and returns when it ended.

        Args:
            previous_end_s: What the step before returned.
        """
        if not self._device_works():
            return self._now()
        with self._arrived:
            first = self._queue[0].arrival_s if self._queue else 0.0
            ready_s = previous_end_s if self._running else max(first, previous_end_s)
            least_s = self._timing.duration_s(max(1, len(self._running)), 0)
        turn = self._clock.take_turn(ready_s, least_s * self._control.slow_down, self._compose)
        if turn is None:
            return previous_end_s
        left_s = turn.end_s - self._now()
        if left_s > 0.0:
            self._sleep(left_s)
        self._finish_iteration(max(0.0, self._now() - turn.end_s))
        return float(turn.end_s)

    def _finish_iteration(self, lateness_s: float) -> None:
        """Gives every running sequence its token and lets the complete ones go."""
        with self._arrived:
            batch = self._running
            for job in batch:
                job.produced_count += 1
            self._running = [job for job in batch if not job.is_complete]
            self.statistics.add(len(batch), lateness_s)
        self._on_tokens(batch)

    def _compose(self, start_s: float) -> float:
        """Puts the batch of an iteration that starts at `start_s` together; returns its duration.

        Only requests that had arrived by then join, even if the process woke late and knows
        more by now.
        """
        dropped: list[tuple[Job, str]] = []
        with self._arrived:
            self._running = [job for job in self._running if self._keep(job, start_s, dropped)]
            waiting = [job for job in self._queue if self._keep(job, start_s, dropped)]
            self._queue = collections.deque(waiting)
            prompt_token_count = 0
            kv_tokens = sum(job.kv_tokens for job in self._running)
            while self._queue and len(self._running) < self._timing.max_batch:
                job = self._queue[0]
                total = prompt_token_count + job.prompt_token_count
                is_over = total > self._timing.max_prompt_tokens_per_step
                if job.arrival_s > start_s or (is_over and prompt_token_count > 0):
                    break
                kv_tokens += job.kv_tokens
                if kv_tokens > self._timing.max_kv_tokens:
                    break  # the queue waits in order: a small request does not overtake
                prompt_token_count = total
                self._running.append(self._queue.popleft())
            batch = len(self._running)
        for job, reason in dropped:
            self._on_dropped(job, reason)
        if batch == 0:
            return 0.0
        duration_s = self._timing.duration_s(batch, prompt_token_count) * self._control.slow_down
        return duration_s * self._stretch(self._timing.iteration_cv)

    @staticmethod
    def _keep(job: Job, start_s: float, dropped: list[tuple[Job, str]]) -> bool:
        if job.cancelled:
            dropped.append((job, ""))
        elif job.deadline_s <= start_s:
            dropped.append((job, QUEUE_TIMEOUT))
        else:
            return True
        return False

    def _device_works(self) -> bool:
        """Applies injected faults; returns whether the device can run an iteration."""
        self._control.refresh()
        if self._control.state == "ok":
            return True
        if self._control.state == "lost":
            self._drop_all(DEVICE_LOST)
            return False
        self._drop_if_useless()
        self._sleep(_HUNG_CHECK_S)
        return False

    def _drop_if_useless(self) -> None:
        """Lets go of cancelled and late jobs while the device hangs."""
        dropped: list[tuple[Job, str]] = []
        with self._arrived:
            now = self._now()
            self._running = [job for job in self._running if self._keep(job, now, dropped)]
            waiting = [job for job in self._queue if self._keep(job, now, dropped)]
            self._queue = collections.deque(waiting)
        for job, reason in dropped:
            self._on_dropped(job, reason)

    def _drop_all(self, reason: str) -> None:
        with self._arrived:
            jobs = [*self._running, *self._queue]
            self._running, self._queue = [], collections.deque()
        for job in jobs:
            self._on_dropped(job, reason)

    def _wait_for_work(self) -> bool:
        """Waits until there is a job; returns False when the engine is to stop."""
        with self._arrived:
            while not (self._stopping or self._running or self._queue):
                self._arrived.wait()
            return not self._stopping


_NORMAL = statistics.NormalDist()


def output_token_count(
    prompt: bytes, seed: int, max_output_tokens: int, mean: float, variation: float
) -> int:
    """Draws the length of an answer, the same for the same prompt and seed on every tier.

    Args:
        prompt: The prompt.
        seed: The request's seed.
        max_output_tokens: Limit of the request, at least 1.
        mean: Mean of the log-normal length before the limit; 0: always the limit.
        variation: Its coefficient of variation; 0: always the mean.
    """
    if mean <= 0.0:
        return max_output_tokens
    digest = hashlib.blake2b(prompt, digest_size=8, key=seed.to_bytes(16, "little", signed=True))
    uniform = (int.from_bytes(digest.digest(), "little") + 0.5) / 2.0**64
    # Parameters of the log-normal law with the wanted mean and coefficient of variation.
    sigma = math.sqrt(math.log1p(variation * variation))
    length = mean * math.exp(sigma * _NORMAL.inv_cdf(uniform) - 0.5 * sigma * sigma)
    return min(max_output_tokens, max(1, round(length)))


def prompt_token_count(prompt: bytes) -> int:
    """Returns the prompt's length: its number of words, at least 1."""
    return max(1, len(prompt.split()))
