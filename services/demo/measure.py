"""What a demo measures before it compares policies: quality, latency, capacity."""

from __future__ import annotations

import numpy as np

from services.calibrate.answers import worst
from services.calibrate.calibration import calibrate
from services.calibrate.quality import QualityMeasurement, measure_quality
from services.calibrate.questions import reference_questions
from services.calibrate.result import Calibration
from services.calibrate.tiers import LiveTier, with_facts
from services.demo.capacity import (
    FIRST_SHARE,
    CapacityProbe,
    bounds,
    find_capacity,
    profile_rate_rps,
)
from services.demo.display import Display
from services.demo.plan import DemoPlan
from services.demo.replay import Replays
from services.local.errors import CommandError
from services.local.fleets import REFERENCE_TIERS
from trainer.reference_tiers import tasks as reference_tasks

PROFILE_NAME = "reference"
CALIBRATION_EXAMPLES = 50
BYTES_PER_TOKEN = 1.0
LARGEST = REFERENCE_TIERS[-1]


async def tier_quality(tiers: list[LiveTier], plan: DemoPlan, show: Display) -> QualityMeasurement:
    """Scores every tier on held-out examples."""
    show.begin("measuring quality by exact match")
    asked = reference_questions(plan.examples, plan.seed)
    total = len(asked) * len(tiers)
    answered = 0

    def on_answer(tier: str) -> None:
        nonlocal answered
        answered += 1
        show.update(answered / total, tier)

    scores = await measure_quality(tiers, asked, on_answer=on_answer)
    measured = QualityMeasurement.of(scores, REFERENCE_TIERS)
    means = {
        tier: float(np.mean([measured.standardised(task, tier) for task in measured.scores]))
        for tier in measured.tiers
    }
    listed = ", ".join(f"{tier} {value:.2f}" for tier, value in means.items())
    show.done(f"quality, mean of the tasks: {listed}")
    return measured


async def tier_latency(
    tiers: list[LiveTier], plan: DemoPlan, show: Display
) -> tuple[Calibration, float]:
    """Measures every tier's latency; returns it with the deadline that follows, in seconds."""
    show.begin("measuring latency")
    measured = await calibrate(
        await with_facts(tiers),
        reference_questions(CALIBRATION_EXAMPLES, plan.seed),
        name=PROFILE_NAME,
        bytes_per_token=BYTES_PER_TOKEN,
        stated=REFERENCE_TIERS,
        run_s=plan.calibrate_run_s,
        seed=plan.seed,
        on_step=lambda text, share: show.update(share, text),
    )
    p95_s = measured.unloaded_p95_s[LARGEST]
    deadline_s = plan.deadline_s(measured.unloaded_p50_s[LARGEST], p95_s)
    error = max(abs(worst(off)[1]) for off in measured.misfits.values())
    show.done(
        f"latency profile: large alone p95 {p95_s * 1e3:.0f} ms, so the deadline is"
        f" {deadline_s * 1e3:.0f} ms (off by up to {error:.2f})"
    )
    return measured, deadline_s


async def static_capacity(
    calibration: Calibration, replays: Replays, plan: DemoPlan, show: Display
) -> list[CapacityProbe]:
    """Searches what static-large, which must be the active policy, holds through the whole mesh.

    Raises:
        CommandError: It held none of the rates tried.
    """
    profile = calibration.profile.tiers[LARGEST]
    count = 0

    async def probe(rate_rps: float) -> float:
        nonlocal count
        count += 1
        show.begin(f"capacity of static-large: {rate_rps:.1f} requests/s?")
        availability = await replays.availability(rate_rps, count)
        show.done(f"static-large at {rate_rps:.1f} requests/s: availability {availability:.3f}")
        return availability

    prompt, output = _mean_shape()
    first = profile_rate_rps(profile, prompt, output)
    probes = await find_capacity(probe, first * FIRST_SHARE, plan.probe_count)
    if not bounds(probes)[0]:
        tried = ", ".join(f"{each.rate_rps:.1f}" for each in probes)
        raise CommandError(
            f"static-large held none of the rates tried ({tried} requests/s); is this machine"
            " busy with something else?"
        )
    return probes


def _mean_shape() -> tuple[float, float]:
    """Mean prompt and output tokens of the mix, the output's end token included."""
    examples = [
        each
        for name in reference_tasks.task_names()
        for each in reference_tasks.eval_set(name, 100)
    ]
    prompt = float(np.mean([len(each.prompt) for each in examples]))
    return prompt, float(np.mean([len(each.answer) + 1 for each in examples]))
