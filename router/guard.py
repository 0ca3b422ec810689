"""The guard: a named fallback policy decides where the policy proper must not or cannot."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from router.decision import NOT_FINITE, NOTHING_ALLOWED, REFUSED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.policy import Policy


class FallbackReason(enum.Enum):
    """Why the fallback decided; the values are labels of telemetry."""

    NO_SNAPSHOT = "no_snapshot"
    NOT_FINITE = "not_finite"
    POLICY_ERROR = "policy_error"
    BAD_ACTION = "bad_action"


FAULTS = (
    FallbackReason.NOT_FINITE.value,
    FallbackReason.POLICY_ERROR.value,
    FallbackReason.BAD_ACTION.value,
)
"""Reasons that a policy itself gives."""


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

    The fallback is used when there is no policy yet, and when the policy raises or answers with a
    row that is not allowed or with scores that are not finite on the allowed rows. Nothing here
    raises for what the policy did.

    Not thread-safe: one event loop owns it.
    """

    def __init__(self, *, policy: Policy | None, fallback: Policy) -> None:
        """Guards `policy`.

        Args:
            policy: the policy proper; None while it has no snapshot.
            fallback: a policy that needs none.
        """
        self._fallback = fallback
        self._policy = policy
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

    def replace(self, policy: Policy | None, fallback: Policy | None = None) -> None:
        """Swaps the policy proper, and a fallback if given, between two decisions.

        Counters go on.
        """
        self._policy = policy
        self._fallback = fallback or self._fallback

    def decide(self, desk: Ask) -> Verdict:
        """Returns the policy's decision, or the fallback's with `fallback_reason` set.

        Args:
            desk: puts the request to a policy.
        """
        policy = self._policy
        if policy is None:
            return self._fall_back(FallbackReason.NO_SNAPSHOT, desk)
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

    def _fall_back(self, reason: FallbackReason, desk: Ask) -> Verdict:
        action = desk.ask(self._fallback)
        if action == NOT_FINITE:
            action = desk.best_finite()
        if action not in (NOTHING_ALLOWED, REFUSED):
            self._counts[reason.value] += 1
        return Verdict(action, self._fallback, reason.value)
