"""What the load monitor says of the mesh, as a router takes it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.fleet import EndpointSpec
from router.home import WHOLE, Share
from router.quality import Rating

REASON_DRAINING = "DRAINING"


@dataclass(frozen=True, slots=True)
class SeenEndpoint:
    """An endpoint as the system state describes it.

    Attributes:
        spec: its definition.
        weight: share of its traffic it should get, 0 to 1.
        ready_tiers: tiers that may be used now.
        reason: why it is not fully usable; empty if it is.
    """

    spec: EndpointSpec
    weight: float
    ready_tiers: frozenset[str]
    reason: str


@dataclass(frozen=True, slots=True)
class SeenTarget:
    """A target that was set while the mesh runs.

    Attributes:
        task: name of the task.
        target: share of hard deadlines to be met; 0 = none.
        set_by: who set it.
        expire_ns: when it ends, wall clock of the monitor, ns since 1970; 0 = never.
        set_ns: when it was set, by the same clock.
    """

    task: str
    target: float
    set_by: str
    expire_ns: int
    set_ns: int = 0


@dataclass(frozen=True, slots=True)
class SeenRatings:
    """What clients said of answers, by task and tier.

    Attributes:
        mesh: everywhere in the mesh.
        own: those among them that this router reported, as it did.
        counts_own: whether any report of this router is in the state that told.
    """

    mesh: Mapping[tuple[str, str], Rating]
    own: Mapping[tuple[str, str], Rating]
    counts_own: bool


@dataclass(frozen=True, slots=True)
class SeenState:
    """The system state without this router's own part.

    Attributes:
        topology_version: number of its endpoint list.
        endpoints: every endpoint; the same tuple as before where nothing changed.
        candidates: tier and endpoint, in the order of the list; likewise.
        others_LC: the other routers' load on them, a row for each field of `LoadArrays`.
        own_sequence: number of the own report that was left out; 0 = there was none.
        other_rate_rps: the other routers' arrivals per second over about 0.2 s.
        rate_long_rps: everybody's arrivals per second over about 10 s.
        targets: those set while the mesh runs; None = the state told none.
        home: this router's stretch of the devices of each kind.
        others_age_s: how old all that is of the other routers was when the state came, seconds.
        others_long_rps: the other routers' arrivals per second over about 10 s; None if not told.
        ratings: what clients said of answers; None = as told before.
    """

    topology_version: int
    endpoints: tuple[SeenEndpoint, ...]
    candidates: tuple[tuple[str, str], ...]
    others_LC: NDArray[np.float64]
    own_sequence: int
    other_rate_rps: float
    rate_long_rps: float
    targets: tuple[SeenTarget, ...] | None = None
    home: Share = WHOLE
    others_age_s: float = 0.0
    others_long_rps: float | None = None
    ratings: SeenRatings | None = None
