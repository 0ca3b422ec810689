"""The candidates of a router: where they are, whether they may be used, how slow they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog
from router.fleet import EndpointProtocol, EndpointSpec, Fleet, build_fleet
from router.home import WHOLE, Layout, Share
from router.profile import LatencyProfile, TierProfile
from services.common.tiers.client import TierClient
from services.router_inference.view.breaker import Breaker, BreakerLimits, BreakerState
from services.router_inference.view.profiles import ProfileErrors
from services.router_inference.view.seen import REASON_DRAINING, SeenEndpoint, SeenState
from services.router_inference.view.slowness import DeviceSlowness


@dataclass(frozen=True, slots=True)
class Target:
    """Where a candidate's requests go.

    Attributes:
        tier: tier name.
        tier_index: its place among the tiers, lowest quality first.
        endpoint: endpoint name.
        address: its address.
        model: the server's own name of the model.
        candidate: (tier, endpoint), the ledger's key.
        client: calls the endpoint.
        breaker: its failures.
        http_address: the endpoint's HTTP address; empty = none.
        profile: name of the latency profile that predictions for it are made by.
    """

    tier: str
    tier_index: int
    endpoint: str
    address: str
    model: str
    candidate: tuple[str, str]
    client: TierClient
    breaker: Breaker
    http_address: str = ""
    profile: str = ""


class FleetView:
    """The fleet and its health: what the monitor says of it, the own breakers, slow devices.

    Attributes:
        as_profiled: the fleet as its profiles have it, all of it usable; never changed.
        latest: the fleet, whose arrays `current` changes in place.
        availability_C: what of it `current` found last; replaced, never changed, so that a decision
            may keep it.
        slowness_D: the slowness that is in the fleet's times, likewise.
        home_C: what of it is home, likewise.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        endpoints: Sequence[EndpointSpec],
        profiles: Mapping[str, LatencyProfile],
        limits: BreakerLimits,
        connect: Callable[[str, EndpointProtocol], TierClient],
        keep: Callable[[Collection[tuple[str, EndpointProtocol]]], None],
        now_s: float,
    ) -> None:
        """Starts with the endpoints of the settings, all usable.

        Args:
            catalog: tiers, tasks, quality.
            endpoints: endpoints until a system state names others.
            profiles: latency profiles by endpoint name and by profile name; the default one under
                "".
            limits: of the breakers.
            connect: returns the client of an address and what is spoken there; the same one for
                the same.
            keep: told the addresses in use, with what is spoken there, whenever endpoints have
                changed.
            now_s: monotonic seconds.
        """
        self.catalog = catalog
        self.as_profiled: Fleet
        self.topology_version = 0
        self.targets: tuple[Target, ...] = ()
        self.candidates: tuple[tuple[str, str], ...] = ()
        self.slowness = DeviceSlowness(now_s)
        self.errors = ProfileErrors()
        self._profiles = profiles
        self._limits = limits
        self._connect = connect
        self._keep = keep
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._reasons: dict[str, str] = {}
        self._unsettled: list[tuple[int, Breaker]] = []
        self._only: Collection[str] | None = None
        self._seen_C = np.ones(0)
        self._applied: tuple[SeenEndpoint, ...] | None = None
        self._share = WHOLE
        self._stretches: tuple[tuple[int, int], ...] = ()
        self._rebuild(tuple(endpoints))

    def configure(
        self,
        catalog: Catalog,
        endpoints: Sequence[EndpointSpec],
        profiles: Mapping[str, LatencyProfile],
    ) -> None:
        """Takes what other settings say; endpoints only while no system state names others."""
        # How slow a device is was learned beside the costs it had.
        self.slowness.forget(
            spec.device or spec.name
            for spec in self._specs
            if _tiers(spec, profiles) != _tiers(spec, self._profiles)
        )
        self.catalog, self._profiles, self._applied = catalog, profiles, None
        self._rebuild(self._specs if self.topology_version else tuple(endpoints))

    def take_quality(self, quality_KT: NDArray[np.float64]) -> None:
        """Uses other qualities of the tiers, float64 [K, T], from the next decision on."""
        self.catalog = replace(self.catalog, quality_KT=quality_KT)
        arrays = self.as_profiled.arrays
        quality_KC = np.ascontiguousarray(quality_KT[:, arrays.tier_C])
        # Another fleet: decisions that are kept hold on to the one they were taken on.
        self.as_profiled = replace(self.as_profiled, arrays=arrays._replace(quality_KC=quality_KC))
        self.latest.arrays.quality_KC[:] = quality_KC

    def apply(self, state: SeenState) -> None:
        """Takes in the endpoints of a newer system state and their health."""
        if state.endpoints is self._applied and state.topology_version == self.topology_version:
            return
        specs = tuple(seen.spec for seen in state.endpoints)
        if state.topology_version != self.topology_version or specs != self._specs:
            self.topology_version = state.topology_version
            self._rebuild(specs)
        self._reasons = {seen.spec.name: seen.reason for seen in state.endpoints if seen.reason}
        weights = {
            (tier, seen.spec.name): seen.weight if tier in seen.ready_tiers else 0.0
            for seen in state.endpoints
            for tier in seen.spec.models
        }
        self._seen_C = np.array([weights[candidate] for candidate in self.candidates])
        self._applied = state.endpoints
        self._mark()

    def move_home(self, share: Share) -> None:
        """Makes another stretch of the devices the router's home."""
        self._share = share
        stretches = self._layout.stretches(share)
        if stretches == self._stretches:
            return
        self._stretches = stretches
        self.home_C = self._layout.home_C(stretches)
        self.latest.arrays.home_C[:] = self.home_C

    def forget_health(self) -> None:
        """Leaves health to the own breakers; endpoints that were draining stay out."""
        draining = {name for name, why in self._reasons.items() if why == REASON_DRAINING}
        self._seen_C = np.array([0.0 if t.endpoint in draining else 1.0 for t in self.targets])
        self._applied = None
        self._mark()

    def current(self, now_s: float) -> Fleet:
        """Returns the fleet as of now: the same one, its arrays changed, until endpoints change."""
        if self.slowness.has_moved(now_s):
            self._stretch()
        if self._is_dirty or self._unsettled:
            self._refresh(now_s)
        return self.latest

    @contextmanager
    def only(self, endpoints: Collection[str]) -> Iterator[None]:
        """Closes the candidates of all other endpoints until the block, which awaits nothing, ends.

        Args:
            endpoints: names.
        """
        self._only = endpoints
        self._mark()
        try:
            yield
        finally:
            self._only = None
            self._mark()

    def unusable_reason(self, row: int) -> str:
        """Returns why a candidate might not be chosen when last looked at; empty if it might."""
        target = self.targets[row]
        if target.breaker.state in (BreakerState.EJECTED, BreakerState.PROBING):
            return f"{target.breaker.state.value}: {target.breaker.last_reason}"
        if self.latest.arrays.availability_C[row] <= 0.0:
            return self._reasons.get(target.endpoint, "not ready")
        return ""

    def retry_after_s(self, now_s: float) -> float:
        """Returns in how many seconds, at least 0.1, an ejected candidate is tried again."""
        waits = [target.breaker.retry_after_s(now_s) for target in self.targets]
        return max(0.1, min((wait for wait in waits if wait > 0.0), default=0.5))

    def _mark(self) -> None:
        """Makes the next look ask every breaker again; those that change call it."""
        self._is_dirty = True

    def _refresh(self, now_s: float) -> None:
        if self._is_dirty:
            self._own_C = np.ones(len(self.targets))
            # These change with time; the others only where they call `_mark`.
            self._unsettled = [
                (row, target.breaker)
                for row, target in enumerate(self.targets)
                if not target.breaker.settled
            ]
        self._is_dirty = False
        for row, breaker in self._unsettled:
            self._own_C[row] = breaker.availability(now_s)
        self.availability_C = self._seen_C * self._own_C
        if self._only is not None:
            self.availability_C *= [target.endpoint in self._only for target in self.targets]
        self.latest.arrays.availability_C[:] = self.availability_C

    def _stretch(self) -> None:
        """Puts what is known of slow devices into the fleet's times."""
        self.slowness_D = self.slowness.apply()
        self.latest.copy_times(self.as_profiled.with_slowness(self.slowness_D))

    def _rebuild(self, specs: tuple[EndpointSpec, ...]) -> None:
        self._specs = specs
        usable = [found for found in map(self._usable, specs) if found is not None]
        names = {spec.name for spec in usable}
        self.unknown_endpoints = tuple(spec.name for spec in specs if spec.name not in names)
        self.as_profiled = build_fleet(self.catalog, usable, self._profiles)
        self.latest = self.as_profiled.copy()
        self._layout, self._stretches = Layout(self.as_profiled), ()
        self.move_home(self._share)
        self.slowness.follow(self.latest.devices)
        self.errors.follow(self._profiles[spec.profile] for spec in usable)
        self._stretch()
        self.targets = tuple(self._target(row) for row in range(self.latest.candidate_count))
        self.top_tier = max((target.tier_index for target in self.targets), default=0)
        # Settings say nothing of health: what drains or is down stays so until the next state.
        seen = dict(zip(self.candidates, self._seen_C.tolist(), strict=True))
        self.candidates = tuple(target.candidate for target in self.targets)
        self._breakers = {target.candidate: target.breaker for target in self.targets}
        self._keep({(spec.address, spec.protocol) for spec in self.latest.endpoints})
        self._seen_C = np.array([seen.get(each, 1.0) for each in self.candidates])
        self._own_C = self.availability_C = np.ones(len(self.targets))
        self._unsettled = []
        self._mark()

    def _usable(self, spec: EndpointSpec) -> EndpointSpec | None:
        """Returns an endpoint with what this router knows of it; None if that is nothing."""
        profile = spec.name if spec.name in self._profiles else spec.profile
        if profile not in self._profiles:
            return None
        known = self._profiles[profile].tiers
        models = {
            tier: model
            for tier, model in spec.models.items()
            if tier in self.catalog.tiers and tier in known
        }
        return replace(spec, profile=profile, models=models) if models else None

    def _target(self, row: int) -> Target:
        tier, spec = self.latest.candidate(row)
        candidate = (tier, spec.name)
        return Target(
            tier=tier,
            tier_index=self.catalog.tier_index(tier),
            endpoint=spec.name,
            address=spec.address,
            model=spec.models[tier] or tier,
            candidate=candidate,
            client=self._connect(spec.address, spec.protocol),
            breaker=self._breakers.get(candidate) or Breaker(self._limits, self._mark),
            http_address=spec.http_address,
            profile=self._profiles[spec.profile].name,
        )


def _tiers(
    spec: EndpointSpec, profiles: Mapping[str, LatencyProfile]
) -> Mapping[str, TierProfile] | None:
    """Returns the costs of an endpoint's tiers, None if they are not known."""
    profile = profiles.get(spec.name) or profiles.get(spec.profile)
    return None if profile is None else profile.tiers
