"""The latency profiles that endpoints in use have, their age, and how far answers show them off."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.profile import LatencyProfile
from router.profile_error import Compared, RangeError, errors_of


@dataclass(frozen=True, slots=True)
class ProfileStatus:
    """A profile in use.

    Attributes:
        profile: the profile.
        errors: how far it is off, by tier and range; empty until enough is known.
    """

    profile: LatencyProfile
    errors: tuple[RangeError, ...]


class ProfileErrors:
    """What one process has learned of its profiles from its own ended requests."""

    def __init__(self) -> None:
        """Starts without a profile."""
        self._profiles: dict[str, LatencyProfile] = {}
        self._compared: dict[tuple[str, str], dict[int, Compared]] = {}

    def follow(self, profiles: Iterable[LatencyProfile]) -> None:
        """Keeps to these profiles; of one that has changed or is gone nothing is kept."""
        found = {profile.name: profile for profile in profiles}
        self._compared = {
            (name, tier): ranges
            for (name, tier), ranges in self._compared.items()
            if found.get(name) == self._profiles.get(name)
        }
        self._profiles = found

    def observe(
        self,
        profile: str,
        tier: str,
        number: int,
        now_s: float,
        observed_s: float,
        predicted_s: float,
        *,
        finished: bool,
    ) -> None:
        """Learns from one request where it was first sent.

        Args:
            profile: name of the profile that made the prediction; another teaches nothing.
            tier: name of the tier.
            number: of its range (`router.profile_error.range_of`).
            now_s: when it ended, monotonic seconds.
            observed_s: time from dispatch to its end, seconds.
            predicted_s: the same as the profile predicts it, seconds.
            finished: False if it was cut off.
        """
        if profile not in self._profiles:
            return
        ranges = self._compared.setdefault((profile, tier), {})
        compared = ranges.get(number)
        if compared is None:
            compared = ranges[number] = Compared()
        compared.add(now_s, observed_s, predicted_s, finished=finished)

    def read(self, now_s: float) -> list[ProfileStatus]:
        """Returns the profiles in use, by name, as of now (monotonic seconds)."""
        return [
            ProfileStatus(
                profile,
                tuple(
                    error
                    for tier in profile.tiers
                    for error in errors_of(tier, self._compared.get((name, tier), {}), now_s)
                ),
            )
            for name, profile in sorted(self._profiles.items())
        ]
