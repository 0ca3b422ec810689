"""Latency profiles: how long an iteration of each tier takes on one device."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass, replace
from typing import Any

from router.documents import parse_toml
from router.iteration_spread import MOST_CV
from router.messages import shown
from router.types import InvalidFileError, is_finite_number

SOURCES = ("published", "measured", "assumed")
LONGEST_NAME = 200
LONGEST_METHOD = 200
_LAST_S = 253_402_300_799
"""The last second of the year 9999, seconds since 1970."""
MOST_TIERS = 64


@dataclass(frozen=True, slots=True)
class TierProfile:
    """Cost of one iteration: step + per sequence * batch + per prompt token * tokens admitted.

    Attributes:
        step_s: cost independent of the batch, seconds, > 0.
        per_sequence_s: cost per running sequence, seconds, >= 0.
        per_prompt_token_s: cost per prompt token admitted in the iteration, seconds, >= 0.
        max_batch: most sequences in one iteration, >= 1.
        max_prompt_tokens_per_step: most prompt tokens admitted in one iteration, >= 1.
        overhead_s: fixed latency outside the device (RPC, tokenising), seconds, >= 0.
        max_kv_tokens: the tier's room for keys and values on one device, tokens, >= 1; None = it
            never runs out. A sequence holds its prompt and its answer from its admission to its
            end; one that does not fit waits. Predictions do not see this limit.
        prefix_cache_tokens: the tier's room for the keys and values of requests that have ended, on
            one device, tokens, >= 0; 0 = no prefix cache. A request of the same conversation
            computes only what is new of its prompt (`router.seat`).
        iteration_cv: coefficient of variation of iteration times about these costs, which are their
            means, 0 to MOST_CV; 0 = none. Predictions are of means and do not see it.
    """

    step_s: float
    per_sequence_s: float
    per_prompt_token_s: float
    max_batch: int = 64
    max_prompt_tokens_per_step: int = 4096
    overhead_s: float = 0.0
    max_kv_tokens: int | None = None
    prefix_cache_tokens: int = 0
    iteration_cv: float = 0.0

    @property
    def token_s(self) -> float:
        """Time of one output token where nothing else runs, seconds."""
        return self.step_s + self.per_sequence_s

    def unloaded_latency_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """Returns the time of one request alone on the device, seconds."""
        return (
            self.overhead_s + self.per_prompt_token_s * prompt_tokens + output_tokens * self.token_s
        )

    def scaled(self, factor: float) -> TierProfile:
        """Returns the profile with every time multiplied by `factor` (> 0)."""
        return replace(
            self,
            step_s=self.step_s * factor,
            per_sequence_s=self.per_sequence_s * factor,
            per_prompt_token_s=self.per_prompt_token_s * factor,
            overhead_s=self.overhead_s * factor,
        )


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """The tiers' costs on one kind of device; tiers on one device take turns by iteration.

    Attributes:
        name: name of the profile.
        source: where its numbers come from, one of SOURCES.
        tiers: profile per tier name.
        description: card, versions, fit error; free text.
        measured_s: when it was measured, seconds since 1970; None if nobody said.
        method: how it was measured, in a few words; empty if nobody said.
    """

    name: str
    source: str
    tiers: dict[str, TierProfile]
    description: str = ""
    measured_s: float | None = None
    method: str = ""

    def scaled(self, factor: float) -> LatencyProfile:
        """Returns the profile with every time multiplied by `factor` (> 0)."""
        tiers = {name: tier.scaled(factor) for name, tier in self.tiers.items()}
        return replace(self, tiers=tiers)

    def age_s(self, now_s: float) -> float | None:
        """Returns how long ago it was measured, at least 0; None if nobody said.

        Args:
            now_s: the present, seconds since 1970.
        """
        return None if self.measured_s is None else max(0.0, now_s - self.measured_s)


def parse_profile(text: str, origin: str, tier_order: tuple[str, ...] = ()) -> LatencyProfile:
    """Parses a profile file.

    Args:
        text: the file's TOML text.
        origin: its name, for messages.
        tier_order: tiers the profile must have, lowest quality first; their step cost must not
            fall with quality.

    Raises:
        InvalidFileError: with every mistake found.
    """
    raw = parse_toml(text, origin)
    problems: list[str] = []
    name = raw.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        problems.append(f"name: must be a text of 1 to {LONGEST_NAME} characters")
    source = raw.get("source")
    if source not in SOURCES:
        problems.append(f"source: must be one of {', '.join(SOURCES)} (got {shown(source)})")
    measured_s = _parse_moment(raw.get("measured_time"), problems)
    method = raw.get("method", "")
    if not isinstance(method, str) or len(method) > LONGEST_METHOD:
        problems.append(f"method: must be a text of at most {LONGEST_METHOD} characters")
    raw_tiers = raw.get("tiers")
    if not isinstance(raw_tiers, dict) or not 0 < len(raw_tiers) <= MOST_TIERS:
        problem = f"tiers: must have 1 to {MOST_TIERS} tables [tiers.NAME]"
        raise InvalidFileError(origin, [*problems, problem])
    tiers = {
        str(tier): _parse_tier(str(tier), table, problems) for tier, table in raw_tiers.items()
    }
    missing = [tier for tier in tier_order if tier not in tiers]
    problems.extend(f"tiers.{tier}: missing" for tier in missing)
    for lower, higher in itertools.pairwise(tier_order):
        if lower in tiers and higher in tiers and tiers[lower].step_s > tiers[higher].step_s:
            problems.append(f"tiers.{higher}.step_s: smaller than that of the lower tier {lower}")
    if problems:
        raise InvalidFileError(origin, problems)
    description = str(raw.get("description", ""))
    return LatencyProfile(str(name), str(source), tiers, description, measured_s, str(method))


def _parse_moment(value: Any, problems: list[str]) -> float | None:
    """Returns a moment as seconds since 1970, None if there is none; appends what is wrong."""
    if value is None:
        return None
    if not isinstance(value, datetime.datetime) or value.tzinfo is None:
        problems.append(
            "measured_time: must be a date and time with its offset, "
            f"such as 2026-11-29T12:00:00Z (got {shown(value)})"
        )
        return None
    measured_s = float(value.timestamp() // 1)
    if not 0.0 <= measured_s <= _LAST_S:
        problems.append(f"measured_time: must be within 1970 and 9999 UTC (got {shown(value)})")
        return None
    return measured_s


_LONGEST_S = 3_600.0
_MOST_TOKENS = 1_000_000_000
_FIELDS: dict[str, tuple[float, float, bool]] = {
    # field: (lowest value allowed, highest value allowed, required)
    "step_s": (1e-9, _LONGEST_S, True),
    "per_sequence_s": (0.0, _LONGEST_S, True),
    "per_prompt_token_s": (0.0, _LONGEST_S, True),
    "max_batch": (1, 65_536, False),
    "max_prompt_tokens_per_step": (1, _MOST_TOKENS, False),
    "overhead_s": (0.0, _LONGEST_S, False),
    "max_kv_tokens": (1, _MOST_TOKENS, False),
    "prefix_cache_tokens": (0, _MOST_TOKENS, False),
    "iteration_cv": (0.0, MOST_CV, False),
}


def _parse_tier(tier: str, table: Any, problems: list[str]) -> TierProfile:
    """Returns the tier's profile; appends to `problems` what is wrong with it."""
    if not isinstance(table, dict):
        problems.append(f"tiers.{tier}: must be a table")
        return TierProfile(1.0, 0.0, 0.0)
    values: dict[str, Any] = {}
    problems.extend(
        f"tiers.{tier}.{key}: unknown; known: {', '.join(_FIELDS)}"
        for key in table.keys() - _FIELDS.keys()
    )
    for key, (lowest, highest, required) in _FIELDS.items():
        if key not in table:
            if required:
                problems.append(f"tiers.{tier}.{key}: missing")
            continue
        value = table[key]
        if not is_finite_number(value):
            problems.append(f"tiers.{tier}.{key}: must be a finite number (got {shown(value)})")
        elif value < lowest:
            problems.append(f"tiers.{tier}.{key}: must be at least {lowest:g} (got {value:g})")
        elif value > highest:
            problems.append(f"tiers.{tier}.{key}: must be at most {highest:g} (got {value:g})")
        else:
            whole = key.startswith("max_") or key == "prefix_cache_tokens"
            values[key] = int(value) if whole else float(value)
    values.setdefault("step_s", 1.0)
    values.setdefault("per_sequence_s", 0.0)
    values.setdefault("per_prompt_token_s", 0.0)
    return TierProfile(**values)


def format_profile(profile: LatencyProfile) -> str:
    """Returns the TOML text that `parse_profile` reads back."""
    lines = [
        f"name = {_quote(profile.name)}",
        f"source = {_quote(profile.source)}",
        f"description = {_quote(profile.description)}",
    ]
    if profile.measured_s is not None:
        moment = datetime.datetime.fromtimestamp(profile.measured_s, datetime.UTC)
        lines.append(f"measured_time = {moment:%Y-%m-%dT%H:%M:%S}Z")
    if profile.method:
        lines.append(f"method = {_quote(profile.method)}")
    for name, tier in profile.tiers.items():
        lines += ["", f"[tiers.{name}]"]
        values = {key: getattr(tier, key) for key in _FIELDS}
        if not tier.iteration_cv:
            del values["iteration_cv"]  # earlier versions do not know it
        lines += [f"{key} = {value!r}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Returns a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
