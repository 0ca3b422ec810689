"""Policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.policies.base import PolicyParameterError
from router.policies.load_aware import (
    DebtQueuePolicy,
    FluidPolicy,
    GreedyPolicy,
    PricePolicy,
    SlackFitPolicy,
)
from router.policies.simple import RandomPolicy, RoundRobinPolicy, StaticPolicy, ThresholdPolicy
from router.types import UnknownPolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.catalog import Catalog
    from router.dqn.snapshot import Snapshot
    from router.policies.base import ScorePolicy
    from router.policy import Policy

STATIC_PREFIX = "static-"

SCORE_POLICIES: dict[str, type[ScorePolicy]] = {
    "random": RandomPolicy,
    "round-robin": RoundRobinPolicy,
    "threshold": ThresholdPolicy,
    "greedy": GreedyPolicy,
    "slackfit": SlackFitPolicy,
    "debt-queue": DebtQueuePolicy,
    "fluid": FluidPolicy,
    "price": PricePolicy,
}

KNOWN_POLICIES: tuple[str, ...] = ("static-<tier>", *SCORE_POLICIES, "dqn")
"""Names `make_policy` takes; `known_policies` spells the static ones out."""


class MissingSnapshotError(ValueError):
    """A learned policy was asked for without a snapshot."""


def known_policies(catalog: Catalog) -> tuple[str, ...]:
    """Returns every policy name that works with a catalog."""
    static = tuple(STATIC_PREFIX + tier for tier in catalog.tiers)
    return (*static, *KNOWN_POLICIES[1:])


def make_policy(
    name: str,
    catalog: Catalog,
    params: Mapping[str, float] | None = None,
    snapshot: Snapshot | None = None,
    *,
    picker: str = "least-work",
) -> Policy:
    """Makes a policy.

    Args:
        name: one of `known_policies(catalog)`.
        catalog: tiers and tasks.
        params: parameters by name; what is left out keeps its default.
        snapshot: weights of a learned policy.
        picker: endpoint picker of a static policy, a name in `router.picker.PICKERS`.

    Raises:
        UnknownPolicyError: the name is not known; the message lists the known ones.
        PolicyParameterError: a parameter is unknown or out of range.
        MissingSnapshotError: `dqn` without a snapshot.
        LookupError: unknown picker.
    """
    if name.startswith(STATIC_PREFIX) and name.removeprefix(STATIC_PREFIX) in catalog.tiers:
        if params:
            raise PolicyParameterError(f"policy {name!r} has no parameters")
        return StaticPolicy(name, catalog.tier_index(name.removeprefix(STATIC_PREFIX)), picker)
    if name in SCORE_POLICIES:
        return SCORE_POLICIES[name](name, params)
    if name == "dqn":
        if snapshot is None:
            raise MissingSnapshotError("policy 'dqn' needs a snapshot; none was given")
        from router.policies.dqn import DqnPolicy

        return DqnPolicy(snapshot)
    raise UnknownPolicyError(name, known_policies(catalog))
