"""Who runs on which processor."""

from __future__ import annotations

import pytest

from services.local.cores import plan_cores


@pytest.mark.parametrize(
    ("cores", "raised", "service", "device", "nice"),
    [
        ((0, 1), True, (0,), (1,), 0),
        ((2, 3, 5), False, (2, 3), (5,), 0),
        ((4,), True, (4,), (4,), 0),
        ((4,), False, (4,), (4,), 5),
    ],
)
def test_the_last_core_is_the_device(
    cores: tuple[int, ...],
    raised: bool,
    service: tuple[int, ...],
    device: tuple[int, ...],
    nice: int,
) -> None:
    """With one core all share it, and without a raised priority the tiers yield."""
    layout = plan_cores(cores, can_raise_priority=raised)
    assert (layout.service_cores, layout.device_cores, layout.tier_nice) == (service, device, nice)
