"""From a fitted trace to a workload of any rate, burstiness and length that fits its deadline.

A trace squeezed to a higher rate is over in seconds, and its native lengths may not fit the
deadline on an idle device: so both are drawn from what was fitted (`trainer.traces.fit`).

    model = fit_trace(read_trace(path))
    workload = trace_workload(model, setting, 200.0, duration_s=2000.0, rng=rng)

Shape letters: N requests, W windows, K tasks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.profile import TierProfile
from trainer.simulation.setting import Setting
from trainer.simulation.workload import (
    Lengths,
    Times,
    Workload,
    WorkloadError,
    gamma_renewal,
)
from trainer.traces.fit import LengthModel, TraceModel, fit_trace
from trainer.traces.trace import Trace

FIT_SHARE = 0.5
"""Share of the deadline a request may need on an idle largest tier. Our choice: at 1, a request can
be on time there only if nothing at all stands before it."""
WINDOW_S = 10.0
"""Window in which an evaluation looks at performance, seconds."""
_FEWEST_THAT_FIT = 0.01
_PILOT_COUNT = 20_000


def replay_arrivals(
    model: TraceModel,
    rate_rps: float,
    duration_s: float,
    rng: np.random.Generator,
    *,
    cv_scale: float = 1.0,
    time_scale: float = 1.0,
) -> Times:
    """Returns arrivals of a stretch of the trace, each window a gamma renewal process.

    The stretch begins at a random window that is not empty and goes round at the trace's end. All
    its rates are multiplied by one factor, so that its mean is `rate_rps`; how the rate changes
    from window to window stays as in the trace.

    Args:
        model: the fitted trace.
        rate_rps: mean rate wanted, requests per second.
        duration_s: length wanted, seconds; may exceed the trace's.
        rng: source of randomness.
        cv_scale: factor on every window's CV, > 0.
        time_scale: factor on every window's length, > 0; below 1 the rate changes faster.

    Raises:
        WorkloadError: an argument is out of range.
    """
    for name, value in (
        ("rate_rps", rate_rps),
        ("duration_s", duration_s),
        ("cv_scale", cv_scale),
        ("time_scale", time_scale),
    ):
        if not value > 0 or not math.isfinite(value):
            raise WorkloadError(f"{name} must be above 0 and finite (got {value})")
    pieces = _stretch(model, duration_s, time_scale, rng)
    mean_rps = sum(model.rate_W[w] * span_s for w, _, span_s in pieces) / duration_s
    parts = [np.zeros(0)]
    for window, begin_s, span_s in pieces:
        rate = float(model.rate_W[window]) * rate_rps / mean_rps
        if rate > 0:
            cv = float(model.cv_W[window]) * cv_scale
            parts.append(begin_s + gamma_renewal(rate, cv, span_s, rng))
    return np.concatenate(parts)


def _stretch(
    model: TraceModel, duration_s: float, time_scale: float, rng: np.random.Generator
) -> list[tuple[int, float, float]]:
    """Returns (window, begin, length) of windows in turn, the last one cut, seconds."""
    window = int(rng.choice(np.flatnonzero(model.rate_W > 0)))
    pieces, begin_s = [], 0.0
    while begin_s < duration_s:
        span_s = min(float(model.span_W[window]) * time_scale, duration_s - begin_s)
        pieces.append((window, begin_s, span_s))
        begin_s += span_s
        window = (window + 1) % len(model.span_W)
    return pieces


def fitting_lengths(
    lengths: LengthModel,
    tier: TierProfile,
    limit_s: float,
    count: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns prompt and output tokens of requests that an idle device answers within a limit.

    Those that do not fit are drawn again: the distribution is the fitted one, given that it fits.
    Clipping each length instead would pile up requests right at the limit.

    Args:
        lengths: the fitted distribution.
        tier: costs of the tier they must fit on.
        limit_s: longest time alone on the device, seconds.
        count: number of requests.
        rng: source of randomness.

    Raises:
        WorkloadError: fewer than one in a hundred fit.
    """
    prompt_N, output_N = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    drawn, size = 0, max(count, _PILOT_COUNT)
    while len(prompt_N) < count:
        first_N, second_N = lengths.sample(size, rng)
        fits_N = unloaded_s(tier, first_N, second_N) <= limit_s
        prompt_N = np.concatenate([prompt_N, first_N[fits_N]])
        output_N = np.concatenate([output_N, second_N[fits_N]])
        drawn += size
        if len(prompt_N) < _FEWEST_THAT_FIT * drawn:
            raise WorkloadError(
                f"lengths: {len(prompt_N)} of {drawn} requests drawn fit {limit_s:g} s alone on an"
                f" idle device; at least {_FEWEST_THAT_FIT:.0%} must (raise the deadline, or take"
                " the setting's own lengths)"
            )
    return prompt_N[:count], output_N[:count]


def unloaded_s(
    tier: TierProfile, prompt_N: NDArray[Any], output_N: NDArray[Any]
) -> NDArray[np.float64]:
    """Returns the time of each request alone on an idle device, seconds."""
    time_N: NDArray[np.float64] = (
        tier.overhead_s
        + tier.per_prompt_token_s * prompt_N
        + (tier.step_s + tier.per_sequence_s) * output_N
    )
    return time_N


def largest_tier(setting: Setting) -> TierProfile:
    """Returns the costs of a setting's largest tier."""
    return setting.profiles[""].tiers[setting.catalog.tiers[-1]]


def trace_workload(
    trace: Trace | TraceModel,
    setting: Setting,
    rate_rps: float,
    *,
    duration_s: float,
    rng: np.random.Generator,
    cv_scale: float = 1.0,
    time_scale: float = 1.0,
    fit_share: float = FIT_SHARE,
    trace_lengths: bool = True,
) -> Workload:
    """Returns a workload shaped like a trace, at a rate of choice.

    Tasks and deadlines are the setting's. Lengths are the trace's, given that the request takes at
    most `fit_share` of the deadline alone on the largest tier; the setting's where the trace has
    none. Take `trace_setting` for the setting, so that policies expect the right output lengths.

    Args:
        trace: a trace, or its model where many workloads are drawn from it.
        setting: fleet, tasks, deadline.
        rate_rps: mean rate, requests per second.
        duration_s: length, seconds.
        rng: source of randomness; the workload is a function of it and the other arguments.
        cv_scale: factor on every window's CV.
        time_scale: factor on the length of the trace's windows.
        fit_share: share of the deadline, > 0.
        trace_lengths: False takes the setting's lengths.

    Raises:
        WorkloadError: an argument is out of range, or next to no request fits its deadline.
    """
    model = fit_trace(trace) if isinstance(trace, Trace) else trace
    arrival_N = replay_arrivals(
        model, rate_rps, duration_s, rng, cv_scale=cv_scale, time_scale=time_scale
    )
    workload = replace(setting.workload(arrival_N, duration_s, rng), name=model.name)
    if not trace_lengths or model.lengths is None:
        return workload
    limit_s = _limit_s(setting, fit_share)
    prompt_N, output_N = fitting_lengths(
        model.lengths, largest_tier(setting), limit_s, len(arrival_N), rng
    )
    return replace(workload, prompt_N=prompt_N.astype(np.float64), output_N=output_N)


def trace_setting(
    trace: Trace | TraceModel, setting: Setting, fit_share: float = FIT_SHARE
) -> Setting:
    """Returns the setting with the lengths `trace_workload` draws in it.

    `lengths` gets their moments (its output lengths are uniform and only approximate the trace's;
    what is simulated is `trace_workload`'s own), and each task's expected output tokens, the prior
    of the output-length predictor, their mean. Unchanged where the trace has no lengths.

    Raises:
        WorkloadError: next to no request fits its deadline.
    """
    model = fit_trace(trace) if isinstance(trace, Trace) else trace
    if model.lengths is None:
        return setting
    prompt_N, output_N = fitting_lengths(
        model.lengths,
        largest_tier(setting),
        _limit_s(setting, fit_share),
        _PILOT_COUNT,
        np.random.default_rng(0),
    )
    log_N, mean = np.log(prompt_N), float(output_N.mean())
    lengths = Lengths(
        prompt_median=float(np.exp(log_N.mean())),
        prompt_sigma=float(log_N.std()),
        prompt_max=int(prompt_N.max()),
        output_mean=mean,
        output_spread=min(1.0, math.sqrt(3.0) * float(output_N.std()) / mean),
        output_max=int(output_N.max()),
    )
    tasks = tuple(replace(task, expected_output_tokens=mean) for task in setting.catalog.tasks)
    return replace(setting, lengths=lengths, catalog=replace(setting.catalog, tasks=tasks))


def _limit_s(setting: Setting, fit_share: float) -> float:
    if not fit_share > 0 or not math.isfinite(fit_share):
        raise WorkloadError(f"fit_share must be above 0 and finite (got {fit_share})")
    return fit_share * setting.deadline_s
