"""What live answers say about their tier's costs, by the stamps of every token.

An iteration of a tier gives every sequence in it one token, and works off the prompts of those that
join. So what ran beside an answer need not be assumed: the tokens that others got meanwhile say how
many sequences were in its iterations, their first tokens whose prompts were in them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from router.profile import TierProfile
from services.calibrate.probe import Sample
from trainer.profiling.latency_fit import Equation

FEWEST_TOKENS = 2
"""Tokens after the first that make a stretch long enough to be timed."""
GRAIN_S = 0.001
"""No process sees an answer come more exactly than this: what is off by less is not off."""
FEWEST_GAPS, FEWEST_SPREAD = 4, 5
"""Gaps between single tokens that an answer must have to tell of the spread, and such answers."""
STILL = 10.0
"""Times the median variance of gaps above which an answer was held up as a whole."""
RANGES = 3
"""Ranges of prompt lengths that are told apart."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a prompt of known length.

    Attributes:
        sample: The answer.
        prompt_tokens: Tokens of its prompt.
    """

    sample: Sample
    prompt_tokens: float

    @property
    def streams(self) -> bool:
        """Whether it came in more than one piece."""
        return len(self.sample.stamps) > 1


def alone_equations(answers: Sequence[Answer]) -> list[Equation]:
    """Equations of answers that nothing else ran beside.

    The time from the first token to the last has no overhead in it, which keeps overhead and
    iterations apart even for a tier whose whole answer takes a few milliseconds.
    """
    ranges = _ranges([each.prompt_tokens for each in answers])
    found = []
    for each in answers:
        sample, prompt = each.sample, each.prompt_tokens
        count = sample.output_token_count
        kind = next(text for high, text in ranges if prompt <= high)
        if not each.streams:
            found.append(Equation(kind, (1.0, count, count, prompt), sample.total_s))
            continue
        first = sample.stamps[0][1]
        found.append(Equation(kind, (1.0, first, first, prompt), sample.first_token_s))
        later = count - first
        if later >= FEWEST_TOKENS:
            rest_s = sample.stamps[-1][0] - sample.stamps[0][0]
            found.append(Equation("answers alone", (0.0, later, later, 0.0), rest_s))
    return found


def whole_equations(answers: Sequence[Answer]) -> list[Equation]:
    """Equations of the whole times of answers that nothing else ran beside."""
    return [
        Equation(
            "whole",
            (
                1.0,
                each.sample.output_token_count,
                each.sample.output_token_count,
                each.prompt_tokens,
            ),
            each.sample.total_s,
        )
        for each in answers
    ]


def batch_equations(answers: Sequence[Answer], batch: int) -> list[Equation]:
    """Equations of everything that was asked of a tier in one run, so many at a time."""
    kind = f"batches of {batch}"
    if not any(each.streams for each in answers):
        return [_turnover(each, answers, batch, kind) for each in answers]
    first_N = np.array([each.sample.stamps[0][0] for each in answers])
    by_first_N = np.argsort(first_N)
    prompts_N = np.cumsum([0.0, *(answers[i].prompt_tokens for i in by_first_N)])
    stamps = sorted(itertools.chain.from_iterable(each.sample.stamps for each in answers))
    time_M = np.array([at_s for at_s, _ in stamps])
    tokens_M = np.cumsum([0.0, *(tokens for _, tokens in stamps)])
    found = []
    for each in answers:
        own = each.sample.stamps
        if len(own) <= FEWEST_TOKENS:
            continue
        # Where many end together their last tokens are seen late: every end is work here.
        own = own[:-1] if len(own) > FEWEST_TOKENS + 1 else own
        later = sum(tokens for _, tokens in own[1:])
        # Stamps of one iteration lie around each other's: a stretch is cut where none is.
        gap_s = float(np.median(np.diff([at_s for at_s, _ in own])))
        cuts = (0.5 * (own[0][0] + own[1][0]), own[-1][0] + 0.5 * gap_s)
        low, high = np.searchsorted(time_M, cuts)
        begun, ended = np.searchsorted(first_N[by_first_N], cuts)
        row = (
            0.0,
            float(later),
            float(tokens_M[high] - tokens_M[low]),
            float(prompts_N[ended] - prompts_N[begun]),
        )
        found.append(Equation(kind, row, own[-1][0] - own[0][0]))
    return found


def _turnover(each: Answer, run: Sequence[Answer], batch: int, kind: str) -> Equation:
    """The equation of an answer that came in one piece: the others are replaced by mean ones."""
    count = each.sample.output_token_count
    mean = float(np.mean([other.sample.output_token_count for other in run]))
    prompts = float(np.mean([other.prompt_tokens for other in run]))
    beside = (batch - 1.0) * count / mean * prompts
    row = (1.0, count, count * batch, each.prompt_tokens + beside)
    return Equation(kind, row, each.sample.total_s)


def iteration_cv(answers: Sequence[Answer]) -> float | None:
    """Returns how iteration times of answers that nothing ran beside spread about their mean.

    The gap between two tokens is an iteration d, and what stamps are late by, e: d + e - e of the
    token before. A late stamp makes one gap longer and the next one shorter, so gaps beside each
    other tell the two apart: their variance is var(d) + 2 var(e), their covariance -var(e). With
    each answer's own mean taken off, the expected sums over an answer of n gaps are
        of squares:            (n - 1) var(d) + (2 n - 2 / n) var(e)
        of products of two:  - (n - 1) / n var(d) - (n - 1 + 2 / n^2) var(e)
    and both, added up over all answers, are solved for var(d).

    Returns:
        Coefficient of variation, at least 0; None if too few answers tell their single tokens.
    """
    gaps = []
    for each in answers:
        stamps = each.sample.stamps
        if len(stamps) > FEWEST_GAPS and all(tokens == 1 for _, tokens in stamps[1:]):
            gaps.append(np.diff([at_s for at_s, _ in stamps]))
    if len(gaps) < FEWEST_SPREAD:
        return None
    squares = np.array([float(np.sum((gap - gap.mean()) ** 2)) for gap in gaps])
    # An answer during which this process, or the whole machine, stood still tells of that.
    per_gap = squares / [len(gap) for gap in gaps]
    most = STILL * float(np.median(per_gap))
    kept = [gap for gap, each in zip(gaps, per_gap, strict=True) if each <= most]
    sums, known = np.zeros(2), np.zeros((2, 2))
    for gap in kept:
        n, off = len(gap), gap - gap.mean()
        sums += float(np.sum(off**2)), float(np.sum(off[1:] * off[:-1]))
        known += (n - 1.0, 2.0 * n - 2.0 / n), (-(n - 1.0) / n, -(n - 1.0 + 2.0 / n**2))
    of_iterations, of_stamps = np.linalg.solve(known, sums)
    if of_stamps < 0.0:
        of_iterations = sums[0] / known[0, 0]
    mean_s = float(np.mean(np.concatenate(kept)))
    return math.sqrt(max(0.0, float(of_iterations))) / mean_s


def most_at_once(samples: Sequence[Sample]) -> int:
    """Most answers that were being made at the same time; 0 where answers come in one piece.

    An answer is being made from its first token until half an iteration after its last.
    """
    events = []
    for each in samples:
        if len(each.stamps) < FEWEST_TOKENS:
            continue
        times = [at_s for at_s, _ in each.stamps]
        events += [(times[0], 1), (times[-1] + 0.5 * float(np.median(np.diff(times))), -1)]
    return max(itertools.accumulate(change for _, change in sorted(events)), default=0)


def misfits(profile: TierProfile, equations: Sequence[Equation]) -> dict[str, float]:
    """How far a profile is off beyond GRAIN_S, by what was measured.

    Each is the median of predicted / measured - 1.
    """
    costs = (
        profile.overhead_s,
        profile.step_s,
        profile.per_sequence_s,
        profile.per_prompt_token_s,
    )
    ratios: dict[str, list[float]] = {}
    for each in equations:
        off_s = float(np.dot(each.row, costs)) - each.measured_s
        beyond_s = math.copysign(max(0.0, abs(off_s) - GRAIN_S), off_s)
        ratios.setdefault(each.kind, []).append(beyond_s / each.measured_s)
    return {kind: float(np.median(found)) for kind, found in ratios.items()}


def worst(off: Mapping[str, float]) -> tuple[str, float]:
    """What is farthest off."""
    return max(off.items(), key=lambda item: abs(item[1]))


def _ranges(lengths: Sequence[float]) -> list[tuple[float, str]]:
    """Highest length and words of up to RANGES ranges with about as many lengths each."""
    parts = np.array_split(np.unique(np.array(lengths)), RANGES)
    return [
        (float(part[-1]), f"prompts of {part[0]:.0f} to {part[-1]:.0f} tokens")
        for part in parts
        if len(part)
    ]
