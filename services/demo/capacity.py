"""The highest rate static-large holds: a short ramp, then halving of the gap."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from router.profile import TierProfile
from services.demo.plan import HELD

FIRST_SHARE = 0.7
"""First probe, as a share of what the profile says a full batch carries."""
UP, DOWN = 1.3, 0.75
CLOSE_ENOUGH = 1.1
"""The search ends when the lowest rate that failed is this close above the highest that held."""


@dataclasses.dataclass(frozen=True, slots=True)
class CapacityProbe:
    """One run at a constant rate.

    Attributes:
        rate_rps: Mean arrivals per second.
        availability: Share of offered requests answered on time.
    """

    rate_rps: float
    availability: float

    @property
    def held(self) -> bool:
        """Whether the load was held."""
        return self.availability >= HELD


def profile_rate_rps(profile: TierProfile, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second of a tier alone on its device with a full batch, by its profile."""
    per_request_s = (
        output_tokens * (profile.step_s / profile.max_batch + profile.per_sequence_s)
        + prompt_tokens * profile.per_prompt_token_s
    )
    return 1.0 / per_request_s


async def find_capacity(
    probe: Callable[[float], Awaitable[float]], first_rps: float, probe_count: int
) -> list[CapacityProbe]:
    """Searches for the highest rate held.

    Args:
        probe: Runs a rate and returns its availability.
        first_rps: Where to start.
        probe_count: Most probes.

    Returns:
        The probes in the order they were made; see ``capacity_rps``.
    """
    probes: list[CapacityProbe] = []
    rate = first_rps
    for _ in range(probe_count):
        probes.append(CapacityProbe(rate, await probe(rate)))
        held, failed = bounds(probes)
        if held and failed:
            if failed <= held * CLOSE_ENOUGH:
                break
            rate = (held * failed) ** 0.5
        else:
            rate = rate * UP if held else rate * DOWN
    return probes


def bounds(probes: list[CapacityProbe]) -> tuple[float, float]:
    """Highest rate that held below every failure, and lowest that failed; 0 for none of the kind.

    A rate that held above one that failed is luck of the draw and does not count.
    """
    failed = min((each.rate_rps for each in probes if not each.held), default=0.0)
    held = max(
        (each.rate_rps for each in probes if each.held and (not failed or each.rate_rps < failed)),
        default=0.0,
    )
    return held, failed
