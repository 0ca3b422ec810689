"""From the timings of served requests to costs: what ran beside each of them is reckoned from all.

Nobody kept the mesh quiet, so a stretch of one answer holds what others needed meanwhile. But every
answer is known: when it was sent, when its first token came, when its last one. Between the two a
sequence gets one token in each iteration of its tier; tiers of a device take turns. So for any
stretch of time on a device it can be said how many iterations each tier ran in it, how many tokens
they gave, and how many prompt tokens joined, and the time of the stretch is the sum of their costs:

    stretch = sum over tiers of
              step x iterations + per sequence x tokens + per prompt token x prompt tokens

Two kinds of stretches are used. From the first token of an answer to its last one its tier always
runs. From its sending to its first token it waits for what is under way, and what of this wait its
overhead hides cannot be told, so those alone are used that found their device idle: overhead, the
own prompt, one iteration.

Shape letters: N requests, E stretches, B breakpoints, T tiers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.profile import LatencyProfile, TierProfile
from trainer.profiling.latency_fit import (
    SMALLEST_STEP_S,
    TIMES_S,
    Fit,
    FitError,
    robust_least_squares,
)

FEWEST_FIRSTS = 20
"""Answers of a tier that must have found their device idle: only these tell its overhead."""
FEWEST_DECODES = 60
"""Answers of a tier whose decoding must be known."""
FEWEST_BATCHED = 20
"""Of these, answers that must have had company in their batch: else nothing tells what it costs."""
COMPANY = 1.5
"""Mean sequences in a batch from which on an answer had company."""
FEWEST_OF_A_KIND = 10
"""Stretches that a range must have to be judged."""
FEWEST_TOKENS = 2
"""Tokens after the first that make a stretch long enough to be timed."""
PROMPT_RANGES = 3
BATCHES = (2.0, 4.0, 8.0, 16.0)
"""Mean sequences in a batch up to which the ranges of decoding go; the last one has no end."""
GRAIN_S = 0.001
"""No router sees a token come more exactly than this: what is off by less is not off."""
_COSTS = 4


@dataclass(frozen=True, slots=True)
class Served:
    """One request as its device saw it, times in seconds from any one moment.

    Attributes:
        tier: name of the tier.
        device: name of the device.
        prompt_tokens: of its prompt.
        output_tokens: that it was given.
        sent_s: when it was sent.
        first_s: when its first token came; infinite if none did.
        end_s: when it ended.
        is_complete: its answer was complete, there, and where it was first sent.
        is_certain: its course is known: when it ran on the device, and what it got. What is not
            leaves the time from `sent_s` to `end_s` on its device out of the fit.
    """

    tier: str
    device: str
    prompt_tokens: float
    output_tokens: int
    sent_s: float
    first_s: float
    end_s: float
    is_complete: bool
    is_certain: bool


class Stretch(NamedTuple):
    """A stretch of time on a device and what ran in it.

    Attributes:
        tier: of the answer whose stretch it is.
        kind: range it is in, in words.
        row: times `overhead_s`, `step_s`, `per_sequence_s` and `per_prompt_token_s` of each tier in
            turn are in it.
        measured_s: its length, seconds, > 0.
        is_first: it is the time to a first token, not of decoding.
        batch: mean sequences in the answer's batch.
    """

    tier: str
    kind: str
    row: tuple[float, ...]
    measured_s: float
    is_first: bool
    batch: float


class Lack(NamedTuple):
    """What is missing for the fit of one tier.

    Attributes:
        tier: its name.
        what: of which answers.
        found: how many there are.
        needed: how many it takes.
    """

    tier: str
    what: str
    found: int
    needed: int

    def __str__(self) -> str:
        return (
            f"{self.tier}: {self.found} {self.what}, {self.needed} are needed: "
            f"{self.needed - self.found} more"
        )


class _Course:
    """What one tier did on one device, as functions of time that never fall."""

    def __init__(self, requests: Sequence[Served]) -> None:
        """Takes all requests of the tier on the device whose first token came."""
        first_N = np.array([each.first_s for each in requests])
        end_N = np.array([max(each.end_s, each.first_s) for each in requests])
        later_N = np.array([max(0.0, each.output_tokens - 1.0) for each in requests])
        span_N = end_N - first_N
        decodes_N = (later_N > 0.0) & (span_N > 0.0)
        rate_N = np.where(decodes_N, later_N / np.where(decodes_N, span_N, 1.0), 0.0)
        # Running sequences and the sum of their rates between breakpoints.
        times_B = np.concatenate([first_N[decodes_N], end_N[decodes_N]])
        ones = np.ones(int(decodes_N.sum()))
        changes_B2 = np.stack(
            [
                np.concatenate([ones, -ones]),
                np.concatenate([rate_N[decodes_N], -rate_N[decodes_N]]),
            ],
            axis=1,
        )
        order_B = np.argsort(times_B, kind="stable")
        self._times_B = times_B[order_B]
        running_B, rates_B = np.cumsum(changes_B2[order_B], axis=0).T
        running_B = np.rint(running_B)
        # Sequences of a batch get a token each: as many iterations as tokens for one of them.
        iterating_B = np.where(running_B > 0, rates_B / np.maximum(running_B, 1.0), 0.0)
        gaps_B = np.diff(self._times_B, append=self._times_B[-1:])
        self._tokens_B = _before(rates_B * gaps_B)
        self._iterations_B = _before(iterating_B * gaps_B)
        # First tokens and their prompts; one that came while nobody decoded was an iteration.
        by_first_N = np.argsort(first_N, kind="stable")
        self._first_N = first_N[by_first_N]
        at_N = np.searchsorted(self._times_B, self._first_N, side="left") - 1
        is_alone_N = np.ones(len(first_N), np.bool_)
        if len(times_B):
            is_alone_N = (at_N < 0) | (running_B[np.maximum(at_N, 0)] <= 0)
        prompts_N = np.array([each.prompt_tokens for each in requests])
        self._firsts_N = np.arange(1.0, len(first_N) + 1.0)
        self._prompts_N = np.cumsum(prompts_N[by_first_N])
        self._alone_N = np.cumsum(is_alone_N.astype(np.float64))

    def within(
        self, low_E: NDArray[np.float64], high_E: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Returns iterations, tokens and prompt tokens after `low_E` and up to `high_E`."""
        iterations_E, tokens_E, prompts_E = (
            np.maximum(0.0, self._at(high_E, *part) - self._at(low_E, *part))
            for part in (
                (self._iterations_B, self._alone_N),
                (self._tokens_B, self._firsts_N),
                (np.zeros(0), self._prompts_N),
            )
        )
        return iterations_E, tokens_E, prompts_E

    def _at(
        self,
        time_E: NDArray[np.float64],
        values_B: NDArray[np.float64],
        counts_N: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Returns what has grown between breakpoints, and by steps at first tokens, by then."""
        rank_E = np.searchsorted(self._first_N, time_E, side="right")
        found_E: NDArray[np.float64] = np.concatenate([[0.0], counts_N])[rank_E]
        if len(values_B):
            found_E = found_E + np.interp(time_E, self._times_B, values_B)
        return found_E


def _before(parts_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the sum of what comes before each."""
    return np.cumsum(parts_B) - parts_B


def stretches(served: Iterable[Served], tiers: Sequence[str]) -> list[Stretch]:
    """Returns all stretches that can be reckoned with, with what ran in them.

    Args:
        served: all requests of a time, in any order, whatever became of them.
        tiers: names of the tiers, in the order of the rows.
    """
    by_device: dict[str, list[Served]] = {}
    for each in served:
        by_device.setdefault(each.device, []).append(each)
    found: list[Stretch] = []
    for requests in by_device.values():
        found += _of_device(requests, tiers)
    return _with_prompt_ranges(found, tiers)


def _of_device(requests: Sequence[Served], tiers: Sequence[str]) -> list[Stretch]:
    courses = {}
    for tier in tiers:
        began = [r for r in requests if r.tier == tier and np.isfinite(r.first_s)]
        if began:
            courses[tier] = _Course(began)
    whole = [r for r in requests if r.is_complete and r.is_certain and r.tier in courses]
    if not whole:
        return []
    doubtful = _union([(r.sent_s, r.end_s) for r in requests if not r.is_certain])
    sent_N = np.array([r.sent_s for r in whole])
    first_N = np.array([r.first_s for r in whole])
    end_N = np.array([r.end_s for r in whole])
    is_idle_N = _alone(whole, requests) & ~_touched(sent_N, first_N, doubtful)
    later_N = np.array([r.output_tokens - 1.0 for r in whole])
    decodes_N = (later_N >= FEWEST_TOKENS) & (end_N > first_N) & ~_touched(first_N, end_N, doubtful)
    work = {tier: course.within(first_N, end_N) for tier, course in courses.items()}
    found: list[Stretch] = []
    for n, request in enumerate(whole):
        if is_idle_N[n] and first_N[n] > sent_N[n]:
            row = _row(tiers, request.tier, {request.tier: (1.0, 1.0, request.prompt_tokens)}, 1.0)
            found.append(Stretch(request.tier, "", row, float(first_N[n] - sent_N[n]), True, 1.0))
        if decodes_N[n]:
            ran = {tier: tuple(float(part[n]) for part in parts) for tier, parts in work.items()}
            _iterations, tokens, prompts = ran[request.tier]
            later = float(later_N[n])
            batch = max(1.0, tokens / later)
            ran[request.tier] = (later, max(later, tokens), prompts)
            kind = f"decoding, {_batch_text(batch)}"
            if any(parts[0] >= 1.0 for tier, parts in ran.items() if tier != request.tier):
                kind += ", beside other tiers"
            row = _row(tiers, request.tier, ran, 0.0)
            found.append(
                Stretch(request.tier, kind, row, float(end_N[n] - first_N[n]), False, batch)
            )
    return found


def _row(
    tiers: Sequence[str], own: str, ran: Mapping[str, tuple[float, ...]], overhead: float
) -> tuple[float, ...]:
    row: list[float] = []
    for tier in tiers:
        row += [overhead if tier == own else 0.0, *ran.get(tier, (0.0, 0.0, 0.0))]
    return tuple(row)


def _batch_text(batch: float) -> str:
    low = 1.0
    for high in BATCHES:
        if batch <= high:
            return f"batches of {low:g} to {high:g}"
        low = high
    return f"batches above {low:g}"


def _alone(whole: Sequence[Served], requests: Sequence[Served]) -> NDArray[np.bool_]:
    """Returns whose device had nothing else under way from their sending to their first token."""
    sent_M = np.sort([r.sent_s for r in requests])
    end_M = np.sort([r.end_s for r in requests])
    sent_N = np.array([r.sent_s for r in whole])
    first_N = np.array([r.first_s for r in whole])
    # All that were sent by then, less all that had ended before: itself alone.
    begun_N = np.searchsorted(sent_M, first_N, side="right")
    ended_N = np.searchsorted(end_M, sent_N, side="left")
    return np.asarray(begun_N - ended_N == 1)


def _union(spans: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
    """Returns spans merged where they overlap, [S, 2], in order of time."""
    merged: list[list[float]] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return np.array(merged).reshape(-1, 2)


def _touched(
    low_N: NDArray[np.float64], high_N: NDArray[np.float64], spans_S2: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Returns which stretches overlap one of the spans."""
    if not len(spans_S2):
        return np.zeros(len(low_N), np.bool_)
    before_N = np.searchsorted(spans_S2[:, 1], low_N, side="left")
    begun_N = np.searchsorted(spans_S2[:, 0], high_N, side="right")
    return np.asarray(begun_N > before_N)


def _with_prompt_ranges(found: Sequence[Stretch], tiers: Sequence[str]) -> list[Stretch]:
    """Names the ranges of times to first tokens: by length of the prompt, as many in each."""
    highs: dict[str, list[tuple[float, str]]] = {}
    column = {tier: index * _COSTS + 3 for index, tier in enumerate(tiers)}
    for tier in tiers:
        lengths = np.unique([s.row[column[tier]] for s in found if s.tier == tier and s.is_first])
        highs[tier] = [
            (float(part[-1]), f"idle device, prompts of {part[0]:.0f} to {part[-1]:.0f} tokens")
            for part in np.array_split(lengths, PROMPT_RANGES)
            if len(part)
        ]
    return [
        each
        if not each.is_first
        else each._replace(
            kind=next(
                text for high, text in highs[each.tier] if each.row[column[each.tier]] <= high
            )
        )
        for each in found
    ]


def lacks(found: Sequence[Stretch], profile: LatencyProfile, tiers: Sequence[str]) -> list[Lack]:
    """Returns what is missing for a fit, by tier; empty if nothing is."""
    missing = []
    for tier in tiers:
        mine = [each for each in found if each.tier == tier]
        counts = [
            ("answers that found their device idle", sum(s.is_first for s in mine), FEWEST_FIRSTS),
            ("answers whose decoding is known", sum(not s.is_first for s in mine), FEWEST_DECODES),
        ]
        if profile.tiers[tier].max_batch > 1:
            batched = sum(not s.is_first and s.batch >= COMPANY for s in mine)
            counts.append(("answers with company in their batch", batched, FEWEST_BATCHED))
        missing += [Lack(tier, *each) for each in counts if each[1] < each[2]]
    return missing


def fit_served(
    found: Sequence[Stretch],
    tiers: Sequence[str],
    kept: Mapping[str, TierProfile],
    old: LatencyProfile,
) -> dict[str, Fit]:
    """Fits the costs of tiers to stretches, all together, none below zero.

    Args:
        found: stretches; those of tiers that are kept are not explained.
        tiers: names in the order of the rows.
        kept: costs of tiers that are not fitted, but ran beside the others.
        old: the profile in use, whose limits tiers keep.

    Raises:
        FitError: no finite cost explains the stretches.
    """
    fitted = [tier for tier in tiers if tier not in kept]
    used = [s for s in found if s.tier in fitted and TIMES_S[0] <= s.measured_s <= TIMES_S[1]]
    if not used:
        raise FitError("there is nothing to fit")
    rows_EP = np.array([each.row for each in used])
    known_P = np.concatenate([_costs(kept.get(tier)) for tier in tiers])
    is_fitted_P = np.repeat([tier in fitted for tier in tiers], _COSTS)
    targets_E = np.array([each.measured_s for each in used]) - rows_EP @ known_P
    # What those that are kept account for wholly says nothing of the others.
    is_left_E = targets_E > 0.05 * np.array([each.measured_s for each in used])
    # Ranges count alike, however many stretches there are of each.
    kinds = [(each.tier, each.kind) for each, left in zip(used, is_left_E, strict=True) if left]
    count = Counter(kinds)
    solution_P = robust_least_squares(
        rows_EP[is_left_E][:, is_fitted_P],
        targets_E[is_left_E],
        np.array([1.0 / count[kind] for kind in kinds]),
    )
    costs = {
        tier: _with_costs(old.tiers[tier], solution_P[index * _COSTS : (index + 1) * _COSTS])
        for index, tier in enumerate(fitted)
    }
    whole = {**kept, **costs}
    return {tier: _judged(found, tier, whole, tiers) for tier in fitted}


def _with_costs(old: TierProfile, costs_P: NDArray[np.float64]) -> TierProfile:
    overhead_s, step_s, per_sequence_s, per_prompt_token_s = map(float, costs_P)
    return replace(
        old,
        overhead_s=overhead_s,
        step_s=max(SMALLEST_STEP_S, step_s),
        per_sequence_s=per_sequence_s,
        per_prompt_token_s=per_prompt_token_s,
    )


def _judged(
    found: Sequence[Stretch], tier: str, costs: Mapping[str, TierProfile], tiers: Sequence[str]
) -> Fit:
    """Returns a tier's costs with how well they explain its stretches."""
    mine = [each for each in found if each.tier == tier]
    costs_P = np.concatenate([_costs(costs.get(each)) for each in tiers])
    measured_E = np.array([each.measured_s for each in mine])
    predicted_E = np.array([each.row for each in mine]) @ costs_P
    errors_E = np.abs(predicted_E - measured_E) / measured_E
    return Fit(
        profile=costs[tier],
        sample_count=len(mine),
        median_error=float(np.median(errors_E)),
        mean_error=float(abs(predicted_E.sum() - measured_E.sum()) / measured_E.sum()),
        largest_error=float(errors_E.max()),
    )


def misfits_of(
    found: Sequence[Stretch], costs: Mapping[str, TierProfile], tiers: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns how far costs are off beyond GRAIN_S, by tier and range.

    Each is the median of predicted / measured - 1. Ranges with few stretches are left out.
    """
    costs_P = np.concatenate([_costs(costs.get(each)) for each in tiers])
    ratios: dict[str, dict[str, list[float]]] = {tier: {} for tier in tiers}
    for each in found:
        off_s = float(np.dot(each.row, costs_P)) - each.measured_s
        beyond_s = float(np.copysign(max(0.0, abs(off_s) - GRAIN_S), off_s))
        ratios[each.tier].setdefault(each.kind, []).append(beyond_s / each.measured_s)
    return {
        tier: {
            kind: float(np.median(values))
            for kind, values in sorted(kinds.items())
            if len(values) >= FEWEST_OF_A_KIND
        }
        for tier, kinds in ratios.items()
    }


def _costs(profile: TierProfile | None) -> NDArray[np.float64]:
    if profile is None:
        return np.zeros(_COSTS)
    return np.array(
        [
            profile.overhead_s,
            profile.step_s,
            profile.per_sequence_s,
            profile.per_prompt_token_s,
        ]
    )
