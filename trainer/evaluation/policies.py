"""Which policies an evaluation compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.catalog import Catalog
from router.dqn.paper_snapshot import load_paper_snapshot
from router.dqn.snapshot import REASON_FORMAT, SnapshotError, load_snapshot
from router.features import SCHEMA
from router.policies.table import (
    LEARNED,
    STATIC_PREFIX,
    known_policies,
    make_policy,
)
from trainer.learning.offline.price_search import reckoning_spec_of
from trainer.simulation.simulate import PolicySpec

REGRET_BASELINE = "price"
"""The joint price policy: the one to beat."""

TUNED_SUFFIX = "-tuned"
TUNED: Mapping[str, Mapping[str, float]] = {
    "greedy": {"margin": 0.0774},
    "slackfit": {"margin": 0.0705},
    "price": {
        "level": -6.844,
        "backlog": 12.289,
        "load": 8.377,
        "load_square": -2.3,
        "step_share": 0.5,
        "foresight": 0.0201,
        "on_time_bias": 1.423,
        "on_time_sharpness": 5.776,
    },
}
"""What `python -m trainer.research.tuning` found where the default serves live traffic better.

The others' defaults are what it found; see docs/baselines.md.
"""


@dataclass(frozen=True)
class Contender:
    """A policy in an evaluation.

    Attributes:
        name: in tables.
        spec: as the simulator takes it.
        version: name and digest of parameters, or version of a snapshot.
        kind: "static", "baseline", "learned", or "zeroed" (a learned one's twin without what its
            network was trained to add).
    """

    name: str
    spec: PolicySpec
    version: str
    kind: str

    def renamed(self, old: str, new: str) -> Contender:
        """Returns it under a name in which `old` is replaced by `new`."""
        name = self.name.replace(old, new, 1)
        return replace(self, name=name, spec=replace(self.spec, name=name))


def baseline(name: str, catalog: Catalog) -> Contender:
    """Returns a policy that needs no snapshot; `NAME-tuned` is one of `TUNED`.

    Raises:
        UnknownPolicyError: the name is not known; the message lists the known ones.
        MissingSnapshotError: it is a learned policy's name.
    """
    tuned = TUNED.get(name.removesuffix(TUNED_SUFFIX)) if name.endswith(TUNED_SUFFIX) else None
    if tuned is not None:
        policy = make_policy(name.removesuffix(TUNED_SUFFIX), catalog, tuned)
        return Contender(
            name, replace(PolicySpec.of(policy), name=name), policy.version, "baseline"
        )
    policy = make_policy(name, catalog)
    kind = "static" if name.startswith(STATIC_PREFIX) else "baseline"
    return Contender(name, PolicySpec.of(policy), policy.version, kind)


def baseline_names(catalog: Catalog) -> tuple[str, ...]:
    """Returns every policy that needs no snapshot: the static ones and those scored by hand."""
    names = [n for n in known_policies(catalog.tiers) if n not in LEARNED]
    return tuple(each for n in names for each in ((n, n + TUNED_SUFFIX) if n in TUNED else (n,)))


def learned(blob: bytes, catalog: Catalog, origin: str) -> list[Contender]:
    """Returns a snapshot's policy and, beside a `dqn`, its twins without the network.

    Raises:
        SnapshotError: damaged, or of another feature schema or catalog.
    """
    try:
        snapshot = load_snapshot(blob, SCHEMA, origin)
    except SnapshotError as error:
        if error.reason != REASON_FORMAT:
            raise
        paper = load_paper_snapshot(blob, catalog, origin)
        policy = make_policy("dqn-paper", catalog, snapshot=paper)
        return [Contender("dqn-paper", PolicySpec.of(policy), policy.version, "learned")]
    spec = PolicySpec.of(make_policy("dqn", catalog, snapshot=snapshot))
    return with_zeroed(Contender("dqn", spec, snapshot.version, "learned"))


def with_zeroed(contender: Contender) -> list[Contender]:
    """Returns a `dqn` and its twins without the network, which show what was learned and how.

    One has its network zeroed, which leaves the price. The other follows the prior that policy
    search found before the network was trained, on the load as reckoned.
    """
    spec = replace(
        contender.spec,
        weights=contender.spec.weights.zeroed(),
        name=zeroed_name(contender.name),
    )
    version = f"{contender.version}, network zeroed"
    prior = replace(
        reckoning_spec_of(contender.spec.params_P), name=f"{contender.name}, search only"
    )
    return [
        contender,
        Contender(spec.name, spec, version, "zeroed"),
        Contender(prior.name, prior, f"{contender.version}, search only", "zeroed"),
    ]


def zeroed_name(name: str) -> str:
    """Returns the name of a learned policy's zeroed twin."""
    return f"{name}, zeroed"


def yardsticks(catalog: Catalog) -> tuple[str, str, str]:
    """Returns what every evaluation needs: always-small, static-large, the regret's baseline."""
    tiers = catalog.tiers
    return f"{STATIC_PREFIX}{tiers[0]}", f"{STATIC_PREFIX}{tiers[-1]}", REGRET_BASELINE


def specs(contenders: Mapping[str, Contender]) -> dict[str, PolicySpec]:
    """Returns the specs alone."""
    return {name: contender.spec for name, contender in contenders.items()}
