"""What the router sees when it decides: fleet, load and traffic.

Own load is the ledger, exact and at once. The others' is what the watched system state says, split
by router, so that the own part is left out and nothing is counted twice. Without a fresh state the
ledger and the own breakers are all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router import slowdown, traffic
from router.catalog import Catalog
from router.estimators import SlownessEstimator
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.ledger import Ledger, LoadArrays, load_from_totals, zero_load
from router.profile import LatencyProfile
from router.slowdown import Slowdown
from router.traffic import Traffic
from router.types import Signals
from services.common.triton.client import TritonClient
from services.router_inference.view.breaker import Breaker, BreakerLimits, BreakerState

# Estimates of a device's slowness are applied at most this often, and only if they moved this much.
_SLOWNESS_EVERY_S = 0.1
_SLOWNESS_STEP = 0.02


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
class SeenState:
    """The system state without this router's own part.

    Attributes:
        version: its number.
        topology_version: number of its endpoint list.
        endpoints: every endpoint.
        other_totals: the other routers' in-flight, waiting prompt tokens and remaining output
            tokens per candidate.
        other_rate_rps: the other routers' arrivals per second over about 0.2 s.
        rate_long_rps: everybody's arrivals per second over about 10 s.
        monitor_id: who published it.
    """

    version: int
    topology_version: int
    endpoints: tuple[SeenEndpoint, ...]
    other_totals: Mapping[tuple[str, str], tuple[float, float, float]]
    other_rate_rps: float
    rate_long_rps: float
    monitor_id: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a candidate's requests go.

    Attributes:
        tier: tier name.
        tier_index: its place among the tiers, lowest quality first.
        endpoint: endpoint name.
        address: its gRPC address.
        model: Triton model name.
        candidate: (tier, endpoint), the ledger's key.
        client: calls the endpoint.
        breaker: its failures.
    """

    tier: str
    tier_index: int
    endpoint: str
    address: str
    model: str
    candidate: tuple[str, str]
    client: TritonClient
    breaker: Breaker


class View:
    """Fleet, load and traffic of one router process; owned by one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        endpoints: Sequence[EndpointSpec],
        profiles: Mapping[str, LatencyProfile],
        limits: BreakerLimits,
        state_max_age_s: float,
        connect: Callable[[str], TritonClient],
        now_s: float,
    ) -> None:
        """Starts with the endpoints of the settings, all usable.

        Args:
            catalog: tiers, tasks, quality.
            endpoints: endpoints until a system state names others.
            profiles: latency profiles by endpoint name and by profile name; the default one under
                "".
            limits: of the breakers.
            state_max_age_s: age from which a state is not used, seconds.
            connect: returns the client of an address; the same one for the same address.
            now_s: monotonic seconds.
        """
        self.catalog = catalog
        self.ledger = Ledger()
        self.targets: tuple[Target, ...] = ()
        self.topology_version = 0
        self.top_tier = 0
        self.candidates: tuple[tuple[str, str], ...] = ()
        self.unknown_endpoints: tuple[str, ...] = ()
        self.state: SeenState | None = None
        self._state_s = 0.0
        self._profiles = profiles
        self._limits = limits
        self._state_max_age_s = state_max_age_s
        self._connect = connect
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._traffic = Traffic(now_s)
        self._others = zero_load(0)
        self._others_are_idle = True
        self._seen_C: NDArray[np.float64] = np.ones(0)
        self._reasons: dict[str, str] = {}
        self._is_stale = True
        self._is_dirty = True
        self._specs: tuple[EndpointSpec, ...] = ()
        self._slowness: dict[str, SlownessEstimator] = {}
        self._slowdown = Slowdown()
        self._window_s = 0.0
        self._applied_D: NDArray[np.float64] = np.ones(0)
        self._applied_s = now_s
        self.fleet = self._profile_fleet = build_fleet(catalog, (), profiles)
        self._rebuild(tuple(endpoints), now_s)

    # ---- what comes in ----

    def on_arrival(self, now_s: float, prompt_tokens: float) -> None:
        """Counts a request."""
        traffic.count_arrival(self._traffic, now_s, prompt_tokens)

    def on_end(
        self, row: int, fleet: Fleet, predicted_s: float, taken_s: float, *, finished: bool
    ) -> None:
        """Learns how slow a device is from one dispatch.

        Args:
            row: candidate in `fleet`.
            fleet: fleet the prediction was made on.
            predicted_s: predicted time to the complete answer, seconds.
            taken_s: time it took, or until it was cut off, seconds.
            finished: False if it was cut off.
        """
        device = int(fleet.arrays.device_C[row])
        estimator = self._slowness.get(fleet.devices[device])
        if estimator is not None:
            profile_s = predicted_s / fleet.slowness_D[device]
            estimator.observe(taken_s, profile_s, finished=finished)

    def on_compared(
        self, now_s: float, window_s: float, taken_s: float, predicted_s: float, *, finished: bool
    ) -> None:
        """Learns how predictions, as corrected for slow devices, compare with what came.

        Args:
            now_s: when the request ended, monotonic seconds.
            window_s: its deadline, as time from its arrival, seconds.
            taken_s: time from dispatch to its end, or until the deadline cut it off, seconds.
            predicted_s: predicted time to the complete answer, seconds.
            finished: False if it was cut off.
        """
        slowdown.compare(self._slowdown, now_s, window_s, taken_s, predicted_s, finished)

    def latency_slowdown(self, now_s: float) -> float:
        """Returns how much slower answers came lately than predicted, 1 or more."""
        return slowdown.factor(self._slowdown, now_s, self._window_s)

    def slowness(self) -> Mapping[str, float]:
        """Returns per device how slow it is beside its profile, 1.0 = as the profile says."""
        return {name: each.slowness for name, each in self._slowness.items()}

    def apply(self, state: SeenState, now_s: float) -> None:
        """Takes in a newer system state."""
        self.state = state
        self._state_s = now_s
        specs = tuple(seen.spec for seen in state.endpoints)
        if state.topology_version != self.topology_version or specs != self._specs:
            self.topology_version = state.topology_version
            self._rebuild(specs, now_s)
        self._is_stale = False
        self._reasons = {seen.spec.name: seen.reason for seen in state.endpoints if seen.reason}
        weights = {
            (tier, seen.spec.name): seen.weight if tier in seen.ready_tiers else 0.0
            for seen in state.endpoints
            for tier in seen.spec.models
        }
        self._seen_C = np.array([weights[target.candidate] for target in self.targets])
        self._others = load_from_totals(
            state.other_totals, self.fleet.row, self.fleet.candidate_count
        )
        self._others_are_idle = not self._others.in_flight_C.any()
        self._is_dirty = True

    def touch(self) -> None:
        """Makes the next look recompute availabilities (a breaker moved)."""
        self._is_dirty = True

    # ---- what policies look at ----

    def current_fleet(self, now_s: float) -> Fleet:
        """Returns the fleet with availabilities as of now."""
        if not self._is_stale and now_s - self._state_s > self._state_max_age_s:
            self._forget_state()
        if self._is_dirty or (
            now_s - self._applied_s > _SLOWNESS_EVERY_S and self._slowness_moved(now_s)
        ):
            self._refresh(now_s)
        return self.fleet

    def load(self) -> LoadArrays:
        """Returns own plus others' load; call `current_fleet` before."""
        own = self.ledger.load(self.fleet.row, self.fleet.candidate_count)
        return own if self._others_are_idle else own.plus(self._others)

    def own_load(self, load: LoadArrays) -> LoadArrays | None:
        """Returns the own part of what `load` returned; None if that is all of it."""
        if self._others_are_idle:
            return None
        pairs = zip(load, self._others, strict=True)
        return LoadArrays(*(seen_C - others_C for seen_C, others_C in pairs))

    def signals(self, now_s: float, window_s: float | None = None) -> Signals:
        """Returns what is known of the traffic, for a request of `window_s` to its deadline.

        Without `window_s` it is that of the last request that named one.
        """
        if window_s is not None:
            self._window_s = window_s
        short = traffic.short_rate_rps(self._traffic, now_s)
        long = traffic.long_rate_rps(self._traffic, now_s)
        if self._is_stale or self.state is None:
            return Signals(
                short,
                long,
                0.0,
                self._traffic.mean_prompt,
                own_rate_rps=short,
                burstiness=traffic.burstiness(self._traffic),
                slowdown=self.latency_slowdown(now_s),
            )
        # The state's long rate trails and contains our own; it can only add to what we see
        # ourselves.
        all_long = max(long, self.state.rate_long_rps)
        is_shared = self.state.other_rate_rps > 0.0 and all_long > 0.0
        return Signals(
            short + self.state.other_rate_rps,
            all_long,
            now_s - self._state_s,
            self._traffic.mean_prompt,
            own_share=long / all_long if is_shared else 1.0,
            own_rate_rps=short,
            burstiness=traffic.burstiness(self._traffic),
            slowdown=self.latency_slowdown(now_s),
        )

    def own_rate_rps(self, now_s: float) -> float:
        """Returns arrivals at this router per second, over about 0.2 s."""
        return traffic.short_rate_rps(self._traffic, now_s)

    def state_age_s(self, now_s: float) -> float | None:
        """Returns the age of the newest state, seconds; None if there never was one."""
        return None if self.state is None else now_s - self._state_s

    @property
    def is_alone(self) -> bool:
        """True if there is no fresh state: own ledger and breakers decide alone."""
        return self._is_stale

    def other_in_flight(self) -> NDArray[np.float64]:
        """Returns the other routers' requests per candidate."""
        return self._others.in_flight_C

    def unusable_reason(self, row: int, now_s: float) -> str:
        """Returns why a candidate may not be chosen now; empty if it may."""
        target = self.targets[row]
        if target.breaker.state in (BreakerState.EJECTED, BreakerState.PROBING):
            return f"{target.breaker.state.value}: {target.breaker.last_reason}"
        if self.current_fleet(now_s).arrays.availability_C[row] <= 0.0:
            return self._reasons.get(target.endpoint, "not ready")
        return ""

    def retry_after_s(self, now_s: float) -> float:
        """Returns in how many seconds, at least 0.1, an ejected candidate is tried again."""
        waits = [target.breaker.retry_after_s(now_s) for target in self.targets]
        return max(0.1, min((wait for wait in waits if wait > 0.0), default=0.5))

    # ---- inside ----

    def _forget_state(self) -> None:
        """Falls back to the own ledger; endpoints that were draining stay out."""
        self._is_stale = True
        self._others = zero_load(self.fleet.candidate_count)
        self._others_are_idle = True
        draining = {name for name, reason in self._reasons.items() if reason == "DRAINING"}
        self._seen_C = np.array(
            [0.0 if target.endpoint in draining else 1.0 for target in self.targets]
        )
        self._is_dirty = True

    def _refresh(self, now_s: float) -> None:
        settled = True
        own_C = np.ones(len(self.targets))
        for row, target in enumerate(self.targets):
            breaker = target.breaker
            if not breaker.settled:
                own_C[row] = breaker.availability(now_s)
                settled = settled and breaker.settled
        self._applied_D = self._slowness_D()
        fleet = self._profile_fleet.with_slowness(self._applied_D)
        self.fleet = fleet.with_availability(self._seen_C * own_C)
        # A breaker that is not settled changes with time, so the next look computes again.
        self._is_dirty = not settled

    def _slowness_D(self) -> NDArray[np.float64]:
        return np.array([self._slowness[name].slowness for name in self._profile_fleet.devices])

    def _slowness_moved(self, now_s: float) -> bool:
        self._applied_s = now_s
        change_D = np.abs(self._slowness_D() / self._applied_D - 1.0)
        return bool((change_D > _SLOWNESS_STEP).any())

    def _rebuild(self, specs: tuple[EndpointSpec, ...], now_s: float) -> None:
        known: list[EndpointSpec] = []
        unknown: list[str] = []
        for spec in specs:
            profile = self._profile_name(spec)
            tiers = [tier for tier in spec.models if tier in self.catalog.tiers]
            if profile is None or not tiers:
                unknown.append(spec.name)
                continue
            missing = [tier for tier in tiers if tier not in self._profiles[profile].tiers]
            models = {tier: spec.models[tier] for tier in tiers if tier not in missing}
            if not models:
                unknown.append(spec.name)
                continue
            known.append(replace(spec, profile=profile, models=models))
        self.unknown_endpoints = tuple(unknown)
        self._specs = specs
        self.fleet = self._profile_fleet = build_fleet(self.catalog, known, self._profiles)
        self._slowness = {
            name: self._slowness.get(name) or SlownessEstimator() for name in self.fleet.devices
        }
        self._applied_D = self._slowness_D()
        self.targets = tuple(self._target(row, now_s) for row in range(self.fleet.candidate_count))
        self.top_tier = max((target.tier_index for target in self.targets), default=0)
        self.candidates = tuple(target.candidate for target in self.targets)
        live = set(self.candidates)
        self._breakers = {key: item for key, item in self._breakers.items() if key in live}
        self._seen_C = np.ones(len(self.targets))
        self._others = zero_load(len(self.targets))
        self._others_are_idle = True
        self._is_dirty = True

    def _profile_name(self, spec: EndpointSpec) -> str | None:
        """Returns the key of an endpoint's profile; None if this router does not have it."""
        if spec.name in self._profiles:
            return spec.name
        return spec.profile if spec.profile in self._profiles else None

    def _target(self, row: int, now_s: float) -> Target:
        tier, spec = self.fleet.candidate(row)
        candidate = (tier, spec.name)
        breaker = self._breakers.get(candidate)
        if breaker is None:
            breaker = self._breakers[candidate] = Breaker(self._limits)
        return Target(
            tier=tier,
            tier_index=self.catalog.tier_index(tier),
            endpoint=spec.name,
            address=spec.address,
            model=spec.models[tier] or tier,
            candidate=candidate,
            client=self._connect(spec.address),
            breaker=breaker,
        )
