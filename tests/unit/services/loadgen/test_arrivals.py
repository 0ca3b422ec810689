"""Arrivals of a load run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loadgen.arrivals import ArrivalsError, Phase, draw_arrivals, square_wave

PHASES = st.lists(
    st.builds(
        Phase,
        name=st.sampled_from(["calm", "burst"]),
        duration_s=st.floats(0.1, 20),
        rate_rps=st.one_of(st.just(0.0), st.floats(0.1, 200)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(PHASES, st.integers(0, 2**31), st.sampled_from(["poisson", "gamma", "uniform"]))
def test_arrivals_are_ascending_and_inside_their_phase(
    phases: Any, seed: Any, process: Any
) -> None:
    """Every arrival lies in its own phase, in order, and none in a pause."""
    arrivals = draw_arrivals(phases, seed=seed, process=process, cv=2.0)
    assert np.all(np.diff(arrivals.arrival_s) >= 0)
    ends = np.cumsum([phase.duration_s for phase in phases])
    starts = np.concatenate([[0.0], ends[:-1]])
    index = arrivals.phase_index
    assert np.all(arrivals.arrival_s >= starts[index] - 1e-9)
    assert np.all(arrivals.arrival_s <= ends[index] + 1e-9)
    assert all(phases[i].rate_rps > 0 for i in set(index.tolist()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_same_seed_same_arrivals(seed: Any) -> None:
    """Arrivals are a function of phases and seed."""
    phases = [Phase("a", 5, 40), Phase("b", 5, 10)]
    first, second = (draw_arrivals(phases, seed=seed) for _ in range(2))
    assert np.array_equal(first.arrival_s, second.arrival_s)


@pytest.mark.parametrize(("process", "cv"), [("poisson", 1.0), ("gamma", 3.0), ("uniform", 0.0)])
def test_gaps_have_the_rate_and_variation_asked_for(process: Any, cv: Any) -> None:
    """Mean rate and coefficient of variation of the gaps match the process."""
    arrivals = draw_arrivals([Phase("a", 400, 100)], seed=3, process=process, cv=cv or 1.0)
    gaps = np.diff(arrivals.arrival_s)
    assert len(arrivals.arrival_s) == pytest.approx(40_000, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.08, abs=1e-6)


def test_clumped_arrivals_have_their_rate_in_a_short_run_too() -> None:
    """A hundred requests on the mean of many runs, not a third more for a clump at the start."""
    phases = [Phase("a", 10, 10)]
    runs = [draw_arrivals(phases, seed=seed, process="gamma", cv=8.0) for seed in range(2_000)]
    assert np.mean([len(run.arrival_s) for run in runs]) == pytest.approx(100.0, rel=0.08)


def test_the_burst_phase_has_its_own_rate() -> None:
    """Counts per phase follow rate times length."""
    phases = [Phase("calm", 100, 10), Phase("burst", 100, 50), Phase("recovery", 100, 10)]
    index = draw_arrivals(phases, seed=1).phase_index
    counts = np.bincount(index, minlength=3)
    assert counts == pytest.approx([1000, 5000, 1000], rel=0.12)


def test_square_wave_alternates() -> None:
    """Low and high take turns."""
    phases = square_wave(5, 50, 2.0, 2)
    assert [(p.name, p.rate_rps) for p in phases] == [("low", 5), ("high", 50)] * 2


@pytest.mark.parametrize(
    ("phases", "options", "field"),
    [
        ([], {}, "phases"),
        ([Phase("a", 0, 1)], {}, r"phases\[0\].duration_s"),
        ([Phase("a", 1, -1)], {}, r"phases\[0\].rate_rps"),
        ([Phase("a", float("nan"), 1)], {}, r"phases\[0\].duration_s"),
        ([Phase("a", 3000, 9000)], {}, "more than 200000"),
        ([Phase("a", 1, 1)], {"cv": 0.0}, "cv"),
        ([Phase("a", 1, 1)], {"process": "tidal"}, "process"),
    ],
)
def test_bad_arrivalss_name_their_field(phases: Any, options: Any, field: Any) -> None:
    """Arrivals outside their limits are refused with the field named."""
    with pytest.raises(ArrivalsError, match=field):
        draw_arrivals(phases, seed=0, **options)
