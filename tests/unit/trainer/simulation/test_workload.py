"""Workloads: rates, burstiness, lengths, and errors that name the field."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.simulation import workload as wl


def rng() -> np.random.Generator:
    """Returns a seeded generator."""
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    "arrival_N",
    [
        wl.poisson(200.0, 100.0, rng()),
        wl.gamma_renewal(200.0, 2.0, 100.0, rng()),
        wl.square_wave(100.0, 300.0, 2.0, 100.0, rng()),
        wl.markov_modulated((100.0, 200.0, 300.0), 0.2, 100.0, rng()),
    ],
    ids=["poisson", "gamma", "square", "markov"],
)
def test_mean_rate_is_what_was_asked_for(arrival_N: wl.Times) -> None:
    """Each process gives its mean rate, sorted, inside the period."""
    assert len(arrival_N) == pytest.approx(20_000, rel=0.1)
    assert (np.diff(arrival_N) >= 0).all()
    assert arrival_N[0] >= 0.0
    assert arrival_N[-1] < 100.0


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gamma_gaps_have_their_variation(cv: float) -> None:
    """The gaps' coefficient of variation is the one asked for."""
    gaps = np.diff(wl.gamma_renewal(1000.0, cv, 200.0, rng()))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_square_wave_switches() -> None:
    """Low first, then high, each for its part of the period."""
    arrival_N = wl.square_wave(50.0, 500.0, 2.0, 20.0, rng())
    low = ((arrival_N % 2.0) < 1.0).sum() / 10.0
    high = ((arrival_N % 2.0) >= 1.0).sum() / 10.0
    assert low == pytest.approx(50.0, rel=0.25)
    assert high == pytest.approx(500.0, rel=0.1)


def test_lengths_follow_their_distribution() -> None:
    """Median prompt and mean output are as stated, within their limits."""
    prompt_N, output_N = wl.OPT_LENGTHS.sample(20_000, rng())
    assert np.median(prompt_N) == pytest.approx(110, rel=0.03)
    assert prompt_N.mean() == pytest.approx(124, rel=0.03)
    assert output_N.mean() == pytest.approx(8.0, rel=0.02)
    assert output_N.min() >= 1


def test_deadlines_follow_the_task() -> None:
    """One deadline per task is applied by task."""
    load = wl.make_workload(
        wl.poisson(100.0, 5.0, rng()), 5.0, rng=rng(), deadline_s=[0.1, 0.9], task_share=[1, 3]
    )
    assert set(load.slack_N[load.task_N == 0]) == {0.1}
    assert set(load.slack_N[load.task_N == 1]) == {0.9}
    assert (load.task_N == 1).mean() == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wl.poisson(0.0, 1.0, rng()), "rate_rps"),
        (lambda: wl.poisson(1.0, float("nan"), rng()), "duration_s"),
        (lambda: wl.gamma_renewal(1.0, 0.0, 1.0, rng()), "cv"),
        (lambda: wl.square_wave(1.0, 2.0, 0.0, 1.0, rng()), "period_s"),
        (lambda: wl.markov_modulated((1.0,), 1.0, 1.0, rng()), "two rates"),
        (lambda: wl.make_workload(np.zeros(1), 1.0, rng=rng(), task_share=[-1]), "task_share"),
        (lambda: wl.make_workload(np.zeros(1), 1.0, rng=rng(), deadline_s=0), "deadline_s"),
    ],
)
def test_bad_parameters_are_named(make: object, message: str) -> None:
    """Each error names its field."""
    with pytest.raises(wl.WorkloadError, match=message):
        make()  # type: ignore[operator]
