"""Measures a latency profile of live tiers: alone, in batches, by prompt length, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import platform
import random
import string
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from router.profile import LatencyProfile, TierProfile
from services.calibrate.answers import Measured, fit_answers
from services.calibrate.probe import Question, Sample, ask, closed_loop
from services.calibrate.quality import questions
from services.calibrate.result import Calibration, PairCheck
from services.calibrate.tiers import LiveTier, with_facts
from services.common.triton.client import TritonClient
from services.local.errors import CommandError
from trainer.profiling.latency_fit import Fit, FitError, ordered
from trainer.reference_tiers import tasks as reference_tasks

DEFAULT_MAX_BATCH = 64
DEFAULT_MAX_PROMPT_TOKENS = 4096
WARM_UP_COUNT = 6
UNLOADED_COUNT = 40
SWEEP_COUNT = 12
SWEEP_PROMPT_TOKENS = (8, 20, 40)
LONGEST_BATCH_RUN = 16
PAIR_CONCURRENCY = 4
OnStep = Callable[[str, float], None]


async def calibrate(
    tiers: Sequence[LiveTier],
    *,
    name: str,
    run_s: float = 1.2,
    seed: int = 0,
    on_step: OnStep = lambda text, share: None,
) -> Calibration:
    """Measures every tier and every pair of tiers that share a device.

    Nothing else should load the endpoints meanwhile.

    Args:
        tiers: Tiers to measure, lowest quality first.
        name: Name of the profile.
        run_s: Length of each closed-loop run.
        seed: Which questions are asked.
        on_step: Gets what is measured now and the share of steps done.

    Raises:
        CommandError: An endpoint did not answer, or nothing fits what it answered.
    """
    began_s = time.monotonic()
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            address: await stack.enter_async_context(TritonClient(address))
            for address in dict.fromkeys(each.address for each in tiers)
        }
        known = [await with_facts(each, clients[each.address]) for each in tiers]
        work = _Work(clients, _mixed_questions(seed), run_s)
        pairs = _pairs(known)
        step_count = len(known) + len(pairs)
        fits: dict[str, Fit] = {}
        alone: dict[str, list[Sample]] = {}
        for done, tier in enumerate(known):
            on_step(f"latency of {tier.tier}", done / step_count)
            alone[tier.tier], measured = await work.measure(tier)
            try:
                fits[tier.tier] = fit_answers(
                    measured,
                    max_batch=tier.max_batch or DEFAULT_MAX_BATCH,
                    max_prompt_tokens=tier.max_prompt_tokens or DEFAULT_MAX_PROMPT_TOKENS,
                )
            except FitError as error:
                raise CommandError(f"{tier.tier}: {error}") from None
        fits = ordered(fits, [each.tier for each in known])
        checks = []
        for done, (first, second) in enumerate(pairs, start=len(known)):
            on_step(f"{first.tier} beside {second.tier}", done / step_count)
            checks.append(await work.check_pair(first, second, fits))
        on_step("done", 1.0)
    totals = {tier: [each.total_s for each in samples] for tier, samples in alone.items()}
    return Calibration(
        profile=LatencyProfile(
            name, "measured", {t: fit.profile for t, fit in fits.items()}, _about(known, fits)
        ),
        fits=fits,
        pairs=tuple(checks),
        unloaded_p50_s={tier: float(np.quantile(each, 0.5)) for tier, each in totals.items()},
        unloaded_p95_s={tier: float(np.quantile(each, 0.95)) for tier, each in totals.items()},
        took_s=time.monotonic() - began_s,
    )


class _Work:
    """The measurements themselves, on open clients."""

    def __init__(
        self, clients: Mapping[str, TritonClient], mixed: Sequence[Question], run_s: float
    ) -> None:
        self._clients = clients
        self._mixed = mixed
        self._run_s = run_s

    async def measure(self, tier: LiveTier) -> tuple[list[Sample], list[Measured]]:
        """Measures one tier; returns its answers without load and everything for the fit."""
        client = self._clients[tier.address]
        await closed_loop(client, tier.model, self._mixed[:WARM_UP_COUNT], 1)
        alone = await closed_loop(client, tier.model, self._mixed[:UNLOADED_COUNT], 1)
        measured = _measured(alone, 1)
        for length in SWEEP_PROMPT_TOKENS:
            swept = [await ask(client, tier.model, _sweep(length, i)) for i in range(SWEEP_COUNT)]
            measured += _measured(swept, 1)
        for batch in _batches(tier.max_batch or DEFAULT_MAX_BATCH):
            run = await self._loop(tier, batch)
            measured += _measured(run, batch)
        return alone, measured

    async def check_pair(
        self, first: LiveTier, second: LiveTier, fits: Mapping[str, Fit]
    ) -> PairCheck:
        """Keeps two tiers busy at once and compares with the profile."""
        runs = await asyncio.gather(
            self._loop(first, PAIR_CONCURRENCY), self._loop(second, PAIR_CONCURRENCY)
        )
        measured = [float(np.mean([each.total_s for each in run])) for run in runs]
        profiles = [fits[each.tier].profile for each in (first, second)]
        shapes = [_shape(run) for run in runs]
        cycles = [_iteration_s(p, s) for p, s in zip(profiles, shapes, strict=True)]
        predicted = [
            p.overhead_s + s[0] * sum(cycles) for p, s in zip(profiles, shapes, strict=True)
        ]
        return PairCheck(
            (first.tier, second.tier),
            (measured[0], measured[1]),
            (predicted[0], predicted[1]),
        )

    async def _loop(self, tier: LiveTier, concurrency: int) -> list[Sample]:
        """A closed loop for ``run_s``; the first answers, taken while it fills, are left out."""
        client = self._clients[tier.address]
        until_s = time.monotonic() + self._run_s
        run = await closed_loop(client, tier.model, self._mixed, concurrency, until_s=until_s)
        # Answers that began when others were still few, or ended when they had become few.
        steady = [each for each in run[concurrency:] if each.began_s + each.total_s <= until_s]
        return steady or run


def _measured(samples: Sequence[Sample], batch: int) -> list[Measured]:
    outputs, prompts = _shape(samples)
    return [
        Measured(
            each.total_s,
            each.first_token_s,
            each.output_token_count,
            len(each.question.prompt),
            batch,
            outputs,
            prompts,
        )
        for each in samples
        if each.output_token_count
    ]


def _shape(samples: Sequence[Sample]) -> tuple[float, float]:
    """Mean output and prompt tokens of a run."""
    outputs = float(np.mean([max(1, each.output_token_count) for each in samples]))
    return outputs, float(np.mean([len(each.question.prompt) for each in samples]))


def _iteration_s(profile: TierProfile, shape: tuple[float, float]) -> float:
    """Mean iteration of a tier at the pairs' concurrency, newcomers' prompts included."""
    outputs, prompts = shape
    return (
        profile.step_s
        + profile.per_sequence_s * PAIR_CONCURRENCY
        + profile.per_prompt_token_s * prompts * PAIR_CONCURRENCY / outputs
    )


def _batches(max_batch: int) -> list[int]:
    """Batch sizes to run: powers of two up to the tier's limit."""
    top = min(max_batch, LONGEST_BATCH_RUN)
    sizes = [2**k for k in range(1, 10) if 2**k <= top]
    return sizes if not sizes or sizes[-1] == top else [*sizes, top]


def _pairs(tiers: Sequence[LiveTier]) -> list[tuple[LiveTier, LiveTier]]:
    return [
        (first, second)
        for first, second in itertools.combinations(tiers, 2)
        if (first.address, first.device) == (second.address, second.device)
    ]


def _mixed_questions(seed: int) -> list[Question]:
    names = reference_tasks.task_names()
    mixed = [each for name in names for each in questions(name, 50, seed)]
    random.Random(seed).shuffle(mixed)
    return mixed


def _sweep(prompt_tokens: int, index: int) -> Question:
    """A prompt of a given length that asks for one token only: almost nothing but its prompt."""
    rng = random.Random(f"sweep-{prompt_tokens}-{index}")
    letters = "".join(rng.choices(string.ascii_lowercase, k=prompt_tokens - len("rev:=")))
    return Question("", f"rev:{letters}=", "", 1)


def _about(tiers: Sequence[LiveTier], fits: Mapping[str, Fit]) -> str:
    now = datetime.datetime.now(datetime.UTC)
    kinds = ", ".join(sorted({each.kind for each in tiers if each.kind})) or "unknown"
    errors = ", ".join(f"{tier} {fit.median_error:.3f}" for tier, fit in fits.items())
    return (
        f"{kinds} tiers on {platform.machine()}, {now:%Y-%m-%d %H:%M} UTC, tiercel calibrate;"
        f" median relative error of the fit: {errors}"
    )
