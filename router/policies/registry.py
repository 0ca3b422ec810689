"""Policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.dqn.paper_snapshot import POLICY as DQN_PAPER
from router.dqn.paper_snapshot import PaperSnapshot
from router.policies.base import PolicyParameterError
from router.policies.load_aware import (
    DebtQueuePolicy,
    FluidPolicy,
    GreedyPolicy,
    PricePolicy,
    RouteBalancePolicy,
    SlackFitPolicy,
)
from router.policies.picked import PickedPolicy
from router.policies.simple import (
    GreedyPriorPolicy,
    RandomPolicy,
    RoundRobinPolicy,
    StaticPolicy,
    ThresholdPolicy,
)
from router.types import UnknownPolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.catalog import Catalog
    from router.dqn.snapshot import Snapshot
    from router.policies.base import ScorePolicy
    from router.policy import Policy

STATIC_PREFIX = "static-"
DQN = "dqn"
LEARNED = (DQN, DQN_PAPER)
"""Policies that need a snapshot."""
PICKER_MARK = "+"
"""Between a policy's name and an endpoint picker's."""

SCORE_POLICIES: dict[str, type[ScorePolicy]] = {
    "random": RandomPolicy,
    "round-robin": RoundRobinPolicy,
    "threshold": ThresholdPolicy,
    "greedy-prior": GreedyPriorPolicy,
    "greedy": GreedyPolicy,
    "routebalance": RouteBalancePolicy,
    "slackfit": SlackFitPolicy,
    "debt-queue": DebtQueuePolicy,
    "fluid": FluidPolicy,
    "price": PricePolicy,
}

KNOWN_POLICIES: tuple[str, ...] = ("static-<tier>", *SCORE_POLICIES, *LEARNED)
"""Names `make_policy` takes; `known_policies` spells the static ones out."""


class MissingSnapshotError(ValueError):
    """A learned policy was asked for without a snapshot."""


def known_policies(catalog: Catalog) -> tuple[str, ...]:
    """Returns every policy name that works with a catalog."""
    static = tuple(STATIC_PREFIX + tier for tier in catalog.tiers)
    return (*static, *KNOWN_POLICIES[1:])


def base_name(name: str) -> str:
    """Returns a policy's name without the endpoint picker that may follow it."""
    return name.partition(PICKER_MARK)[0]


def make_policy(
    name: str,
    catalog: Catalog,
    params: Mapping[str, float] | None = None,
    snapshot: Snapshot | PaperSnapshot | None = None,
) -> Policy:
    """Makes a policy.

    Args:
        name: one of `known_policies(catalog)`, or `POLICY+PICKER` with a name in
            `router.picker.PICKERS` to have that picker choose the endpoint inside the tier.
        catalog: tiers and tasks.
        params: parameters by name; what is left out keeps its default.
        snapshot: weights of a learned policy, of its own kind.

    Raises:
        UnknownPolicyError: the name is not known; the message lists the known ones.
        UnknownPickerError: the picker's name is not known; the message lists the known ones.
        PolicyParameterError: a parameter is unknown or out of range.
        MissingSnapshotError: a learned policy without a snapshot of its kind.
        SnapshotError: the snapshot follows another schema.
    """
    if PICKER_MARK in name:
        policy, _, picker = name.partition(PICKER_MARK)
        return PickedPolicy(make_policy(policy, catalog, params, snapshot), picker)
    if name.startswith(STATIC_PREFIX) and name.removeprefix(STATIC_PREFIX) in catalog.tiers:
        if params:
            raise PolicyParameterError(f"policy {name!r} has no parameters")
        return StaticPolicy(name, catalog.tier_index(name.removeprefix(STATIC_PREFIX)))
    if name in SCORE_POLICIES:
        return SCORE_POLICIES[name](name, params)
    if name in LEARNED:
        return _learned(name, params, snapshot)
    raise UnknownPolicyError(name, known_policies(catalog))


def _learned(
    name: str, params: Mapping[str, float] | None, snapshot: Snapshot | PaperSnapshot | None
) -> Policy:
    if snapshot is None or isinstance(snapshot, PaperSnapshot) != (name == DQN_PAPER):
        raise MissingSnapshotError(f"policy {name!r} needs a snapshot of its kind; none was given")
    if isinstance(snapshot, PaperSnapshot):
        from router.policies.paper import PaperPolicy

        return PaperPolicy(snapshot, params)
    from router.policies.dqn import DqnPolicy

    return DqnPolicy(snapshot, params)
