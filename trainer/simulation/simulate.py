"""Simulation: a fleet, a workload, a policy and a seed give a result. The API of the simulator.

    config = SimulationConfig(fleet, catalog, profiles)
    result = simulate(config, workload, PolicySpec.of(policy), seed=1)

Calling it again with other weights, parameters, workloads or fleets compiles nothing anew.

Shape letters: N requests, E recorded decisions, C candidates, F features, T tiers, W windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from router.bound import Rule
from router.catalog import Catalog
from router.dqn.snapshot import Weights, zero_weights
from router.features import FEATURE_COUNT, feature_scratch
from router.fleet import Fleet
from router.home import Layout, Share, equal_share
from router.ledger import zero_load
from router.picker import NO_PICKER
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.table import ROW, TABLE
from router.policy import Policy
from router.profile import LatencyProfile
from router.safety import SafetyLimits
from router.seat import MARGIN
from router.types import RewardKind, SloKind
from trainer.simulation import loop, state
from trainer.simulation.state import World
from trainer.simulation.workload import Workload

_NO_WEIGHTS = zero_weights(FEATURE_COUNT, 1)
SOFT_GRACE = 5.0
"""A soft deadline's request is cancelled this many decay times after its deadline."""


class SimulationError(ValueError):
    """A simulation cannot be set up; the message names what does not fit."""


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Something that happens to a device.

    Attributes:
        time_s: when, seconds.
        device: index of the device.
        kind: "lost", "back", or "slow".
        value: for "slow": factor on its iteration times (1.3 = 30 % slower; routers do not know).
    """

    time_s: float
    device: int
    kind: str
    value: float = 1.0


@dataclass(frozen=True)
class SimulationConfig:
    """What is simulated besides workload and policy.

    Attributes:
        fleet: candidates as routers know them.
        catalog: tiers and tasks (deadline kinds and rewards are read from the tasks).
        profiles: true costs, by the name endpoints give; the default under "".
        safety: admission, rescue and retries on or off.
        limits: how far the safety net trusts predictions.
        routers: number of routers that share the traffic evenly.
        staleness_s: age of others' load when it becomes visible, seconds (more than one router).
        report_interval_s: time between two snapshots of others' load, seconds.
        events: what happens to devices.
        epsilon: probability of exploring.
        mix_T: tier mix exploration draws from; empty = even.
        feature_stride: record every n-th first decision; 0 = none.
        max_records: most decisions recorded.
        shortlist: a network looks at a shortlist of a large fleet, as it does live.
        homes: stretch of the devices that is home to each router; None = equal ones, as live.
        hold_targets: hold the tasks' targets, as routers with a safety net do.
        reserve: share of the last minute's highest rate that room is kept for, 0 to 1.
        conversation_margin: worth that staying on a conversation's seat may cost (`router.seat`);
            below 0, routers know nothing of conversations.
        conversation_s: how long routers remember where one was served, seconds.
        are_conversations_homed: each conversation comes through one router, as a balancer with
            affinity has it; else each of its requests through any.
    """

    fleet: Fleet
    catalog: Catalog
    profiles: Mapping[str, LatencyProfile]
    safety: bool = True
    limits: SafetyLimits = field(default_factory=SafetyLimits)
    routers: int = 1
    staleness_s: float = 0.0
    report_interval_s: float = 0.05
    events: tuple[FleetEvent, ...] = ()
    epsilon: float = 0.0
    mix_T: tuple[float, ...] = ()
    feature_stride: int = 0
    max_records: int = 10_000_000
    shortlist: bool = True
    homes: tuple[Share, ...] | None = None
    hold_targets: bool = False
    reserve: float = 0.0
    conversation_margin: float = MARGIN
    conversation_s: float = 600.0
    are_conversations_homed: bool = True


@dataclass(frozen=True)
class PolicySpec:
    """A policy as compiled code takes it.

    Attributes:
        policy: its name in the policy table.
        params_P: parameters and memory of a score kernel.
        weights: network of a DQN.
        name: for tables.
        picker: number of the endpoint picker that chooses inside the policy's tier; 0 = none.
    """

    policy: str
    params_P: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    weights: Weights = _NO_WEIGHTS
    name: str = ""
    picker: int = NO_PICKER

    @property
    def row(self) -> int:
        """Its row in the policy table."""
        return ROW[self.policy]

    @classmethod
    def of(cls, policy: Policy) -> PolicySpec:
        """Returns the spec of a policy of the table; raises SimulationError for another."""
        try:
            rule = Rule.of(policy)
        except TypeError as error:
            raise SimulationError(str(error)) from None
        return cls(TABLE[rule.row].name, rule.params_P, rule.weights, policy.name, rule.picker)

    @classmethod
    def dqn(
        cls, weights: Weights, name: str = "dqn", base_P: NDArray[np.float64] = PRICE_DEFAULTS_P
    ) -> PolicySpec:
        """Returns the spec of a Q-network that corrects the price score of `base_P`."""
        return cls("dqn", np.array(base_P), weights, name)


@dataclass(frozen=True)
class SimulationResult:
    """What happened to each request, and the recorded decisions.

    Attributes:
        workload: what was offered.
        status_N: how each request ended (`state.ANSWERED` and so on).
        on_time_N: answered inside the deadline.
        latency_N: end minus arrival, seconds.
        late_s_N: by how much an answer missed its deadline, seconds; where each token is due, by
            how much its first or its last one did. 0 for no answer.
        quality_N: quality of the tier that answered; 0 if none did.
        reward_N: reward delivered.
        first_reward_N: reward of the first choice (0 if it was rescued or lost).
        action_N: first choice, -1 if there was no decision.
        tier_N: tier that answered or was last tried, -1 if none.
        probability_N: probability of the first choice under the behaviour policy.
        explored_N: exploration made the first choice.
        rescued_N: it was sent to a smaller tier under way.
        predicted_N: predicted latency of the last choice, seconds.
        stay_N: what became of its conversation in its first decision (`router.seat.Stay`).
        expected_N: prompt tokens its router took for cached where it was last sent.
        hit_N: prompt tokens that were cached where it ran.
        record_N: request of each recorded decision, by time.
        features_ECF: recorded features, float32.
        allowed_EC: recorded masks.
        record_of_N: row of a request's recorded decision, -1 if none.
        counters: events, iterations, decisions, rescues.
    """

    workload: Workload
    status_N: NDArray[np.int8]
    on_time_N: NDArray[np.bool_]
    latency_N: NDArray[np.float64]
    late_s_N: NDArray[np.float64]
    quality_N: NDArray[np.float64]
    reward_N: NDArray[np.float64]
    first_reward_N: NDArray[np.float64]
    action_N: NDArray[np.int64]
    tier_N: NDArray[np.int64]
    probability_N: NDArray[np.float64]
    explored_N: NDArray[np.bool_]
    rescued_N: NDArray[np.bool_]
    predicted_N: NDArray[np.float64]
    stay_N: NDArray[np.int8]
    expected_N: NDArray[np.float64]
    hit_N: NDArray[np.float64]
    record_N: NDArray[np.int64]
    features_ECF: NDArray[np.float32]
    allowed_EC: NDArray[np.bool_]
    record_of_N: NDArray[np.int64]
    counters: Mapping[str, int]

    def observed(self, warm_up_s: float = 0.0) -> NDArray[np.bool_]:
        """Returns which requests count: those that arrived after the warm-up."""
        return self.workload.arrival_N >= warm_up_s

    def availability(self, warm_up_s: float = 0.0) -> float:
        """Returns the share of offered requests answered on time."""
        chosen = self.observed(warm_up_s)
        return float(self.on_time_N[chosen].mean()) if chosen.any() else 1.0

    def performance(self, warm_up_s: float = 0.0) -> float:
        """Returns the mean reward over offered requests."""
        chosen = self.observed(warm_up_s)
        return float(self.reward_N[chosen].mean()) if chosen.any() else 1.0

    def tier_share(self, tier_count: int, warm_up_s: float = 0.0) -> NDArray[np.float64]:
        """Returns the share of offered requests each tier answered [T]."""
        chosen = self.observed(warm_up_s) & (self.status_N == state.ANSWERED)
        count = max(1, int(self.observed(warm_up_s).sum()))
        return np.bincount(self.tier_N[chosen], minlength=tier_count) / count

    def windows(self, window_s: float, warm_up_s: float = 0.0) -> NDArray[np.float64]:
        """Returns the mean reward per window of arrival time; NaN for an empty window [W]."""
        count = int((self.workload.duration_s - warm_up_s) / window_s)
        index_N = np.floor((self.workload.arrival_N - warm_up_s) / window_s).astype(np.int64)
        chosen = (index_N >= 0) & (index_N < count)
        offered = np.bincount(index_N[chosen], minlength=count)
        earned = np.bincount(index_N[chosen], self.reward_N[chosen], minlength=count)
        return np.where(offered > 0, earned / np.maximum(offered, 1), np.nan)


def simulate(
    config: SimulationConfig, workload: Workload, policy: PolicySpec, seed: int = 0
) -> SimulationResult:
    """Runs a workload through a fleet under one policy; deterministic in all its arguments.

    Raises:
        SimulationError: workload, config and policy do not fit together.
    """
    world = make_world(config, workload, seed)
    world.clock["picker"] = policy.picker
    loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
    return result_of(world, workload)


def make_world(config: SimulationConfig, workload: Workload, seed: int) -> World:
    """Returns a world at time zero.

    Raises:
        SimulationError: workload and config do not fit together.
    """
    _check(config, workload)
    fleet = config.fleet
    count, candidates = len(workload), fleet.candidate_count
    requests = _requests(config, workload, seed)
    longest = int(workload.output_N.max(initial=1))
    priors_K = np.array([task.expected_output_tokens for task in config.catalog.tasks])
    ring = 2 + max(longest, int(priors_K.max() + 1.5))
    routers = config.routers
    kept = 2 + int(config.staleness_s / config.report_interval_s)
    stride = config.feature_stride
    records = min(config.max_records, -(-count // stride)) if stride > 0 else 0
    moments = state.MOST_ATTEMPTS * count if config.safety else 1  # each has one for a rescue
    mix_T = np.array(config.mix_T or [1.0] * len(fleet.tiers))
    router_state = np.zeros(routers, state.ROUTER)
    router_state["start_s"] = router_state["returned_s"] = -np.inf
    scratch = feature_scratch(candidates)
    home_RC = _homes(config)
    decided = scratch.seen._replace(score_C=np.zeros(candidates))
    allowed_C = np.zeros(candidates, np.bool_)
    features_CF = np.zeros((candidates, FEATURE_COUNT), np.float32)
    return World(
        clock=_clock(config, seed),
        requests=requests,
        candidates=_candidates(config),
        devices=_devices(fleet),
        routers=router_state,
        pressure_RK=np.zeros((routers, len(config.catalog.tasks))),
        ends_RK=np.zeros((routers, len(config.catalog.tasks))),
        pressed_s_R1=np.zeros((routers, 1)),
        target_K=np.array(
            [task.target if config.hold_targets else 0.0 for task in config.catalog.tasks]
        ),
        fleet_events=_fleet_events(config),
        cancel_N=np.argsort(requests["cancel_s"], kind="stable"),
        slots_DS=_slots(fleet),
        ledger_RLC=np.zeros((routers, state.LEDGER_ROWS, candidates)),
        seats_RV=_seats(config, workload),
        passed_RC=np.zeros((routers, candidates)),
        cached_CV=np.zeros((candidates, workload.conversation_count), state.CACHED),
        token_s_CM=np.zeros((candidates, ring)),
        bucket_CM=np.full((candidates, ring), -1, np.int64),
        stop_RCM=np.zeros((routers, candidates, ring)),
        heap_s=np.zeros(moments),
        heap_id=np.zeros(moments, np.int64),
        pending_N=np.zeros(count + 1, np.int64),
        ring_s=np.full(kept, -np.inf),
        ring_SRLC=np.zeros((kept, routers, 3, candidates)),
        ring_SLC=np.zeros((kept, 3, candidates)),
        ring_rate_SR2=np.zeros((kept, routers, 2)),
        output_RK=np.tile(priors_K.astype(np.float64), (routers, 1)),
        fleet=fleet.arrays._replace(
            availability_C=fleet.arrays.availability_C.copy(),
            home_C=home_RC[0].copy(),
            cached_C=np.zeros(candidates),
        ),
        home_RC=home_RC,
        seen=zero_load(candidates),
        allowed_C=allowed_C,
        usable_C=np.zeros(candidates),
        decided=decided,
        features_CF=features_CF,
        base_P=PRICE_DEFAULTS_P.copy(),
        scratch=scratch,
        mix_T=mix_T,
        picked_T=np.full(len(fleet.tiers), -1, np.int64),
        record_CF=np.zeros((records, candidates, FEATURE_COUNT), np.float32),
        record_allowed_C=np.zeros((records, candidates), np.bool_),
        record_id=np.full(records, -1, np.int64),
    )


def result_of(world: World, workload: Workload) -> SimulationResult:
    """Returns the result of a world that has run to its end."""
    r, clock = world.requests, world.clock[0]
    answered = r["status"] == state.ANSWERED
    candidate_N = r["candidate"]
    quality_N = world.fleet.quality_KC[r["task"], np.maximum(candidate_N, 0)]
    tier_N = np.where(candidate_N >= 0, world.fleet.tier_C[np.maximum(candidate_N, 0)], -1)
    records = int(clock["records"])
    names = ("events", "iterations", "decisions", "rescues")
    return SimulationResult(
        workload=workload,
        status_N=r["status"].copy(),
        on_time_N=r["on_time"] == 1,
        latency_N=r["end_s"] - r["arrival_s"],
        late_s_N=np.where(answered & (r["on_time"] == 0), _late_s(world), 0.0),
        quality_N=np.where(answered, quality_N, 0.0),
        reward_N=r["reward"].copy(),
        first_reward_N=r["first_reward"].copy(),
        action_N=r["action"].astype(np.int64),
        tier_N=tier_N.astype(np.int64),
        probability_N=r["probability"].copy(),
        explored_N=r["explored"] == 1,
        rescued_N=r["rescued"] == 1,
        predicted_N=r["predicted_s"].copy(),
        stay_N=r["stay"].copy(),
        expected_N=np.where(candidate_N >= 0, r["prompt"] - r["counted"], 0.0),
        hit_N=r["hit"].copy(),
        record_N=world.record_id[:records],
        features_ECF=world.record_CF[:records],
        allowed_EC=world.record_allowed_C[:records],
        record_of_N=r["row"].copy(),
        counters={name: int(clock[name]) for name in names},
    )


def _late_s(world: World) -> NDArray[np.float64]:
    """Returns how late answers were for the event of their deadlines, seconds, at least 0 [N]."""
    r = world.requests
    first_s = r["first_token_s"] + world.candidates["overhead_s"][np.maximum(r["candidate"], 0)]
    last_s = r["end_s"] - (r["output"] - 1) * r["interval_s"]
    event_s = np.where(r["first_token"] != 0, first_s, np.maximum(first_s, last_s))
    late_s: NDArray[np.float64] = np.maximum(0.0, event_s - r["deadline_s"])
    return late_s


def _check(config: SimulationConfig, workload: Workload) -> None:
    tasks = len(config.catalog.tasks)
    if len(workload) and not 0 <= workload.task_N.min() <= workload.task_N.max() < tasks:
        raise SimulationError(f"workload names task {workload.task_N.max()}; there are {tasks}")
    if workload.place_N is not None and not (abs(workload.place_N) <= 1).all():
        raise SimulationError("place_N: priority classes have the places -1, 0 and 1")
    if (np.diff(workload.arrival_N) < 0).any():
        raise SimulationError("arrivals must never fall")
    if config.routers < 1:
        raise SimulationError(f"routers must be at least 1 (got {config.routers})")
    router_N = workload.router_N
    if router_N is not None and not ((router_N >= 0) & (router_N < config.routers)).all():
        raise SimulationError(f"router_N: there are {config.routers} routers, from 0")
    if config.homes is not None and len(config.homes) != config.routers:
        raise SimulationError(f"homes must have {config.routers} entries, one for each router")
    if not config.report_interval_s > 0:
        raise SimulationError("report_interval_s must be above 0")
    if config.mix_T and len(config.mix_T) != len(config.fleet.tiers):
        raise SimulationError(f"mix_T must have {len(config.fleet.tiers)} entries")
    devices = len(config.fleet.devices)
    for event in config.events:
        if not 0 <= event.device < devices:
            raise SimulationError(f"event names device {event.device}; there are {devices}")
        if event.kind not in ("lost", "back", "slow"):
            raise SimulationError(f"event kind {event.kind!r}; known: lost, back, slow")


def _requests(config: SimulationConfig, workload: Workload, seed: int) -> NDArray[np.void]:
    """Returns the request records before anything has happened."""
    requests = np.zeros(len(workload), state.REQUEST)
    tasks, task_N = config.catalog.tasks, workload.task_N
    soft = [t.soft_decay_s if t.reward_kind is RewardKind.SOFT else 0.0 for t in tasks]
    first_N = np.array([t.slo_kind is SloKind.FIRST_TOKEN for t in tasks])[task_N]
    paced = [t.token_interval_s if t.slo_kind is SloKind.PER_TOKEN else 0.0 for t in tasks]
    interval_N = np.array(paced)[task_N]
    decay_N = np.array(soft)[task_N]
    requests["arrival_s"] = workload.arrival_N
    requests["deadline_s"] = workload.arrival_N + workload.slack_N
    # A stream with a late token goes on: its client reads along.
    is_streamed_N = first_N | (interval_N > 0.0)
    grace_s_N = SOFT_GRACE * decay_N
    requests["cancel_s"] = np.where(is_streamed_N, np.inf, requests["deadline_s"] + grace_s_N)
    requests["decay_s"] = decay_N
    requests["prompt"] = workload.prompt_N
    requests["output"] = workload.output_N
    requests["task"] = task_N
    requests["first_token"] = first_N
    requests["interval_s"] = interval_N
    if workload.place_N is not None:
        requests["place"] = workload.place_N
    rng = np.random.default_rng([seed, 1])
    requests["router"] = rng.integers(config.routers, size=len(workload))
    for name in ("candidate", "action", "row", "next", "previous", "seat", "conversation"):
        requests[name] = -1
    if workload.conversation_N is not None:
        requests["conversation"] = workload.conversation_N
        if config.are_conversations_homed:
            homed = workload.conversation_N >= 0
            chosen = workload.conversation_N[homed] % config.routers
            requests["router"][homed] = chosen
    if workload.router_N is not None:
        requests["router"] = workload.router_N
    requests["probability"] = 1.0
    return requests


def _candidates(config: SimulationConfig) -> NDArray[np.void]:
    """Returns the candidate records with their true costs."""
    fleet, arrays = config.fleet, config.fleet.arrays
    candidates = np.zeros(fleet.candidate_count, state.CANDIDATE)
    for c in range(fleet.candidate_count):
        tier, endpoint = fleet.candidate(c)
        profile = config.profiles[endpoint.profile].tiers[tier].scaled(1.0 / endpoint.speed)
        candidates[c]["step_s"] = profile.step_s
        candidates[c]["per_sequence_s"] = profile.per_sequence_s
        candidates[c]["per_prompt_token_s"] = profile.per_prompt_token_s
        candidates[c]["overhead_s"] = profile.overhead_s
        candidates[c]["iteration_cv"] = profile.iteration_cv
        candidates[c]["max_prompt"] = profile.max_prompt_tokens_per_step
        candidates[c]["max_batch"] = profile.max_batch
        room = profile.max_kv_tokens
        candidates[c]["kv_room"] = np.inf if room is None else room
        candidates[c]["prefix_room"] = profile.prefix_cache_tokens
    candidates["device"] = arrays.device_C
    for name in ("head", "tail", "newest", "oldest"):
        candidates[name] = -1
    return candidates


def _seats(config: SimulationConfig, workload: Workload) -> NDArray[np.void]:
    """Returns what routers know of conversations at first: nothing [R, V]."""
    seats = np.zeros((config.routers, workload.conversation_count), state.SEAT)
    seats["candidate"] = -1
    return seats


def _devices(fleet: Fleet) -> NDArray[np.void]:
    devices = np.zeros(len(fleet.devices), state.DEVICE)
    devices["end_s"] = np.inf
    devices["slow"] = 1.0
    devices["active"] = -1
    devices["alive"] = 1
    devices["slots"] = np.bincount(fleet.arrays.device_C, minlength=len(devices))
    return devices


def _slots(fleet: Fleet) -> NDArray[np.int64]:
    """Returns each device's candidate rows [D, S]."""
    count_D = np.bincount(fleet.arrays.device_C, minlength=len(fleet.devices))
    slots_DS = np.full((len(fleet.devices), int(count_D.max(initial=1))), -1, np.int64)
    for d in range(len(fleet.devices)):
        rows = np.flatnonzero(fleet.arrays.device_C == d)
        slots_DS[d, : len(rows)] = rows
    return slots_DS


def _shares(config: SimulationConfig) -> Sequence[Share]:
    """Returns each router's stretch of the devices."""
    if config.homes is not None:
        return config.homes
    return [equal_share(rank, config.routers) for rank in range(config.routers)]


def _homes(config: SimulationConfig) -> NDArray[np.bool_]:
    """Returns what is home to each router [R, C]."""
    layout = Layout(config.fleet)
    return np.array([layout.home_C(layout.stretches(share)) for share in _shares(config)])


def _fleet_events(config: SimulationConfig) -> NDArray[np.void]:
    codes = {"lost": state.EVENT_LOST, "back": state.EVENT_BACK, "slow": state.EVENT_SLOW}
    ordered: Sequence[FleetEvent] = sorted(config.events, key=lambda event: event.time_s)
    rows = [(e.time_s, e.device, codes[e.kind], e.value) for e in ordered]
    return np.array(rows, state.FLEET_EVENT)


def _clock(config: SimulationConfig, seed: int) -> NDArray[np.void]:
    clock = np.zeros(1, state.CLOCK)
    clock["tick_s"] = config.report_interval_s
    clock["delay_s"] = config.staleness_s
    for name, value in config.limits._asdict().items():
        clock[name] = value
    clock["epsilon"] = config.epsilon
    clock["seat_margin"] = config.conversation_margin
    clock["seat_memory_s"] = config.conversation_s
    clock["seat"] = -1
    clock["reserve"] = config.reserve
    clock["stride"] = config.feature_stride
    clock["every"] = int(not config.shortlist)
    for name in ("admission", "rescue", "retry"):
        clock[name] = int(config.safety)
    clock["random"] = np.random.default_rng([seed, 2]).integers(2**63, dtype=np.uint64)
    clock["device_random"] = np.random.default_rng([seed, 3]).integers(2**63, dtype=np.uint64)
    return clock
