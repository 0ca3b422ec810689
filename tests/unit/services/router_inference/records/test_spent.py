"""Where the time of an answered request went."""

from __future__ import annotations

import pytest

from router.profile import LatencyProfile, TierProfile
from services.router_inference.job import Job
from services.router_inference.records.spent import Spent, time_spent
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario

# A prompt of 100 tokens takes 0.2 s and each token 0.01 s; 0.03 s go beside the device.
COSTS = TierProfile(0.008, 0.002, 0.002, overhead_s=0.03)
PROFILE = LatencyProfile("test", "assumed", dict.fromkeys(("small", "medium", "large"), COSTS))


async def answered(rig: Rig, *, dispatch_s: float, first_s: float, end_s: float) -> Job:
    """Returns a request that was answered with two tokens, at stamps since its arrival."""
    job = rig.job(prompt="abcd" * 100, deadline_s=5.0)
    await rig.answer(job)
    for name, moment_s in (("dispatch", dispatch_s), ("first_token", first_s), ("end", end_s)):
        setattr(job, f"{name}_s", job.arrival_s + moment_s)
    return job


@pytest.mark.parametrize(
    ("first_s", "end_s", "spent"),
    [
        (1.0, 1.5, Spent(0.76, 0.21, 0.5, 0.03)),
        # As fast as the profile says, and twice as fast.
        (0.34, 0.5, Spent(0.1, 0.21, 0.16, 0.03)),
        (0.22, 0.5, Spent(0.1, 0.105, 0.28, 0.015)),
        # In one piece: the second token is a part of what came before its end.
        (1.0, 1.0, Spent(0.75, 0.21, 0.01, 0.03)),
    ],
)
def test_the_parts_are_all_of_an_answers_time(first_s: float, end_s: float, spent: Spent) -> None:
    """What the profile does not explain until the first token was waited for."""

    @scenario
    async def play() -> None:
        job = await answered(
            make_rig(profile=PROFILE), dispatch_s=0.1, first_s=first_s, end_s=end_s
        )
        found = time_spent(job)
        assert found == pytest.approx(spent)
        assert sum(found) == pytest.approx(end_s)

    play()


@scenario
async def test_a_device_that_is_slow_takes_longer_for_all_of_it() -> None:
    """By the factor that the decision reckoned with."""
    job = await answered(make_rig(profile=PROFILE), dispatch_s=0.0, first_s=1.0, end_s=1.1)
    choice = choice_of(job)
    choice.inputs = choice.inputs._replace(slowness_D=choice.inputs.slowness_D * 2.0)
    assert time_spent(job) == pytest.approx(Spent(0.52, 0.42, 0.1, 0.06))


@scenario
async def test_the_profile_is_that_of_who_answered() -> None:
    """Not of the first choice; of one that joined the mesh since, nothing is known."""
    tiers = {"small": TierProfile(0.001, 0.0, 0.0), "medium": COSTS, "large": COSTS}
    rig = make_rig(profile=LatencyProfile("test", "assumed", tiers))
    job = await answered(rig, dispatch_s=0.0, first_s=1.0, end_s=1.1)
    [small] = [each for each in rig.core.view.fleet.targets if each.tier == "small"]
    job.target = small
    assert time_spent(job).prefill_s == pytest.approx(0.001)
    choice_of(job).candidates = (choice_of(job).target.candidate,)
    assert time_spent(job) == pytest.approx(Spent(1.0, 0.0, 0.1, 0.0))
