"""The guard: a named fallback policy decides where the policy proper must not or cannot."""

from __future__ import annotations

import dataclasses
import enum
import math
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from router.features import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.policy import Observation, Policy
    from router.types import Decision


class FallbackReason(enum.Enum):
    """Why the fallback decided; the values are labels of telemetry."""

    NO_SNAPSHOT = "no_snapshot"
    SCHEMA_MISMATCH = "schema_mismatch"
    NOT_FINITE = "not_finite"
    STALE_STATE = "stale_state"
    POLICY_ERROR = "policy_error"
    BAD_ACTION = "bad_action"


class Guard:
    """A policy that hands over to a fallback, decision by decision, and counts why.

    The fallback is used when there is no policy (no snapshot, or one whose feature schema is not
    ours), when the system state is older than `max_state_age_s`, and when the policy raises or
    answers with a row that is not allowed or with scores that are not finite on the allowed rows.
    Nothing here raises for what the policy did.

    Not thread-safe: one event loop owns it.
    """

    def __init__(
        self,
        *,
        policy: Policy | None,
        fallback: Policy,
        max_state_age_s: float,
        feature_schema: str = "",
        absence: FallbackReason = FallbackReason.NO_SNAPSHOT,
    ) -> None:
        """Guards `policy`.

        Args:
            policy: the policy proper, or None.
            fallback: a policy that needs no snapshot.
            max_state_age_s: age of the state above which the fallback decides, seconds.
            feature_schema: schema the policy was trained on; empty = it reads no features.
            absence: the reason counted while `policy` is None.
        """
        self._fallback = fallback
        self._max_state_age_s = max_state_age_s
        self._absence = absence
        self._policy = policy
        self._schema_ok = feature_schema in ("", SCHEMA)
        self._counts = {reason.value: 0 for reason in FallbackReason}
        self._last_error: Exception | None = None

    @property
    def name(self) -> str:
        """Name of the policy proper, the fallback's if there is none."""
        return (self._policy or self._fallback).name

    @property
    def version(self) -> str:
        """Version of the policy proper, the fallback's if there is none."""
        return (self._policy or self._fallback).version

    @property
    def fallback(self) -> Policy:
        """The fallback policy."""
        return self._fallback

    @property
    def counts(self) -> Mapping[str, int]:
        """Decisions the fallback made, per reason."""
        return dict(self._counts)

    @property
    def last_error(self) -> Exception | None:
        """The last error the policy raised; None if none did."""
        return self._last_error

    def replace(self, policy: Policy | None, feature_schema: str = "") -> None:
        """Swaps the policy proper between two decisions; counters go on."""
        self._policy = policy
        self._schema_ok = feature_schema in ("", SCHEMA)

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the policy's decision, or the fallback's with `fallback_reason` set."""
        reason = self._standing_reason(observation)
        if reason is not None or self._policy is None:
            return self._fall_back(reason or self._absence, observation, rng)
        try:
            decision = self._policy.decide(observation, rng)
        except Exception as error:
            # A bug in a policy may cost quality, never an answer; who asked may log it.
            self._last_error = error
            return self._fall_back(FallbackReason.POLICY_ERROR, observation, rng)
        allowed_C, score_C = observation.allowed_C, decision.score_C
        if not 0 <= decision.action < len(allowed_C) or not allowed_C[decision.action]:
            return self._fall_back(FallbackReason.BAD_ACTION, observation, rng)
        if not all(map(math.isfinite, compress(score_C, allowed_C))):
            return self._fall_back(FallbackReason.NOT_FINITE, observation, rng)
        return decision

    def _standing_reason(self, observation: Observation) -> FallbackReason | None:
        """Returns why the policy need not even be asked, or None."""
        if self._policy is None:
            return self._absence
        if not self._schema_ok:
            return FallbackReason.SCHEMA_MISMATCH
        if not observation.signals.state_age_s <= self._max_state_age_s:
            return FallbackReason.STALE_STATE
        return None

    def _fall_back(
        self, reason: FallbackReason, observation: Observation, rng: np.random.Generator
    ) -> Decision:
        self._counts[reason.value] += 1
        decision = self._fallback.decide(observation, rng)
        return dataclasses.replace(decision, fallback_reason=reason.value)
