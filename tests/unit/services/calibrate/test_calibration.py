"""A calibration from the first question to the profile, on a fake endpoint."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from router.profile_error import MOST_ERROR
from services.calibrate.calibration import calibrate
from services.calibrate.questions import made_questions
from services.calibrate.result import Calibration
from services.calibrate.tiers import LiveTier
from services.local.errors import CommandError
from tests.fakes.triton import FakeTriton, Received, Script

SLOW = {"large": Script(step_s=0.015)}


@contextlib.asynccontextmanager
async def running(endpoint: FakeTriton) -> AsyncIterator[FakeTriton]:
    """The endpoint, stopped afterwards."""
    try:
        yield await endpoint.start()
    finally:
        await endpoint.stop()


async def measured(
    endpoint: FakeTriton, tiers: tuple[str, ...] = ("small", "large"), **options: Any
) -> Calibration:
    """A short calibration of tiers that share a device."""
    live = [LiveTier(name, name, endpoint.address, "e", "gpu0", max_batch=2) for name in tiers]
    asked = made_questions([10, 20, 40], 0)
    return await calibrate(live, asked, name="test", bytes_per_token=4.0, run_s=0.05, **options)


async def test_every_tier_is_fitted_and_every_pair_checked() -> None:
    """The slower tier costs more, and the steps told end at the whole."""
    shares: list[float] = []
    async with running(FakeTriton(scripts=SLOW)) as endpoint:
        found = await measured(endpoint, on_step=lambda text, share: shares.append(share))
    assert list(found.profile.tiers) == ["small", "large"]
    assert found.profile.source == "measured"
    assert "large = large" in found.profile.description
    assert found.unloaded_p50_s["large"] > found.unloaded_p50_s["small"]
    assert [pair.tiers for pair in found.pairs] == [("small", "large")]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("stated", [(), ("large", "small")])
async def test_the_order_of_tiers_is_found(stated: tuple[str, ...]) -> None:
    """Tiers listed in another order keep their own step times, whatever is stated."""
    async with running(FakeTriton(scripts=SLOW)) as endpoint:
        found = await measured(endpoint, ("large", "small"), stated=stated)
    assert list(found.profile.tiers) == ["small", "large"]
    steps = {tier: each.token_s for tier, each in found.profile.tiers.items()}
    assert steps["large"] > 2 * steps["small"]


async def test_tokens_nobody_counts_are_said_to_be_assumed() -> None:
    """A prompt's bytes stand for its tokens then, and the result says so for each tier."""
    async with running(FakeTriton()) as endpoint:
        found = await measured(endpoint)
    assert found.bytes_per_token == {"small": pytest.approx(4.0), "large": pytest.approx(4.0)}
    said = [each for each in found.remarks if "does not count prompt tokens" in each]
    assert {each.partition(":")[0] for each in said} == {"small", "large"}


async def test_answers_too_short_to_tell_a_spread_have_none_and_it_is_said() -> None:
    """Each of three tokens has two gaps; a profile made of them is one without a spread."""
    async with running(FakeTriton()) as endpoint:
        found = await measured(endpoint, ("small",))
    assert found.profile.tiers["small"].iteration_cv == 0.0
    assert any("small: too few answers stream token by token" in each for each in found.remarks)


async def test_answers_without_a_token_are_left_out_and_it_is_said() -> None:
    """A tier that often says nothing is not measured by what it says alone in silence."""
    endpoint = FakeTriton()
    numbers = itertools.count()

    def on_request(_: Received) -> None:
        endpoint.default.tokens = () if next(numbers) % 5 == 4 else ("a", "b", "c")

    endpoint.on_request = on_request
    async with running(endpoint):
        found = await measured(endpoint, ("small",))
    (said,) = [each for each in found.remarks if "held no token" in each]
    empty, asked = map(int, re.findall(r"\d+", said))
    assert 0 < empty < asked / 3
    async with running(FakeTriton()) as whole:
        found = await measured(whole, ("small",))
    assert not [each for each in found.remarks if "held no token" in each]


async def test_costs_that_fit_nothing_are_refused_by_tier_and_range() -> None:
    """Prompts in the middle that take ten times as long as others lie on no line."""
    endpoint = FakeTriton()

    def on_request(received: Received) -> None:
        middle = received.prompt.count(" ") == 19
        endpoint.default.first_s = 0.1 if middle else 0.01

    endpoint.on_request = on_request
    async with running(endpoint):
        found = await measured(endpoint, ("small",))
    refusals = found.refusals(MOST_ERROR)
    assert refusals
    assert all(each.startswith("small: ") for each in refusals)
    assert any("prompts of" in each for each in refusals)


async def test_endpoint_that_fails_ends_the_calibration() -> None:
    """No profile comes out of answers that were not given."""
    broken = Script(error=grpc.StatusCode.INTERNAL)
    async with running(FakeTriton(default=broken)) as endpoint:
        with pytest.raises(CommandError, match="small at"):
            await measured(endpoint)
