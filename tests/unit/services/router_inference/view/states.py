"""System states as a router of these tests sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from router.fleet import EndpointSpec
from services.router_inference.view.seen import SeenEndpoint, SeenState
from tests.unit.services.router_inference.parts import Rig

ALL = {"small": "small", "medium": "medium", "large": "large"}


def endpoint(index: int, weight: float = 1.0, reason: str = "") -> SeenEndpoint:
    """A ready endpoint as the monitor sees it."""
    spec = EndpointSpec(f"e{index}", f"127.0.0.1:{9000 + index}", f"e{index}", ALL)
    return SeenEndpoint(spec, weight, frozenset(ALL), reason)


def state(*endpoints: SeenEndpoint, topology: int = 1) -> SeenState:
    """A state with some load of others."""
    specs = [each.spec for each in endpoints]
    candidates = tuple((tier, spec.name) for spec in specs for tier in spec.models)
    others_LC = np.zeros((3, len(candidates)))
    if ("small", "e0") in candidates:
        others_LC[:, candidates.index(("small", "e0"))] = 3.0, 30.0, 24.0
    return SeenState(topology, endpoints, candidates, others_LC, 0, 20.0, 5.0)


def look(rig: Rig) -> NDArray[np.float64]:
    """Returns the availabilities as of now."""
    return rig.core.view.current_fleet(rig.clock.monotonic_s()).arrays.availability_C
