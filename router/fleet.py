"""The fleet as arrays: candidates, their devices and their costs.

Shape letters: K tasks, T tiers, C candidates, D devices.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from router.catalog import Catalog
    from router.profile import LatencyProfile


class FleetArrays(NamedTuple):
    """What kernels see of the fleet: a NamedTuple of arrays, which the simulator can compile.

    Attributes:
        tier_C: tier index, int64.
        device_C: device index, int64.
        peers_CP: candidates of the same device, itself among them, in rising order, -1 beyond.
        step_s_C: iteration cost independent of the batch, seconds.
        per_sequence_s_C: iteration cost per sequence, seconds.
        per_prompt_token_s_C: cost per admitted prompt token, seconds.
        overhead_s_C: fixed latency outside the device, seconds.
        max_batch_C: most sequences per iteration.
        quality_KC: quality of each candidate on each task.
        availability_C: 0 = must not be used, 1 = fully, between = ramping up.
        home_C: candidates at the router's home (`router.home`); all, where it has no other.
        prefix_room_C: room for prefixes of requests that have ended, tokens; 0 = no such cache.
        cached_C: tokens of the prompt at hand that are probably cached (`router.seat`): 0 but for
            one candidate while a request of a conversation is decided.
    """

    tier_C: NDArray[np.int64]
    device_C: NDArray[np.int64]
    peers_CP: NDArray[np.int64]
    step_s_C: NDArray[np.float64]
    per_sequence_s_C: NDArray[np.float64]
    per_prompt_token_s_C: NDArray[np.float64]
    overhead_s_C: NDArray[np.float64]
    max_batch_C: NDArray[np.float64]
    quality_KC: NDArray[np.float64]
    availability_C: NDArray[np.float64]
    home_C: NDArray[np.bool_]
    prefix_room_C: NDArray[np.float64]
    cached_C: NDArray[np.float64]


class EndpointProtocol(enum.Enum):
    """What an endpoint speaks, by the word in settings."""

    TRITON = "triton"
    """KServe v2 by gRPC, as Triton's vLLM backend has it."""
    OPENAI = "openai"
    """OpenAI's completions by HTTP."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """Definition of an endpoint.

    Attributes:
        name: unique name.
        address: host:port: of Triton's gRPC, or of what `protocol` says.
        device: name of the device whose time its tiers share.
        models: the server's own model name per tier name.
        profile: name of its latency profile; empty = the default one.
        metrics_address: host:port of Prometheus metrics; empty = none.
        speed: speed relative to the profile, > 0.
        http_address: host:port of the same server's HTTP; empty = none.
        protocol: what it speaks.
    """

    name: str
    address: str
    device: str
    models: Mapping[str, str]
    profile: str = ""
    metrics_address: str = ""
    speed: float = 1.0
    http_address: str = ""
    protocol: EndpointProtocol = EndpointProtocol.TRITON


@dataclass(frozen=True)
class Fleet:
    """Candidates of a list of endpoints, in a fixed order: by endpoint, then by tier.

    Attributes:
        arrays: what kernels see.
        tiers: tier names of the catalog.
        endpoints: the endpoints.
        endpoint_C: index into `endpoints` per candidate, int64.
        devices: device names.
        row: candidate row per (tier name, endpoint name).
        slowness_D: factor on the profile's times that is in `arrays`, 1.0 = as the profile says.
    """

    arrays: FleetArrays
    tiers: tuple[str, ...]
    endpoints: tuple[EndpointSpec, ...]
    endpoint_C: NDArray[np.int64]
    devices: tuple[str, ...]
    row: Mapping[tuple[str, str], int]
    slowness_D: NDArray[np.float64]

    @property
    def candidate_count(self) -> int:
        """Number of candidates."""
        return len(self.arrays.tier_C)

    def candidate(self, row: int) -> tuple[str, EndpointSpec]:
        """Returns tier name and endpoint of a candidate row."""
        tier = self.tiers[int(self.arrays.tier_C[row])]
        return tier, self.endpoints[int(self.endpoint_C[row])]

    def with_availability(self, availability_C: NDArray[np.float64]) -> Fleet:
        """Returns the fleet with other availabilities; everything else is shared."""
        arrays = self.arrays._replace(availability_C=np.asarray(availability_C, dtype=np.float64))
        return replace(self, arrays=arrays)

    def with_slowness(self, slowness_D: NDArray[np.float64]) -> Fleet:
        """Returns the fleet with the profile's times of each device stretched, float64 [D]."""
        factor_C = (slowness_D / self.slowness_D)[self.arrays.device_C]
        arrays = self.arrays._replace(
            step_s_C=self.arrays.step_s_C * factor_C,
            per_sequence_s_C=self.arrays.per_sequence_s_C * factor_C,
            per_prompt_token_s_C=self.arrays.per_prompt_token_s_C * factor_C,
            overhead_s_C=self.arrays.overhead_s_C * factor_C,
        )
        return replace(self, arrays=arrays, slowness_D=slowness_D)

    def copy(self) -> Fleet:
        """Returns the fleet with arrays of its own."""
        arrays = FleetArrays(*(array.copy() for array in self.arrays))  # type: ignore[arg-type]
        return replace(self, arrays=arrays, slowness_D=self.slowness_D.copy())

    def copy_times(self, other: Fleet) -> None:
        """Takes over the times of a fleet of the same candidates, in place."""
        for name in ("step_s_C", "per_sequence_s_C", "per_prompt_token_s_C", "overhead_s_C"):
            getattr(self.arrays, name)[:] = getattr(other.arrays, name)
        self.slowness_D[:] = other.slowness_D


def build_fleet(
    catalog: Catalog, endpoints: Sequence[EndpointSpec], profiles: Mapping[str, LatencyProfile]
) -> Fleet:
    """Builds the arrays.

    Args:
        catalog: tiers, tasks, quality.
        endpoints: the endpoints, each with at least one tier of the catalog.
        profiles: latency profiles by name; the default one under "".

    Raises:
        KeyError: an endpoint names a profile or tier that is not known.
    """
    devices: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    costs: list[tuple[float, ...]] = []
    row_of: dict[tuple[str, str], int] = {}
    for endpoint_index, endpoint in enumerate(endpoints):
        device = devices.setdefault(endpoint.device or endpoint.name, len(devices))
        profile = profiles[endpoint.profile]
        for tier in sorted(endpoint.models, key=catalog.tier_index):
            cost = profile.tiers[tier].scaled(1.0 / endpoint.speed)
            row_of[tier, endpoint.name] = len(rows)
            rows.append((catalog.tier_index(tier), device, endpoint_index))
            costs.append(
                (
                    cost.step_s,
                    cost.per_sequence_s,
                    cost.per_prompt_token_s,
                    cost.overhead_s,
                    float(cost.max_batch),
                    float(cost.prefix_cache_tokens),
                )
            )
    index_C3 = np.array(rows, dtype=np.int64).reshape(-1, 3)
    cost_C6 = np.array(costs, dtype=np.float64).reshape(-1, 6)
    arrays = FleetArrays(
        tier_C=np.ascontiguousarray(index_C3[:, 0]),
        device_C=np.ascontiguousarray(index_C3[:, 1]),
        peers_CP=_peers(index_C3[:, 1]),
        step_s_C=np.ascontiguousarray(cost_C6[:, 0]),
        per_sequence_s_C=np.ascontiguousarray(cost_C6[:, 1]),
        per_prompt_token_s_C=np.ascontiguousarray(cost_C6[:, 2]),
        overhead_s_C=np.ascontiguousarray(cost_C6[:, 3]),
        max_batch_C=np.ascontiguousarray(cost_C6[:, 4]),
        quality_KC=np.ascontiguousarray(catalog.quality_KT[:, index_C3[:, 0]]),
        availability_C=np.ones(len(rows)),
        home_C=np.ones(len(rows), np.bool_),
        prefix_room_C=np.ascontiguousarray(cost_C6[:, 5]),
        cached_C=np.zeros(len(rows)),
    )
    return Fleet(
        arrays,
        catalog.tiers,
        tuple(endpoints),
        np.ascontiguousarray(index_C3[:, 2]),
        tuple(devices),
        row_of,
        np.ones(len(devices)),
    )


def _peers(device_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns each candidate's device mates [C, P], -1 where a device has fewer than P."""
    widest = int(np.bincount(device_C).max()) if len(device_C) else 1
    peers_CP = np.full((len(device_C), widest), -1, dtype=np.int64)
    for c, device in enumerate(device_C):
        mates = np.flatnonzero(device_C == device)
        peers_CP[c, : len(mates)] = mates
    return peers_CP
