"""Fitting a trace: windows, burstiness and lengths come out as they went in."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.simulation.workload import WorkloadError, gamma_renewal, poisson
from trainer.traces.fit import LengthModel, Lognormal, fit_trace, gap_cv
from trainer.traces.trace import Trace


def rng(seed: int = 0) -> np.random.Generator:
    """Returns a seeded generator."""
    return np.random.default_rng(seed)


def trace_of(arrival_N: np.ndarray, duration_s: float) -> Trace:
    """Returns a trace without lengths."""
    return Trace(arrival_N, duration_s, name="t")


def test_a_trace_too_short_for_a_rate_is_refused() -> None:
    """Two requests within the shortest time there is come at no finite rate."""
    with pytest.raises(WorkloadError, match="too short for a rate"):
        fit_trace(trace_of(np.zeros(2), 5e-324))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 400), duration_s=st.floats(1.0, 1e4), window_s=st.floats(5.0, 1e4))
def test_windows_hold_every_request(count: int, duration_s: float, window_s: float) -> None:
    """Rates times lengths add up to the requests, lengths to the duration."""
    arrival_N = np.sort(rng(count).random(count)) * duration_s
    model = fit_trace(trace_of(arrival_N, duration_s), window_s)
    assert (model.rate_W * model.span_W).sum() == pytest.approx(count)
    assert model.duration_s == pytest.approx(duration_s)
    assert model.rate_rps == pytest.approx(count / duration_s)
    assert (model.span_W > 0).all()
    assert (model.cv_W > 0).all()


def test_each_window_has_its_own_rate_and_cv() -> None:
    """A calm half and a bursty half are told apart."""
    calm = poisson(50.0, 100.0, rng())
    bursty = 100.0 + gamma_renewal(200.0, 4.0, 100.0, rng())
    model = fit_trace(trace_of(np.concatenate([calm, bursty]), 200.0), 100.0)
    assert model.rate_W == pytest.approx([50.0, len(bursty) / 100.0], rel=0.1)
    assert model.cv_W == pytest.approx([1.0, 4.0], rel=0.15)


@pytest.mark.parametrize(
    ("arrival_N", "cv"),
    [
        (np.array([0.0, 9.0]), 1.0),
        (np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 0.05),
        (np.zeros(10), 3.0),
        (np.array([0.0, 0.0, 0.0, 0.0, 4.0]), math.sqrt(3.0)),
    ],
    ids=["too few", "regular", "one instant", "by hand"],
)
def test_gap_cv_is_always_usable(arrival_N: np.ndarray, cv: float) -> None:
    """Windows with few, regular or simultaneous requests get a CV a gamma process can have."""
    assert gap_cv(arrival_N) == pytest.approx(cv)


@settings(max_examples=20, deadline=None)
@given(
    median=st.floats(20.0, 3000.0),
    sigma=st.floats(0.1, 1.2),
    correlation=st.floats(-0.9, 0.9),
    seed=st.integers(0, 99),
)
def test_lengths_come_back(median: float, sigma: float, correlation: float, seed: int) -> None:
    """What is drawn from a distribution of lengths fits that distribution again."""
    made = LengthModel(
        Lognormal(median, sigma, 1, 10**8), Lognormal(60.0, 0.5, 1, 10**8), correlation
    )
    prompt_N, output_N = made.sample(4000, rng(seed))
    arrival_N = np.arange(4000.0)
    found = fit_trace(Trace(arrival_N, 4000.0, prompt_N, output_N)).lengths
    assert found is not None
    assert math.log(found.prompt.median) == pytest.approx(math.log(median), abs=0.1 * sigma + 0.01)
    assert found.prompt.sigma == pytest.approx(sigma, rel=0.1)
    assert found.correlation == pytest.approx(correlation, abs=0.1)


def test_failed_requests_count_as_arrivals_only() -> None:
    """Zero lengths keep their place in the rate and stay out of the lengths' fit."""
    tokens_N = np.array([0, 100, 100, 100])
    model = fit_trace(Trace(np.arange(4.0), 4.0, tokens_N, tokens_N))
    assert model.rate_rps == 1.0
    assert model.lengths is not None
    assert model.lengths.prompt.median == pytest.approx(100.0)
