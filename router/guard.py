"""The guard: a named fallback policy decides where the policy proper must not or cannot."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.decision import NOT_FINITE, NOTHING_ALLOWED, REFUSED
from router.features import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.policy import Policy


class FallbackReason(enum.Enum):
    """Why the fallback decided; the values are labels of telemetry."""

    NO_SNAPSHOT = "no_snapshot"
    SCHEMA_MISMATCH = "schema_mismatch"
    NOT_FINITE = "not_finite"
    STALE_STATE = "stale_state"
    POLICY_ERROR = "policy_error"
    BAD_ACTION = "bad_action"


class Ask(Protocol):
    """Puts the request at hand to one policy after another (`router.desk`)."""

    def ask(self, policy: Policy) -> int:
        """Returns the candidate of a policy, or a code of `router.decision`."""

    def is_open(self, row: int) -> bool:
        """Returns whether the last policy asked could have taken a row."""

    def best_finite(self) -> int:
        """Returns the best row by the finite scores of the last policy asked, -1 if none is."""


class Verdict(NamedTuple):
    """What a guard made of a request.

    Attributes:
        action: row of the candidate, or why there is none (`NOTHING_ALLOWED`, `REFUSED`).
        policy: the policy that decided.
        fallback_reason: why the fallback decided instead of the policy proper; empty if it did not.
    """

    action: int
    policy: Policy
    fallback_reason: str = ""


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

    def replace(
        self, policy: Policy | None, feature_schema: str = "", fallback: Policy | None = None
    ) -> None:
        """Swaps the policy proper, and a fallback if given, between two decisions.

        Counters go on.
        """
        self._policy = policy
        self._schema_ok = feature_schema in ("", SCHEMA)
        self._fallback = fallback or self._fallback

    def decide(self, desk: Ask, state_age_s: float) -> Verdict:
        """Returns the policy's decision, or the fallback's with `fallback_reason` set.

        Args:
            desk: puts the request to a policy.
            state_age_s: age of the system state, seconds.
        """
        policy = self._policy
        reason = self._standing_reason(state_age_s)
        if reason is not None or policy is None:
            return self._fall_back(reason or self._absence, desk)
        try:
            action = desk.ask(policy)
        except Exception as error:
            # A bug in a policy may cost quality, never an answer; who asked may log it.
            self._last_error = error
            return self._fall_back(FallbackReason.POLICY_ERROR, desk)
        if action in (NOTHING_ALLOWED, REFUSED):
            return Verdict(action, policy)
        if action == NOT_FINITE:
            return self._fall_back(FallbackReason.NOT_FINITE, desk)
        if not desk.is_open(action):
            return self._fall_back(FallbackReason.BAD_ACTION, desk)
        return Verdict(action, policy)

    def _standing_reason(self, state_age_s: float) -> FallbackReason | None:
        """Returns why the policy need not even be asked, or None."""
        if self._policy is None:
            return self._absence
        if not self._schema_ok:
            return FallbackReason.SCHEMA_MISMATCH
        if not state_age_s <= self._max_state_age_s:
            return FallbackReason.STALE_STATE
        return None

    def _fall_back(self, reason: FallbackReason, desk: Ask) -> Verdict:
        action = desk.ask(self._fallback)
        if action == NOT_FINITE:
            action = desk.best_finite()
        if action not in (NOTHING_ALLOWED, REFUSED):
            self._counts[reason.value] += 1
        return Verdict(action, self._fallback, reason.value)
