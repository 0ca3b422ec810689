"""What all clients of endpoints have in common."""

from __future__ import annotations

import pytest

from services.common.tiers.client import ForbiddenClient
from services.common.tiers.errors import TierUnavailableError


async def test_nothing_is_sent_to_an_address_that_is_not_allowed() -> None:
    """Its client answers like one of an endpoint that is not there."""
    async with ForbiddenClient("evil.example:8001") as client:
        assert client.busy_count == 0
        with pytest.raises(TierUnavailableError, match="ADDRESS_NOT_ALLOWED"):
            async for _ in client.generate("m", "secret", 4, timeout_s=1.0):
                pass
