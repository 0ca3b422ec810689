"""Measures a latency profile of live tiers: alone, in batches, by prompt length, side by side."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from router.iteration_spread import MOST_CV
from router.profile import LatencyProfile, TierProfile
from router.profile_error import MOST_ERROR
from services.calibrate.answers import (
    Answer,
    alone_equations,
    batch_equations,
    iteration_cv,
    misfits,
    most_at_once,
    whole_equations,
    worst,
)
from services.calibrate.probe import REQUEST_TIMEOUT_S, closed_loop
from services.calibrate.questions import Question, spread
from services.calibrate.result import Calibration, PairCheck
from services.calibrate.tiers import EndpointClient, LiveTier, clients_of
from services.common.tiers.errors import TierError
from services.local.errors import CommandError
from trainer.profiling.latency_fit import Equation, Fit, FitError, fit_tier, ordered

DEFAULT_MAX_BATCH = 64
DEFAULT_MAX_PROMPT_TOKENS = 4096
METHOD = "tiercel calibrate"
PROMPT_COUNT = 40
WARM_UP_COUNT = 2
FEWEST_ALONE = 9
ALONE_RUNS = 3.0
"""Answers alone take as many runs, those of one token one more."""
SWEEP_COUNT = 4
"""Fewest answers of one token for the shortest, the middle and the longest prompt."""
LIMIT_TRIED = (8, 24, 72, 216)
"""Requests at once by which a batch limit is looked for."""
LIMIT_ROUNDS = 3
LONGEST_BATCH_RUN = 16
PAIR_CONCURRENCY = 4
OnStep = Callable[[str, float], None]


async def calibrate(
    tiers: Sequence[LiveTier],
    questions: Sequence[Question],
    *,
    name: str,
    bytes_per_token: float,
    stated: Sequence[str] = (),
    run_s: float = 1.2,
    seed: int = 0,
    most_error: float = MOST_ERROR,
    on_step: OnStep = lambda text, share: None,
) -> Calibration:
    """Measures every tier and every pair of tiers that share a device.

    Nothing else should load the endpoints meanwhile. The order of the tiers is the one stated
    wherever the costs fit it, else that of their time per token.

    Args:
        tiers: Tiers to measure, with what their models say of themselves.
        questions: What to ask; those that are asked go from the shortest prompt to the longest.
        name: Name of the profile.
        bytes_per_token: Of prompts whose tokens neither their file nor the tier counts.
        stated: Tiers as somebody lists them, lowest quality first.
        run_s: Length of each closed-loop run.
        seed: Which questions are asked.
        most_error: Error up to which costs fit what was measured.
        on_step: Gets what is measured now and the share of steps done.

    Raises:
        CommandError: An endpoint did not answer, or nothing fits what it answered.
    """
    began_s = time.monotonic()
    asked = spread(questions, PROMPT_COUNT, seed)
    pairs = _pairs(tiers)
    step_count = len(tiers) + len(pairs)
    async with clients_of(tiers) as clients:
        measured: dict[str, _Measured] = {}
        for done, tier in enumerate(tiers):
            on_step(f"latency of {tier.tier}", done / step_count)
            work = _Work(clients[tier.address], tier, asked, run_s, bytes_per_token)
            measured[tier.tier] = await work.measure()
        fits = _in_order(measured, stated, most_error)
        checks = []
        for done, pair in enumerate(pairs, start=len(tiers)):
            on_step(f"{pair[0].tier} beside {pair[1].tier}", done / step_count)
            checks.append(await _check_pair([measured[each.tier] for each in pair], fits))
        on_step("done", 1.0)
    alone = {tier: [each.sample.total_s for each in measured[tier].alone] for tier in fits}
    costs = {tier: fit.profile for tier, fit in fits.items()}
    now = datetime.datetime.now(datetime.UTC)
    return Calibration(
        profile=LatencyProfile(
            name, "measured", costs, _about(measured), float(round(now.timestamp())), METHOD
        ),
        fits=fits,
        pairs=tuple(checks),
        unloaded_p50_s={tier: float(np.quantile(each, 0.5)) for tier, each in alone.items()},
        unloaded_p95_s={tier: float(np.quantile(each, 0.95)) for tier, each in alone.items()},
        misfits={tier: misfits(costs[tier], measured[tier].equations) for tier in fits},
        bytes_per_token={tier: measured[tier].bytes_per_token for tier in fits},
        remarks=tuple(remark for tier in fits for remark in measured[tier].remarks),
        took_s=time.monotonic() - began_s,
    )


@dataclasses.dataclass(frozen=True)
class _Measured:
    """What was measured of one tier.

    Attributes:
        work: How to ask it again.
        alone: Answers that nothing else ran beside.
        equations: What its costs have to explain.
        fit: The costs that do it best.
        bytes_per_token: Mean bytes of a prompt over its mean tokens.
        remarks: What had to be assumed.
    """

    work: _Work
    alone: list[Answer]
    equations: list[Equation]
    fit: Fit
    bytes_per_token: float
    remarks: tuple[str, ...]


class _Work:
    """The measurements of one tier."""

    def __init__(
        self,
        client: EndpointClient,
        tier: LiveTier,
        questions: Sequence[Question],
        run_s: float,
        bytes_per_token: float,
    ) -> None:
        self.tier = tier
        self._client = client
        self._questions = questions
        self._by_length = sorted(questions, key=lambda each: len(each.prompt))
        self.run_s = run_s
        self._bytes_per_token = bytes_per_token
        self._tokens: dict[str, float] = {}
        self._remarks: list[str] = []
        self._asked = self._empty = 0

    async def measure(self) -> _Measured:
        """Measures the tier.

        Raises:
            CommandError: It did not answer, or nothing fits what it answered.
        """
        await closed_loop(self._client, self.tier.model, self._questions[:WARM_UP_COUNT], 1)
        await self._count_tokens()
        alone = await self.answers(1, ALONE_RUNS, FEWEST_ALONE)
        middle = self._by_length[len(self._by_length) // 2]
        swept = []
        for each in (self._by_length[0], middle, self._by_length[-1]):
            short = [dataclasses.replace(each, max_output_tokens=1)]
            swept += await self.answers(1, 1 / 3, SWEEP_COUNT, short)
        max_batch = self.tier.max_batch or await self._batch_limit()
        equations = alone_equations([*alone, *swept])
        for batch in _batches(max_batch):
            # Short prompts: with long ones a first token seen late would weigh more than the batch.
            run = await self.answers(batch, 1.0, 2 * batch, self._short())
            equations += batch_equations(run, batch)
        try:
            fit = fit_tier(
                equations,
                whole_equations(alone),
                max_batch=max_batch,
                max_prompt_tokens=self.tier.max_prompt_tokens or DEFAULT_MAX_PROMPT_TOKENS,
            )
        except FitError as error:
            raise CommandError(f"{self.tier.tier}: {error}") from None
        spread = iteration_cv(alone)
        if spread is None:
            self._remarks.append(
                f"{self.tier.tier}: too few answers stream token by token; the spread of its "
                "iterations is taken as none"
            )
        costs = dataclasses.replace(fit.profile, iteration_cv=min(round(spread or 0.0, 3), MOST_CV))
        fit = dataclasses.replace(fit, profile=costs)
        if self._empty:
            self._remarks.append(
                f"{self.tier.tier}: {self._empty} of {self._asked} answers held no token and are "
                "left out; what they took is not in the profile"
            )
        sizes = [len(each.prompt.encode()) for each in self._questions]
        mean = float(np.mean([self._tokens[each.prompt] for each in self._questions]))
        per_token = float(np.mean(sizes)) / mean
        return _Measured(self, alone, equations, fit, per_token, tuple(self._remarks))

    async def answers(
        self, concurrency: int, runs: float, fewest: int, questions: Sequence[Question] = ()
    ) -> list[Answer]:
        """Keeps so many questions under way for so many runs' time and at least so many answers."""
        samples = await closed_loop(
            self._client,
            self.tier.model,
            questions or self._questions,
            concurrency,
            until_s=time.monotonic() + runs * self.run_s,
            fewest=fewest,
        )
        found = [
            Answer(each, self._tokens[each.question.prompt])
            for each in samples
            if each.output_token_count
        ]
        self._asked += len(samples)
        self._empty += len(samples) - len(found)
        if not found:
            raise CommandError(f"{self.tier.tier} at {self.tier.address}: answers hold no tokens")
        return found

    def _short(self) -> list[Question]:
        """The third of the questions with the shortest prompts."""
        return self._by_length[: max(1, len(self._by_length) // 3)]

    async def _count_tokens(self) -> None:
        """Finds the tokens of every prompt: as stated, as the tier counts, or by its bytes."""
        for each in self._questions:
            if each.token_count:
                self._tokens[each.prompt] = each.token_count
            elif self.tier.counts_prompts:
                try:
                    self._tokens[each.prompt] = await self._client.prompt_token_count(
                        self.tier.model, each.prompt, timeout_s=REQUEST_TIMEOUT_S
                    )
                except TierError as error:
                    raise CommandError(
                        f"{self.tier.tier} at {self.tier.address}: {error}"
                    ) from None
            else:
                size = len(each.prompt.encode())
                self._tokens[each.prompt] = max(1.0, size / self._bytes_per_token)
        if not self.tier.counts_prompts and not all(each.token_count for each in self._questions):
            self._remarks.append(
                f"{self.tier.tier}: does not count prompt tokens; taken as a token per "
                f"{self._bytes_per_token:g} bytes"
            )

    async def _batch_limit(self) -> int:
        """Finds the most sequences it runs at once: the others get no token before one has ended.

        A moment in which this process stood still blurs a round, so the middle one of several
        counts.
        """
        shortest = self._short()
        for tried in LIMIT_TRIED:
            rounds: list[int] = []
            while len(rounds) < LIMIT_ROUNDS and max(rounds, default=0) < tried:
                burst = [shortest[index % len(shortest)] for index in range(tried)]
                samples = await closed_loop(self._client, self.tier.model, burst, tried)
                rounds.append(most_at_once(samples))
            limit = sorted(rounds)[len(rounds) // 2]
            if not limit:
                self._assumed("does not stream, so its batch limit cannot be seen")
                return DEFAULT_MAX_BATCH
            if limit < tried:
                return limit
        self._assumed(f"ran {tried} requests at once; its batch limit may be higher")
        return tried

    def _assumed(self, what: str) -> None:
        self._remarks.append(f"{self.tier.tier}: {what} (its model may say tiercel_max_batch)")


def _in_order(
    measured: Mapping[str, _Measured], stated: Sequence[str], most_error: float
) -> dict[str, Fit]:
    """Fits in the order stated if they can be had so, else by their time per token."""
    fits = {tier: each.fit for tier, each in measured.items()}
    if set(stated) >= set(fits):
        kept = ordered(fits, [tier for tier in stated if tier in fits])
        moved = [tier for tier in fits if kept[tier] is not fits[tier]]
        if all(
            abs(worst(misfits(kept[tier].profile, measured[tier].equations))[1]) <= most_error
            for tier in moved
        ):
            return kept
    return ordered(fits, sorted(fits, key=lambda tier: fits[tier].profile.token_s))


async def _check_pair(pair: Sequence[_Measured], fits: Mapping[str, Fit]) -> PairCheck:
    """Keeps two tiers busy at once and compares with the profile."""
    slow_s = sum(float(np.mean([a.sample.total_s for a in each.alone])) for each in pair)
    runs = max(1.0, 3.0 * slow_s / pair[0].work.run_s)
    answers = await asyncio.gather(
        *(each.work.answers(PAIR_CONCURRENCY, runs, PAIR_CONCURRENCY) for each in pair)
    )
    found = [_steady(run) for run in answers]
    measured = [float(np.mean([each.sample.total_s for each in run])) for run in found]
    names = [each.work.tier.tier for each in pair]
    profiles = [fits[name].profile for name in names]
    shapes = [_shape(run) for run in found]
    cycles = [_iteration_s(p, s) for p, s in zip(profiles, shapes, strict=True)]
    predicted = [p.overhead_s + s[0] * sum(cycles) for p, s in zip(profiles, shapes, strict=True)]
    return PairCheck((names[0], names[1]), (measured[0], measured[1]), (predicted[0], predicted[1]))


def _steady(run: Sequence[Answer]) -> Sequence[Answer]:
    """Leaves out answers that began while others were few, or ended when they had become few."""
    last_s = max(each.sample.began_s for each in run)
    kept = [
        each
        for each in run[PAIR_CONCURRENCY:]
        if each.sample.began_s + each.sample.total_s <= last_s
    ]
    return kept or run


def _shape(run: Sequence[Answer]) -> tuple[float, float]:
    """Mean output and prompt tokens of a run."""
    outputs = float(np.mean([each.sample.output_token_count for each in run]))
    return outputs, float(np.mean([each.prompt_tokens for each in run]))


def _iteration_s(profile: TierProfile, shape: tuple[float, float]) -> float:
    """Mean iteration of a tier at the pairs' concurrency, newcomers' prompts included."""
    outputs, prompts = shape
    return (
        profile.step_s
        + profile.per_sequence_s * PAIR_CONCURRENCY
        + profile.per_prompt_token_s * prompts * PAIR_CONCURRENCY / outputs
    )


def _batches(max_batch: int) -> list[int]:
    """Batch sizes to run: the tier's limit, and a quarter of it."""
    top = min(max_batch, LONGEST_BATCH_RUN)
    return sorted({max(2, top // 4), top}) if top > 1 else []


def _pairs(tiers: Sequence[LiveTier]) -> list[tuple[LiveTier, LiveTier]]:
    return [
        (first, second)
        for first, second in itertools.combinations(tiers, 2)
        if (first.address, first.device) == (second.address, second.device)
    ]


def _about(measured: Mapping[str, _Measured]) -> str:
    tiers = [each.work.tier for each in measured.values()]
    kinds = ", ".join(sorted({each.kind for each in tiers if each.kind})) or "unknown"
    models = ", ".join(f"{each.tier} = {each.model}" for each in tiers)
    prompts = [a.prompt_tokens for each in measured.values() for a in each.alone]
    errors = ", ".join(f"{tier} {each.fit.median_error:.3f}" for tier, each in measured.items())
    return (
        f"{kinds} tiers ({models}) on {platform.machine()}, "
        f"prompts of {min(prompts):.0f} to {max(prompts):.0f} tokens;"
        f" median relative error of the fit: {errors}"
    )
