"""The policy interface: an observation in, a decision for one candidate out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from router import kernels
from router.types import NoCandidateError

if TYPE_CHECKING:
    from router.fleet import Fleet
    from router.ledger import LoadArrays
    from router.types import Decision, Request, Signals


@dataclass(frozen=True, slots=True)
class Observation:
    """All a policy may look at when it decides.

    Per-candidate values are plain lists here (see `LoadArrays`), though kernels are typed for
    arrays.

    Attributes:
        fleet: candidates, costs, availability.
        load: own exact load plus the others' last known load, per candidate.
        request: the request.
        signals: traffic.
        allowed_C: whether the request may go to a candidate; at least one is True.
        own: the part of `load` that this router sent itself; None = all of it.
    """

    fleet: Fleet
    load: LoadArrays
    request: Request
    signals: Signals
    allowed_C: Any
    own: LoadArrays | None = None


class Policy(Protocol):
    """A decision rule, pure but for counters of its own: no clock, no I/O, chance from `rng`."""

    @property
    def name(self) -> str:
        """Name by which it is chosen, e.g. "price" or "static-large"."""

    @property
    def version(self) -> str:
        """Version of its parameters or snapshot; every decision carries it."""

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns a decision for an allowed candidate; never raises for lack of a good one."""


def observe(
    fleet: Fleet,
    load: LoadArrays,
    request: Request,
    signals: Signals,
    rng: np.random.Generator,
    excluded_C: list[bool] | None = None,
    own: LoadArrays | None = None,
) -> Observation:
    """Builds an observation.

    Args:
        fleet: the fleet.
        load: total load.
        request: the request.
        signals: traffic.
        rng: draws which requests a ramping endpoint gets.
        excluded_C: whether to leave a candidate out besides (a retry's failed ones), or None.
        own: the part of `load` that this router sent itself; None = all of it.

    Raises:
        NoCandidateError: nothing is usable for this request.
    """
    allowed_C: Any = [False] * fleet.candidate_count
    count = kernels.allowed_mask(
        fleet.lists,
        request.task,
        request.quality_floor,
        request.tier_pin,
        float(rng.random()),
        allowed_C,
    )
    if excluded_C is not None:
        pairs = zip(allowed_C, excluded_C, strict=True)
        allowed_C = [allowed and not excluded for allowed, excluded in pairs]
        count = sum(allowed_C)
    if count == 0:
        raise NoCandidateError("no usable endpoint serves a tier this request allows")
    return Observation(fleet, load, request, signals, allowed_C, own)
