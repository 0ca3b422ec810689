"""A calibration from the first question to the profile, on a fake endpoint."""

from __future__ import annotations

import grpc
import pytest

from services.calibrate.calibration import calibrate
from services.calibrate.tiers import LiveTier
from services.local.errors import CommandError
from tests.fakes.triton import FakeTriton, Script


def tiers_at(address: str) -> list[LiveTier]:
    """Two tiers that share a device."""
    return [LiveTier(name, name, address, "e", "gpu0") for name in ("small", "large")]


async def test_every_tier_is_fitted_and_every_pair_checked() -> None:
    """The slower tier costs more, and the steps told end at the whole."""
    endpoint = await FakeTriton(scripts={"large": Script(step_s=0.004)}).start()
    shares: list[float] = []
    try:
        measured = await calibrate(
            tiers_at(endpoint.address),
            name="test",
            run_s=0.1,
            on_step=lambda text, share: shares.append(share),
        )
    finally:
        await endpoint.stop()
    profile = measured.profile
    assert list(profile.tiers) == ["small", "large"]
    assert profile.source == "measured"
    assert measured.unloaded_p50_s["large"] > measured.unloaded_p50_s["small"]
    assert [pair.tiers for pair in measured.pairs] == [("small", "large")]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def test_endpoint_that_fails_ends_the_calibration() -> None:
    """No profile comes out of answers that were not given."""
    broken = Script(error=grpc.StatusCode.INTERNAL)
    endpoint = await FakeTriton(default=broken).start()
    try:
        with pytest.raises(CommandError, match="small at"):
            await calibrate(tiers_at(endpoint.address), name="test", run_s=0.1)
    finally:
        await endpoint.stop()
