"""Refits a latency profile from the timings of requests that were served, stopping nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from router.fleet import EndpointSpec
from router.profile import LatencyProfile, TierProfile
from services.calibrate.answers import worst
from services.calibrate.result import off_texts
from services.calibrate.served import History, history, read_entries
from services.common.state.errors import StateUnavailableError
from services.common.state.experience_stream import ExperienceStream
from services.local.errors import CommandError
from trainer.profiling.latency_fit import Fit, FitError, ordered
from trainer.profiling.served_fit import (
    Lack,
    fit_served,
    lacks,
    misfits_of,
    stretches,
)

METHOD = "tiercel calibrate --from-production"
MOST_LOST = 0.005
"""Share of decisions without a record from which on it is said."""


@dataclasses.dataclass(frozen=True)
class Refit:
    """A profile refitted from served requests, beside the one in use.

    Attributes:
        profile: The new profile.
        before: The profile in use.
        fits: By tier how well its new costs explain its requests; tiers that are kept have none.
        misfits: How far the new profile is off, predicted / measured - 1, by tier and range.
        misfits_before: The same of the profile in use, on the same requests.
        history: What it was fitted to.
        remarks: What had to be left out or assumed.
    """

    profile: LatencyProfile
    before: LatencyProfile
    fits: Mapping[str, Fit]
    misfits: Mapping[str, Mapping[str, float]]
    misfits_before: Mapping[str, Mapping[str, float]]
    history: History
    remarks: tuple[str, ...]

    def refusals(self, most_error: float) -> list[str]:
        """Why the profile is none: each tier that is off by more, and where; empty if none is."""
        return off_texts({tier: self.misfits[tier] for tier in self.fits}, most_error)

    def to_json(self) -> dict[str, Any]:
        """The profile with its errors, for machines."""
        found = self.history
        return {
            "profile": self.profile.name,
            "measured_s": self.profile.measured_s,
            "requests": len(found.requests),
            "whole_answers": found.whole_count,
            "span_s": round(found.span_s, 1),
            "remarks": list(self.remarks),
            "tiers": {
                tier: {
                    "costs": dataclasses.asdict(costs),
                    "costs_before": dataclasses.asdict(self.before.tiers[tier]),
                    "refitted": tier in self.fits,
                    "sample_count": self.fits[tier].sample_count if tier in self.fits else 0,
                    "misfits": self.misfits.get(tier, {}),
                    "misfits_before": self.misfits_before.get(tier, {}),
                }
                for tier, costs in self.profile.tiers.items()
            },
        }


def devices_of(specs: Sequence[EndpointSpec], own_profiles: Mapping[str, str]) -> dict[str, str]:
    """Returns the device of each endpoint that the mesh's profile describes.

    Args:
        specs: Endpoints.
        own_profiles: Name of the profile of endpoints that have one of their own.
    """
    return {
        spec.name: spec.device or spec.name
        for spec in specs
        if spec.name not in own_profiles and not spec.profile and spec.speed == 1.0
    }


async def refit(
    stream: ExperienceStream,
    profile: LatencyProfile,
    devices: Mapping[str, str],
    tiers: Sequence[str],
    *,
    start_s: float,
    end_s: float,
    name: str = "",
    keeps_others: bool = False,
) -> Refit:
    """Refits a profile from what routers wrote of served requests.

    Args:
        stream: The experience stream.
        profile: The profile in use. Tiers keep its limits of batch, prompts and room, and its
            spread of iteration times, which records do not tell.
        devices: Device of each endpoint that it describes.
        tiers: The mesh's tiers, lowest quality first.
        start_s: From when on, seconds since 1970.
        end_s: Until when; the profile is of this moment.
        name: Of the profile; empty keeps the name, by which endpoints know it.
        keeps_others: Keeps the costs of tiers of which too little is known, instead of an error.

    Raises:
        CommandError: The stream does not answer, or holds too little: how much is missing is said.
    """
    try:
        entries = await read_entries(stream, start_s, end_s)
    except StateUnavailableError as error:
        raise CommandError(f"the experience stream does not answer: {error}") from None
    told = history(entries, devices, profile)
    known = [tier for tier in tiers if tier in profile.tiers]
    found = stretches(told.requests, known)
    missing = lacks(found, profile, known)
    lacking = [tier for tier in known if any(each.tier == tier for each in missing)]
    if missing and (not keeps_others or len(lacking) == len(known)):
        raise CommandError(_too_little(told, missing, lacking, known, (end_s - start_s) / 60.0))
    kept = {tier: profile.tiers[tier] for tier in profile.tiers if tier in lacking}
    try:
        fits = fit_served(found, known, kept, profile)
    except FitError as error:
        raise CommandError(f"no profile: {error}") from None
    fits = ordered(fits, known, kept)
    costs: dict[str, TierProfile] = {
        tier: fits[tier].profile if tier in fits else before
        for tier, before in profile.tiers.items()
    }
    made = LatencyProfile(
        name or profile.name, "measured", costs, _about(told, fits), float(int(end_s)), METHOD
    )
    return Refit(
        profile=made,
        before=profile,
        fits=fits,
        misfits=misfits_of(found, costs, known),
        misfits_before=misfits_of(found, profile.tiers, known),
        history=told,
        remarks=tuple(_remarks(told, lacking)),
    )


def _too_little(
    told: History,
    missing: Sequence[Lack],
    lacking: Sequence[str],
    known: Sequence[str],
    over_min: float,
) -> str:
    lines = [
        (
            f"too little was served in the last {over_min:.0f} minutes "
            f"({len(told.requests)} requests, {told.whole_count} answers whose course is known):"
        ),
        *map(str, missing),
    ]
    if told.in_one_piece_count > told.whole_count:
        lines.append(
            f"{told.in_one_piece_count} answers came in one piece: "
            "set router_inference.stream_tiers = true"
        )
    elif told.unseen_count > told.whole_count:
        lines.append(
            f"{told.unseen_count} requests were rescued, failed or sent by others than routers, "
            "and nobody knows when they ran: what ran beside them is left out"
        )
    lines.append("wait for more traffic, take a longer --since, or measure: tiercel calibrate")
    if len(lacking) < len(known):
        lines.append(f"or keep the costs of {', '.join(lacking)}: --keep-others")
    return "\n".join(lines)


def _remarks(told: History, lacking: Sequence[str]) -> list[str]:
    found = [f"{tier}: keeps its costs, too little was served" for tier in lacking]
    decided = told.whole_count + told.unseen_count + told.lost_count
    if told.lost_count > MOST_LOST * decided:
        found.append(
            f"of {told.lost_count} of {decided} requests there is no record: "
            "what ran beside others is known less well"
        )
    return found


def _about(told: History, fits: Mapping[str, Fit]) -> str:
    errors = ", ".join(f"{tier} {fit.median_error:.3f}" for tier, fit in fits.items())
    return (
        f"{told.whole_count} answers served over {told.span_s / 60.0:.0f} minutes; "
        f"median relative error of the fit: {errors}"
    )


def farthest(misfits: Mapping[str, float]) -> str:
    """Returns in words where a tier is farthest off."""
    if not misfits:
        return "-"
    kind, off = worst(misfits)
    return f"{off:+.2f} {kind}"
