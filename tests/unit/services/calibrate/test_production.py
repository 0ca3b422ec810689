"""A profile from requests that were served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from router.fleet import EndpointSpec
from router.profile import LatencyProfile, format_profile, parse_profile
from router.profile_error import MOST_ERROR
from services.calibrate.production import METHOD, Refit, devices_of, refit
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import MemoryExperienceStream, StreamEntry
from services.local.errors import CommandError
from tests.fakes.clock import FakeClock
from tests.unit.services.calibrate.served_records import TIERS, written
from tests.unit.trainer.profiling.served_device import COSTS, LARGE, SMALL, served
from trainer.profiling.served_fit import Served

BELIEVED = LatencyProfile(
    "gpu",
    "published",
    {
        "small": replace(SMALL.scaled(1.5), iteration_cv=0.1),
        "large": replace(LARGE.scaled(1.5), max_kv_tokens=9_000),
    },
)


async def refitted(requests: Sequence[Served], *, keeps_others: bool = False) -> Refit:
    """What is found of requests that routers wrote down just now."""
    clock = FakeClock()
    stream = MemoryExperienceStream(clock)
    await stream.append([each.SerializeToString() for each in written(requests)])
    now_s = clock.wall_ns() / 1e9
    return await refit(
        stream, BELIEVED, {"on-d": "d"}, TIERS,
        start_s=now_s - 60.0, end_s=now_s + 60.0, keeps_others=keeps_others,
    )  # fmt: skip


async def test_a_profile_that_was_off_is_refitted() -> None:
    """The costs come back; name, limits and spread stay; the file says when and how."""
    found = await refitted(served(COSTS, 8.0, 2_000))
    assert found.refusals(MOST_ERROR) == []
    for tier, truth in COSTS.items():
        costs = found.profile.tiers[tier]
        assert costs.token_s == pytest.approx(truth.token_s, rel=0.1)
        assert min(abs(each) for each in found.misfits_before[tier].values()) > 0.2
    assert found.profile.tiers["small"].iteration_cv == 0.1
    assert found.profile.tiers["large"].max_kv_tokens == 9_000
    read = parse_profile(format_profile(found.profile), "p", TIERS)
    assert (read.name, read.source, read.method) == ("gpu", "measured", METHOD)
    assert read.measured_s is not None
    shown = found.to_json()
    assert shown["tiers"]["large"]["refitted"]
    assert shown["whole_answers"] == 2_000


async def test_a_fit_that_is_off_is_refused_by_tier_and_range() -> None:
    """Long prompts that wait for something no profile has."""
    requests = [
        replace(each, first_s=each.first_s + held_s, end_s=each.end_s + held_s)
        for each in served(COSTS, 2.0, 1_500)
        for held_s in [0.3 if each.tier == "large" and each.prompt_tokens > 450 else 0.0]
    ]
    found = await refitted(requests)
    refusals = found.refusals(MOST_ERROR)
    assert refusals
    assert all(each.startswith("large: ") for each in refusals)
    assert any("idle device, prompts of" in each for each in refusals)


async def test_too_little_is_said_with_what_is_missing() -> None:
    """Tier by tier; what was served of one may be taken alone if the other keeps its costs."""
    with pytest.raises(CommandError) as caught:
        await refitted(served(COSTS, 8.0, 60))
    said = str(caught.value)
    assert "60 requests, 60 answers" in said
    assert "large: " in said
    assert "are needed: " in said
    assert "--keep-others" not in said
    requests = served({"small": SMALL}, 8.0, 2_000)
    with pytest.raises(CommandError, match="or keep the costs of large: --keep-others"):
        await refitted(requests)
    found = await refitted(requests, keeps_others=True)
    assert found.profile.tiers["large"] == BELIEVED.tiers["large"]
    assert found.profile.tiers["small"].token_s == pytest.approx(SMALL.token_s, rel=0.1)
    assert found.remarks == ("large: keeps its costs, too little was served",)


async def test_what_is_kept_bounds_what_is_refitted() -> None:
    """A profile whose steps fall from one tier to the next is none: no service would take it."""
    quick = LARGE.scaled(0.7 * BELIEVED.tiers["small"].step_s / LARGE.step_s)
    found = await refitted(served({"large": quick}, 8.0, 2_000), keeps_others=True)
    assert found.profile.tiers["small"] == BELIEVED.tiers["small"]
    assert parse_profile(format_profile(found.profile), "p", TIERS).tiers == found.profile.tiers
    slow = SMALL.scaled(1.5 * BELIEVED.tiers["large"].step_s / SMALL.step_s)
    found = await refitted(served({"small": slow}, 2.0, 2_000), keeps_others=True)
    assert parse_profile(format_profile(found.profile), "p", TIERS).tiers == found.profile.tiers
    assert any(each.startswith("small: ") for each in found.refusals(MOST_ERROR))


async def test_answers_that_do_not_stream_are_the_reason_that_is_given() -> None:
    """Nobody knows when their tokens were made."""
    requests = [replace(each, first_s=each.end_s) for each in served(COSTS, 8.0, 500)]
    with pytest.raises(CommandError, match=r"router_inference\.stream_tiers = true"):
        await refitted(requests)


async def test_requests_without_a_record_are_said() -> None:
    """Their numbers are missing between the others'."""
    clock = FakeClock()
    stream = MemoryExperienceStream(clock)
    kept = [
        each
        for each in written(served(COSTS, 8.0, 2_000))
        if (each.decision.sequence or each.outcome.sequence) % 50
    ]
    await stream.append([each.SerializeToString() for each in kept])
    now_s = clock.wall_ns() / 1e9
    found = await refit(
        stream, BELIEVED, {"on-d": "d"}, TIERS, start_s=now_s - 60.0, end_s=now_s + 60.0
    )
    (remark,) = found.remarks
    assert "of 39 of 1999 requests there is no record" in remark


async def test_a_stream_that_does_not_answer_is_one_line() -> None:
    """Redis may be away."""

    class Away(MemoryExperienceStream):
        async def behind(self, entry_id: str, count: int) -> list[StreamEntry]:
            raise StateUnavailableError("Redis is away")

    with pytest.raises(CommandError, match="the experience stream does not answer: Redis is away"):
        await refit(Away(FakeClock()), BELIEVED, {}, TIERS, start_s=0.0, end_s=1.0)


def test_only_devices_that_the_profile_describes_are_taken() -> None:
    """Not those with a profile of their own, nor those that say they are slower."""
    specs = [
        EndpointSpec("a", "127.0.0.1:1", "gpu0", {"small": "s"}),
        EndpointSpec("b", "127.0.0.1:2", "", {"small": "s"}),
        EndpointSpec("c", "127.0.0.1:3", "gpu1", {"small": "s"}, profile="other"),
        EndpointSpec("d", "127.0.0.1:4", "gpu2", {"small": "s"}, speed=0.5),
        EndpointSpec("e", "127.0.0.1:5", "gpu3", {"small": "s"}),
    ]
    assert devices_of(specs, {"e": "its own"}) == {"a": "gpu0", "b": "b"}
