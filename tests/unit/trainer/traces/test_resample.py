"""Fitting and resampling: rates, burstiness and lengths come out as they went in."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from router.catalog import QualityTable
from router.profile import LatencyProfile, TierProfile, format_profile
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.workload import WorkloadError, poisson
from trainer.traces.__main__ import main, statistics
from trainer.traces.fit import LengthModel, Lognormal, TraceModel, gap_cv
from trainer.traces.read import read_trace
from trainer.traces.resample import (
    FIT_SHARE,
    fitting_lengths,
    largest_tier,
    replay_arrivals,
    trace_setting,
    trace_workload,
    unloaded_s,
)
from trainer.traces.synthetic import (
    azure_llm_code_like,
    interrupted_poisson,
    on_off_arrivals,
    open_trace,
)
from trainer.traces.trace import Trace

CODE_TRACE = "TIERCEL_AZURE_LLM_CODE"
LENGTHS = LengthModel(Lognormal(500.0, 1.0, 1, 5000), Lognormal(12.0, 0.8, 1, 500), 0.5)
HALVES = TraceModel(
    "halves", np.array([60.0, 60.0]), np.array([1.0, 3.0]), np.array([1.0, 4.0]), LENGTHS
)


def rng(seed: int = 0) -> np.random.Generator:
    """Returns a seeded generator."""
    return np.random.default_rng(seed)


def setting() -> Setting:
    """Returns two devices with tiers of 1.3B and 6.7B shape and a deadline of 0.4 s."""
    tiers = {
        "medium": TierProfile(0.0039, 3e-5, 2.4e-5),
        "large": TierProfile(0.0105, 8e-5, 8.4e-5),
    }
    quality = QualityTable("q", "assumed", {"a": {"medium": 0.9, "large": 1.0}}, {})
    profile = LatencyProfile("p", "assumed", tiers)
    return shared_fleet_setting("s", profile, quality, tiers=tuple(tiers), device_count=2)


def trace_of(arrival_N: np.ndarray, duration_s: float) -> Trace:
    """Returns a trace without lengths."""
    return Trace(arrival_N, duration_s, name="t")


@pytest.mark.parametrize(("rate_rps", "duration_s"), [(200.0, 240.0), (50.0, 1000.0)])
def test_replay_has_the_rate_asked_for(rate_rps: float, duration_s: float) -> None:
    """At any rate and length, also longer than the trace, inside the period, in order."""
    counts = []
    for seed in range(8):
        arrival_N = replay_arrivals(HALVES, rate_rps, duration_s, rng(seed))
        assert (np.diff(arrival_N) >= 0).all()
        assert arrival_N[0] >= 0.0
        assert arrival_N[-1] < duration_s
        counts.append(len(arrival_N))
    assert np.mean(counts) == pytest.approx(rate_rps * duration_s, rel=0.03)


def test_replay_keeps_the_rates_apart() -> None:
    """A window with three times the rate of another keeps three times its rate."""
    arrival_N = replay_arrivals(HALVES, 400.0, 1200.0, rng())
    counts = np.sort(np.histogram(arrival_N, np.arange(0.0, 1201.0, 60.0))[0])
    assert counts[10:].mean() / counts[:10].mean() == pytest.approx(3.0, rel=0.1)


def test_time_scale_moves_the_changes_of_rate() -> None:
    """With windows a tenth as long the rate changes every six seconds."""
    arrival_N = replay_arrivals(HALVES, 400.0, 120.0, rng(1), time_scale=0.1)
    counts = np.histogram(arrival_N, np.arange(0.0, 121.0, 6.0))[0]
    even, odd = counts[::2].mean(), counts[1::2].mean()
    assert max(even, odd) / min(even, odd) == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize("cv_scale", [0.5, 1.0, 2.0])
def test_cv_scale_multiplies_the_burstiness(cv_scale: float) -> None:
    """The gaps' CV is the window's times the factor."""
    model = TraceModel("one", np.array([500.0]), np.array([1.0]), np.array([2.0]))
    arrival_N = replay_arrivals(model, 200.0, 500.0, rng(), cv_scale=cv_scale)
    assert gap_cv(arrival_N) == pytest.approx(2.0 * cv_scale, rel=0.1)


def test_empty_windows_stay_empty() -> None:
    """A window without requests has none in the replay, and is never where it begins."""
    model = TraceModel("gap", np.array([10.0, 10.0]), np.array([0.0, 2.0]), np.array([1.0, 1.0]))
    for seed in range(5):
        arrival_N = replay_arrivals(model, 100.0, 20.0, rng(seed))
        assert (arrival_N < 10.0).all()
        assert len(arrival_N) == pytest.approx(2000, rel=0.15)


@pytest.mark.parametrize("option", ["rate_rps", "duration_s", "cv_scale", "time_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_bad_replay_arguments_are_named(option: str, value: float) -> None:
    """The argument out of range and its limit."""
    options = {"rate_rps": 1.0, "duration_s": 1.0, option: value}
    with pytest.raises(WorkloadError, match=f"{option} must be above 0 and finite"):
        replay_arrivals(HALVES, rng=rng(), **options)


def test_workload_fits_its_deadline() -> None:
    """Every request could be answered by an idle largest tier within its share of the deadline."""
    place = setting()
    workload = trace_workload(HALVES, place, 100.0, duration_s=60.0, rng=rng())
    time_N = unloaded_s(largest_tier(place), workload.prompt_N, workload.output_N)
    assert time_N.max() <= FIT_SHARE * place.deadline_s
    assert (workload.slack_N == place.deadline_s).all()
    assert workload.duration_s == 60.0
    assert workload.name == "halves"


def test_workload_is_a_function_of_its_seed() -> None:
    """The same generator gives the same requests, another one others."""
    runs = [
        trace_workload(HALVES, setting(), 100.0, duration_s=30.0, rng=rng(seed))
        for seed in (3, 3, 4)
    ]
    for field in ("arrival_N", "task_N", "prompt_N", "output_N"):
        assert (getattr(runs[0], field) == getattr(runs[1], field)).all()
    assert len(runs[0]) != len(runs[2]) or (runs[0].arrival_N != runs[2].arrival_N).any()


def test_lengths_that_fit_are_left_alone() -> None:
    """With a deadline nothing exceeds, the lengths are the fitted ones."""
    prompt_N, output_N = fitting_lengths(LENGTHS, TierProfile(1e-3, 0, 0), 1e6, 20_000, rng())
    assert np.median(prompt_N) == pytest.approx(500.0, rel=0.03)
    assert np.median(output_N) == pytest.approx(12.0, rel=0.05)


def test_a_deadline_next_to_nothing_fits_is_refused() -> None:
    """One error that says how many fit and what to do."""
    tier = TierProfile(0.1, 0.0, 0.01)
    with pytest.raises(WorkloadError, match=r"lengths: \d+ of 20000 requests drawn fit 0.2 s"):
        fitting_lengths(LENGTHS, tier, 0.2, 10, rng())


def test_a_trace_without_lengths_takes_the_settings() -> None:
    """Azure Functions have no tokens: the setting's lengths stand in, and it stays as it is."""
    place = setting()
    trace = trace_of(poisson(5.0, 120.0, rng()), 120.0)
    workload = trace_workload(trace, place, 100.0, duration_s=60.0, rng=rng())
    assert np.median(workload.prompt_N) == pytest.approx(place.lengths.prompt_median, rel=0.1)
    assert trace_setting(trace, place) is place


def test_trace_setting_tells_policies_the_mean_output() -> None:
    """Priors of the output length and the setting's lengths are those of the workload."""
    place = trace_setting(HALVES, setting())
    workload = trace_workload(HALVES, place, 300.0, duration_s=120.0, rng=rng())
    mean = float(workload.output_N.mean())
    assert place.catalog.tasks[0].expected_output_tokens == pytest.approx(mean, rel=0.05)
    assert place.lengths.output_mean == pytest.approx(mean, rel=0.05)
    assert place.lengths.prompt_median == pytest.approx(
        np.exp(np.log(workload.prompt_N).mean()), rel=0.05
    )


@pytest.mark.parametrize(
    ("arrivals", "duration_s", "tokens", "message"),
    [
        ([], 1.0, None, "needs requests"),
        ([0.0], 0.0, None, "duration above 0"),
        ([0.0, 2.0], 1.0, None, "between 0 and its duration"),
        ([0.0, 2.0, 1.0], 3.0, None, "must not fall"),
        ([0.0, 1.0], 3.0, [1], "as many as"),
    ],
)
def test_an_impossible_trace_is_refused(
    arrivals: list[float], duration_s: float, tokens: list[int] | None, message: str
) -> None:
    """What everything else relies on is checked once."""
    with pytest.raises(WorkloadError, match=message):
        Trace(np.array(arrivals), duration_s, None if tokens is None else np.array(tokens))


# ------------------------------------------------------------------------------------ stand-ins


def test_interrupted_poisson_has_its_statistics() -> None:
    """Rate, CV and share of empty seconds of a long run are those asked for."""
    process = interrupted_poisson(2.57, 13.15, 0.73)
    arrival_N = on_off_arrivals(*process, 400_000.0, rng())
    rate, cv, empty_share, *_ = statistics(arrival_N, 400_000.0)
    assert rate == pytest.approx(2.57, rel=0.05)
    assert cv == pytest.approx(13.15, rel=0.05)
    assert empty_share == pytest.approx(0.73, abs=0.01)


@pytest.mark.parametrize(("cv", "empty_share"), [(1.0, 0.5), (3.0, 0.01), (1.01, 0.99)])
def test_impossible_statistics_are_refused(cv: float, empty_share: float) -> None:
    """No on-off process is calmer than Poisson."""
    with pytest.raises(WorkloadError, match="interrupted Poisson process"):
        interrupted_poisson(2.0, cv, empty_share)


def test_the_stand_in_says_what_it_is() -> None:
    """Nobody can take it for the trace: its name and kind say synthetic."""
    trace = open_trace("azure-llm-code-like")
    assert "synthetic" in trace.name
    assert trace.kind == "synthetic"
    assert (trace.arrival_N == azure_llm_code_like(rng()).arrival_N).all()


def test_the_stand_ins_lengths_are_the_published_ones() -> None:
    """Median and 90th percentile of prompt and output tokens."""
    trace = open_trace("azure-llm-code-like")
    assert trace.prompt_tokens_N is not None
    assert trace.output_tokens_N is not None
    assert np.percentile(trace.prompt_tokens_N, [50, 90]) == pytest.approx([1469, 5188], rel=0.06)
    assert np.percentile(trace.output_tokens_N, [50, 90]) == pytest.approx([13, 55], rel=0.08)


def test_the_command_shows_trace_and_replays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row for the trace, one per length of window, the lengths, and which of them fit."""
    profile = tmp_path / "p.toml"
    profile.write_text(format_profile(setting().profiles[""]))
    options = ["--windows", "60,600", "--profile", str(profile), "--limits", "0.001,1e6"]
    assert main(["azure-llm-code-like", *options]) == 0
    shown = capsys.readouterr().out
    assert "azure-llm-code-like (synthetic)" in shown
    assert "replay, 60 s windows" in shown
    assert "replay, 600 s windows" in shown
    assert "prompt Lognormal" in shown
    assert "alone on p large: 0.000 in 0.001 s, 1.000 in 1e+06 s" in shown


@pytest.mark.skipif(CODE_TRACE not in os.environ, reason=f"{CODE_TRACE} does not name the file")
def test_the_published_trace_has_its_published_statistics() -> None:
    """The Azure LLM inference 2023 code trace: rows, duration, rate, CV, empty seconds, tokens."""
    trace = read_trace(Path(os.environ[CODE_TRACE]))
    rate, cv, empty_share, p99, most, *_ = statistics(trace.arrival_N, trace.duration_s)
    assert (len(trace), round(trace.duration_s)) == (8819, 3436)
    assert rate == pytest.approx(2.57, abs=0.01)
    assert cv == pytest.approx(13.15, abs=0.01)
    assert (round(empty_share, 2), round(p99, 1), most) == (0.73, 27.7, 67.0)
    assert trace.prompt_tokens_N is not None
    assert trace.output_tokens_N is not None
    assert trace.prompt_tokens_N.mean() == pytest.approx(2047.8, abs=0.1)
    assert trace.output_tokens_N.mean() == pytest.approx(27.9, abs=0.1)
