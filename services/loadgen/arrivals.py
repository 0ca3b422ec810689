"""Arrivals of the open-loop load generator: when each request is meant to be sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Process = Literal["poisson", "gamma", "uniform"]
MAX_REQUEST_COUNT = 200_000
"""Most arrivals of one run; it is bounded in count."""
MAX_DURATION_S = 3600.0
"""Longest run; it is bounded in time."""
MAX_RATE_RPS = 10_000.0
MAX_CV = 16.0


class ArrivalsError(ValueError):
    """Arrivals that cannot be drawn; the text names the field and the limit."""


@dataclasses.dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time with one mean arrival rate.

    Attributes:
        name: Name in tables, unique in its run or shared by stretches to be counted together.
        duration_s: Length, above 0 s.
        rate_rps: Mean arrivals per second; 0 means a pause.
    """

    name: str
    duration_s: float
    rate_rps: float


@dataclasses.dataclass(frozen=True, slots=True)
class Arrivals:
    """Intended send times.

    Attributes:
        phases: The phases, in time order.
        arrival_s: Intended send times in seconds from the start, ascending; shape [n].
        phase_index: Phase of each arrival; shape [n].
    """

    phases: tuple[Phase, ...]
    arrival_s: NDArray[np.float64]
    phase_index: NDArray[np.int32]

    @property
    def duration_s(self) -> float:
        """Length of all phases together, in seconds."""
        return sum(phase.duration_s for phase in self.phases)


def square_wave(
    low_rps: float, high_rps: float, half_period_s: float, cycle_count: int
) -> tuple[Phase, ...]:
    """Makes phases ``low`` and ``high`` that alternate every ``half_period_s`` seconds."""
    if cycle_count < 1:
        raise ArrivalsError(f"cycle_count: must be at least 1, got {cycle_count}")
    pair = (Phase("low", half_period_s, low_rps), Phase("high", half_period_s, high_rps))
    return pair * cycle_count


def draw_arrivals(
    phases: Sequence[Phase], *, seed: int, process: Process = "poisson", cv: float = 1.0
) -> Arrivals:
    """Draws arrivals of a renewal process whose rate follows the phases.

    Gaps are drawn at unit rate and stretched by the inverse of the cumulative rate, so that one
    seed gives the same pattern of gaps at every rate and a burst does not restart the process.

    Args:
        phases: At least one.
        seed: Same seed, same arrivals.
        process: ``poisson``; ``gamma`` with coefficient of variation ``cv``; ``uniform`` (equal
            gaps).
        cv: Standard deviation of the gaps over their mean; used by ``gamma`` only.

    Raises:
        ArrivalsError: A field is outside its limit; the text names all of them.
    """
    problems = _problems(phases, process, cv)
    if problems:
        raise ArrivalsError("; ".join(problems))
    ends_s = np.cumsum([phase.duration_s for phase in phases])
    expected = np.cumsum([phase.duration_s * phase.rate_rps for phase in phases])
    unit_times = _unit_rate_times(float(expected[-1]), np.random.default_rng(seed), process, cv)
    if len(unit_times) > MAX_REQUEST_COUNT:
        raise ArrivalsError(
            f"phases: {len(unit_times)} requests drawn, more than the limit of {MAX_REQUEST_COUNT}"
        )
    # searchsorted on the phase ends skips pauses, whose cumulative count does not grow.
    index = np.minimum(np.searchsorted(expected, unit_times, side="right"), len(phases) - 1)
    starts_s = np.concatenate([[0.0], ends_s[:-1]])
    counts_before = np.concatenate([[0.0], expected[:-1]])
    rates = np.array([phase.rate_rps for phase in phases], dtype=np.float64)
    safe_rates = np.where(rates > 0, rates, 1.0)
    send_s = starts_s[index] + (unit_times - counts_before[index]) / safe_rates[index]
    send_s = np.minimum(send_s, ends_s[index])
    return Arrivals(tuple(phases), np.maximum.accumulate(send_s), index.astype(np.int32))


def _unit_rate_times(
    end: float, rng: np.random.Generator, process: Process, cv: float
) -> NDArray[np.float64]:
    """Draws arrival times in [0, end) of a renewal process with mean gap 1."""
    times = np.empty(0)
    # With an arrival at 0 it would begin in a clump: (cv^2 - 1) / 2 requests more than its rate.
    last = -20.0 * cv * cv if process == "gamma" else 0.0
    while last < end:
        count = int(min(MAX_REQUEST_COUNT, max(64, (end - last) * 1.2)))
        gaps = _unit_gaps(rng, count, process, cv)
        block = last + np.cumsum(gaps)
        times = np.concatenate([times, block])
        last = float(block[-1])
        if len(times) > 2 * MAX_REQUEST_COUNT:
            break
    return times[(times >= 0.0) & (times < end)]


def _unit_gaps(
    rng: np.random.Generator, count: int, process: Process, cv: float
) -> NDArray[np.float64]:
    if process == "uniform":
        return np.ones(count)
    if process == "poisson" or cv == 1.0:
        return rng.exponential(1.0, count)
    shape = 1.0 / (cv * cv)
    return rng.gamma(shape, 1.0 / shape, count)


def _problems(phases: Sequence[Phase], process: str, cv: float) -> list[str]:
    problems = []
    if not phases:
        problems.append("phases: at least one is needed")
    for index, phase in enumerate(phases):
        where = f"phases[{index}]"
        if not phase.name:
            problems.append(f"{where}.name: must not be empty")
        if not 0 < phase.duration_s <= MAX_DURATION_S:
            problems.append(
                f"{where}.duration_s: must be above 0 and at most {MAX_DURATION_S:g},"
                f" got {phase.duration_s}"
            )
        if not 0 <= phase.rate_rps <= MAX_RATE_RPS:
            problems.append(
                f"{where}.rate_rps: must be 0 to {MAX_RATE_RPS:g}, got {phase.rate_rps}"
            )
    if problems:
        return problems
    total_s = sum(phase.duration_s for phase in phases)
    expected = sum(phase.duration_s * phase.rate_rps for phase in phases)
    if total_s > MAX_DURATION_S:
        problems.append(f"phases: {total_s:g} s together, more than {MAX_DURATION_S:g} s")
    if expected > MAX_REQUEST_COUNT:
        problems.append(f"phases: about {expected:.0f} requests, more than {MAX_REQUEST_COUNT}")
    if process not in ("poisson", "gamma", "uniform"):
        problems.append(f"process: must be poisson, gamma or uniform, got {process!r}")
    if not 0 < cv <= MAX_CV:
        problems.append(f"cv: must be above 0 and at most {MAX_CV:g}, got {cv}")
    return problems
