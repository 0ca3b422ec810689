"""What a calibration found: a profile, with what speaks for and against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from router.profile import LatencyProfile, format_profile
from trainer.profiling.latency_fit import Fit


@dataclasses.dataclass(frozen=True, slots=True)
class PairCheck:
    """Two tiers at work together, measured and as the profile predicts.

    Attributes:
        tiers: The two.
        measured_s: Mean time to an answer of each.
        predicted_s: The same by turns: an iteration of one, then one of the other.
    """

    tiers: tuple[str, str]
    measured_s: tuple[float, float]
    predicted_s: tuple[float, float]

    @property
    def error(self) -> float:
        """Largest of |predicted - measured| / measured over the two."""
        pairs = zip(self.predicted_s, self.measured_s, strict=True)
        return max(abs(predicted - measured) / measured for predicted, measured in pairs)


def off_texts(misfits: Mapping[str, Mapping[str, float]], most_error: float) -> list[str]:
    """Returns in words each tier that is off by more than a limit, and where."""
    return [
        f"{tier}: {kind}: predicted {1.0 + off:.2f} times what was measured, "
        f"farther off than {most_error:g}"
        for tier, found in misfits.items()
        for kind, off in found.items()
        if abs(off) > most_error
    ]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A measured profile with what speaks for and against it.

    Attributes:
        profile: The profile.
        fits: Per tier how well it explains its own samples.
        pairs: Tiers side by side, not used for the fit.
        unloaded_p50_s: Median time to an answer of a tier alone, by tier.
        unloaded_p95_s: 95th percentile of the same.
        misfits: How far the profile is off, predicted / measured - 1, by tier and what was asked.
        bytes_per_token: Mean bytes of a prompt over its mean tokens, by tier.
        remarks: What had to be assumed.
        took_s: How long the measurement took.
    """

    profile: LatencyProfile
    fits: Mapping[str, Fit]
    pairs: tuple[PairCheck, ...]
    unloaded_p50_s: Mapping[str, float]
    unloaded_p95_s: Mapping[str, float]
    misfits: Mapping[str, Mapping[str, float]]
    bytes_per_token: Mapping[str, float]
    remarks: tuple[str, ...]
    took_s: float

    def refusals(self, most_error: float) -> list[str]:
        """Why the profile is none: each tier that is off by more, and where; empty if none is."""
        return off_texts(self.misfits, most_error)

    def to_toml(self) -> str:
        """The text of a profile file."""
        return format_profile(self.profile)

    def to_json(self) -> dict[str, Any]:
        """The profile with its errors, for machines."""
        return {
            "profile": self.profile.name,
            "took_s": round(self.took_s, 2),
            "remarks": list(self.remarks),
            "tiers": {
                tier: {
                    "step_s": fit.profile.step_s,
                    "per_sequence_s": fit.profile.per_sequence_s,
                    "per_prompt_token_s": fit.profile.per_prompt_token_s,
                    "overhead_s": fit.profile.overhead_s,
                    "max_batch": fit.profile.max_batch,
                    "iteration_cv": fit.profile.iteration_cv,
                    "unloaded_p50_s": self.unloaded_p50_s[tier],
                    "unloaded_p95_s": self.unloaded_p95_s[tier],
                    "median_error": fit.median_error,
                    "mean_error": fit.mean_error,
                    "misfits": self.misfits[tier],
                    "bytes_per_token": self.bytes_per_token[tier],
                    "sample_count": fit.sample_count,
                }
                for tier, fit in self.fits.items()
            },
            "pairs": [
                {
                    "tiers": list(pair.tiers),
                    "measured_s": list(pair.measured_s),
                    "predicted_s": list(pair.predicted_s),
                    "error": pair.error,
                }
                for pair in self.pairs
            ],
        }
