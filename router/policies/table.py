"""The policy table: every policy is a file beside this one and a row here.

To add a policy, write its score kernel (`router.policies.scores` says what a kernel is given) and
its parameters in a file of its own, and add a row. Live services, simulator, tuning, evaluation and
the reference page take it from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.dqn.paper_snapshot import PaperSnapshot
from router.policies import (
    debt_queue,
    dqn,
    fluid,
    greedy,
    greedy_prior,
    paper,
    price,
    random,
    round_robin,
    routebalance,
    scheduled_price,
    slackfit,
    static,
    threshold,
)
from router.policies.base import Entry, Need, ScorePolicy
from router.policies.picked import PickedPolicy
from router.types import UnknownPolicyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from router.catalog import Catalog
    from router.dqn.snapshot import Snapshot
    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch
    from router.policy import Policy

DQN = dqn.NAME

TABLE: tuple[Entry, ...] = (
    Entry("static-<tier>", static.score),
    Entry("random", random.score, draws=True, even=True),
    Entry("round-robin", round_robin.score, memory=round_robin.FIRST),
    Entry("threshold", threshold.score, threshold.PARAMETERS),
    Entry("greedy-prior", greedy_prior.score, greedy_prior.PARAMETERS),
    Entry("greedy", greedy.score, greedy.PARAMETERS),
    Entry("routebalance", routebalance.score, routebalance.PARAMETERS),
    Entry("slackfit", slackfit.score, slackfit.PARAMETERS),
    Entry("debt-queue", debt_queue.score, debt_queue.PARAMETERS),
    Entry("fluid", fluid.score, fluid.PARAMETERS, draws=True),
    Entry("price", price.score, price.PARAMETERS, has_price=True),
    Entry(
        "scheduled-price", scheduled_price.score, price.PARAMETERS, Need.SCHEDULE, has_price=True
    ),
    Entry(DQN, None, dqn.PARAMETERS, Need.SNAPSHOT, has_price=True),
    Entry("dqn-paper", paper.score, needs=Need.PAPER_SNAPSHOT),
)
"""Every policy; the simulator knows it by its row. A kernel may use those of rows above it."""

STATIC_PREFIX = "static-"
PICKER_MARK = "+"
"""Between a policy's name and an endpoint picker's."""
BY_NAME: Mapping[str, Entry] = {entry.name: entry for entry in TABLE}
ROW: Mapping[str, int] = {entry.name: row for row, entry in enumerate(TABLE)}
LEARNED = tuple(e.name for e in TABLE if e.needs in (Need.SNAPSHOT, Need.PAPER_SNAPSHOT))
"""Policies that need a snapshot."""
KNOWN_POLICIES = tuple(e.name for e in TABLE if e.needs is not Need.SCHEDULE)
"""Names `make_policy` takes; `known_policies` spells the static ones out."""
STATIC, *_BY_HAND = (e.name for e in TABLE if e.needs is Need.NOTHING)
BY_HAND = tuple(_BY_HAND)
"""Policies that need nothing but their name, the static ones left out."""


def score(
    row: int,
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Scores by the kernel of a row. The simulator compiles one static choice over all rows."""
    TABLE[row].score(fleet, load, allowed_C, query, params_P, s)


class MissingSnapshotError(ValueError):
    """A learned policy was asked for without a snapshot."""


def known_policies(tiers: Sequence[str]) -> tuple[str, ...]:
    """Returns every policy name that works with these tiers."""
    static = tuple(STATIC_PREFIX + tier for tier in tiers)
    return (*static, *(name for name in KNOWN_POLICIES if name != STATIC))


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
        name: one of `known_policies(tiers)`, or `POLICY+PICKER` with a name in
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
    tier = name.removeprefix(STATIC_PREFIX)
    if name != tier and tier in catalog.tiers:
        memory = (float(catalog.tier_index(tier)),)
        return ScorePolicy(name, BY_NAME[STATIC], params, memory, version=f"{name}@least-work")
    if name in BY_HAND:
        return ScorePolicy(name, BY_NAME[name], params, BY_NAME[name].memory)
    if name in LEARNED:
        return _learned(BY_NAME[name], params, snapshot)
    raise UnknownPolicyError(name, known_policies(catalog.tiers))


def _learned(
    entry: Entry, params: Mapping[str, float] | None, snapshot: Snapshot | PaperSnapshot | None
) -> Policy:
    is_paper = entry.needs is Need.PAPER_SNAPSHOT
    if snapshot is None or isinstance(snapshot, PaperSnapshot) != is_paper:
        raise MissingSnapshotError(
            f"policy {entry.name!r} needs a snapshot of its kind; none was given"
        )
    if isinstance(snapshot, PaperSnapshot):
        return paper.PaperPolicy(entry, snapshot, params)
    return dqn.DqnPolicy(snapshot, params)
