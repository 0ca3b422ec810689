"""System states in, traffic reports out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from numpy.typing import NDArray

from router.home import WHOLE, Share
from router.profile_error import briefest
from router.quality import Rating
from router.types import Task
from router.watch import REQUESTS, Figures, WatchReport
from services.common import slo_kinds
from services.common.convert import endpoint_of_message
from services.common.mesh_settings import MOST_TARGET
from services.common.ratings import read_ratings
from services.common.times import duration_of, seconds_of, timestamp_of
from services.router_inference.policy.trial_counts import TrialTold
from services.router_inference.records.accounts import (
    REWARD,
    SMOOTH,
    TIERS,
    Counts,
    TokenEnds,
    token_ends,
)
from services.router_inference.records.attainment import Attainment
from services.router_inference.records.router_counts import MOST_TASKS, RouterCounts
from services.router_inference.view.load import LoadView
from services.router_inference.view.profiles import ProfileStatus
from services.router_inference.view.seen import (
    REASON_DRAINING,
    SeenEndpoint,
    SeenRatings,
    SeenState,
    SeenTarget,
)
from services.router_inference.view.view import View
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2, system_state_pb2

Candidate = tuple[str, str]

# What a mesh of the most routers could claim.
_MOST_MESH_RPS = 1e15
_MOST_LOAD = 1e18
_LONGEST_AGE_S = 3_600.0
_PACKED_FIELDS = (
    "in_flight_counts",
    "waiting_prompt_token_counts",
    "remaining_output_token_counts",
)
_FLOAT32 = np.dtype("<f4")
# A report has 256 KiB; what is not for candidates is below 64.
_MOST_CANDIDATES = 10_000
_MOST_CANDIDATES_BYTES = 192 * 1024
_CANDIDATE_BYTES = 20
_MOST_ERRORS = 1_000
# Of all profiles in a report together, which has to stay small.
_MOST_REPORTED_PROFILES = 32
_MOST_REPORTED_ERRORS = 100


class StateReader:
    """Reads the states of one watch, each together with what the ones before it told.

    Args:
        router_id: this router, whose own load is no other's.
        epoch: its process.
    """

    def __init__(self, router_id: str, epoch: int) -> None:
        """Starts before the first state."""
        self._router_id = router_id
        self._epoch = epoch
        self._topology_version = 0
        self._endpoints: tuple[SeenEndpoint, ...] = ()
        self._candidates: tuple[Candidate, ...] = ()

    def read(self, response: load_monitor_service_pb2.WatchSystemStateResponse) -> SeenState:
        """Returns the next state.

        Raises:
            ValueError: It does not go with what the stream told before.
        """
        if response.HasField("others"):
            return self._read_others(response.others)
        return self._read_whole(response.state)

    def _read_others(self, message: system_state_pb2.OtherRoutersState) -> SeenState:
        if message.is_whole_list:
            self._topology_version = message.topology_version
            self._use(tuple(map(_endpoint, message.endpoints)))
        elif message.topology_version != self._topology_version:
            raise ValueError(
                f"a state for list {message.topology_version}, not {self._topology_version}"
            )
        elif message.endpoints:
            known = {each.spec.name: each for each in self._endpoints}
            changed = {state.endpoint.endpoint: _endpoint(state) for state in message.endpoints}
            if not changed.keys() <= known.keys():
                raise ValueError("a state with endpoints that are not in its list")
            self._use(tuple((known | changed).values()))
        loads = message.loads
        parts = [getattr(loads, field) for field in _PACKED_FIELDS]
        expected = [len(self._candidates) * _FLOAT32.itemsize] * len(parts)
        if [len(part) for part in parts] != expected:
            raise ValueError(f"a state whose loads do not fit {len(self._candidates)} candidates")
        others_LC = np.frombuffer(b"".join(parts), _FLOAT32).reshape(len(parts), -1)
        # NaN lies nowhere.
        if not ((others_LC >= 0.0) & (others_LC <= _MOST_LOAD)).all():
            raise ValueError("a state with loads out of range")
        tells_long = message.HasField("others_arrival_rate_long_rps")
        long_rps = message.others_arrival_rate_long_rps
        return SeenState(
            topology_version=message.topology_version,
            endpoints=self._endpoints,
            candidates=self._candidates,
            others_LC=others_LC.astype(np.float64),
            own_sequence=message.own_sequence,
            other_rate_rps=_rate(message.others_arrival_rate_rps),
            rate_long_rps=_rate(message.arrival_rate_long_rps),
            targets=_targets(message.targets) if message.HasField("targets") else None,
            home=_home(message.home) if message.HasField("home") else WHOLE,
            others_age_s=_age(message.others_age),
            others_long_rps=_rate(long_rps) if tells_long else None,
            ratings=_seen_ratings(message) if message.HasField("ratings") else None,
        )

    def _read_whole(self, message: system_state_pb2.SystemState) -> SeenState:
        """Reads a state of a monitor of the last release.

        An entry of this router's name and another epoch is another process's load: one that was
        there first, or an earlier one of this router, whose entry the first own report replaces.
        """
        self._topology_version = message.topology_version
        self._use(tuple(map(_endpoint, message.endpoints)))
        row = {candidate: number for number, candidate in enumerate(self._candidates)}
        others_LC = np.zeros((len(_PACKED_FIELDS), len(row)))
        other_rate_rps, own_sequence = 0.0, 0
        for router in message.routers:
            if router.router_id == self._router_id and router.epoch == self._epoch:
                own_sequence = router.sequence
                continue
            other_rate_rps += _rate(router.arrival_rate_rps)
            for load in router.loads:
                column = row.get((load.candidate.tier, load.candidate.endpoint))
                if column is not None:
                    others_LC[:, column] += (
                        load.in_flight_count,
                        load.waiting_prompt_token_count,
                        load.remaining_output_token_count,
                    )
        return SeenState(
            topology_version=message.topology_version,
            endpoints=self._endpoints,
            candidates=self._candidates,
            others_LC=others_LC,
            own_sequence=own_sequence,
            other_rate_rps=other_rate_rps,
            rate_long_rps=_rate(message.arrival_rate_long_rps),
        )

    def _use(self, endpoints: tuple[SeenEndpoint, ...]) -> None:
        candidates = tuple(
            (tier, each.spec.name) for each in endpoints for tier in each.spec.models
        )
        if len(set(candidates)) < len(candidates):
            raise ValueError("a state with a candidate twice")
        self._endpoints = endpoints
        if candidates != self._candidates:
            self._candidates = candidates


def _rate(rate_rps: float) -> float:
    """Returns a rate that can be added and divided by, 0 for what is none."""
    return rate_rps if 0.0 <= rate_rps <= _MOST_MESH_RPS else 0.0


def _age(message: Duration) -> float:
    """Returns an age, none for what is none: then it counts from when the state came."""
    age_s = seconds_of(message)
    return age_s if 0.0 <= age_s <= _LONGEST_AGE_S else 0.0


def _home(message: system_state_pb2.HomeShare) -> Share:
    """Returns a stretch, everything for what is none; NaN lies nowhere."""
    is_stretch = 0.0 <= message.start <= message.end <= 1.0
    return Share(message.start, message.end) if is_stretch else WHOLE


def _seen_ratings(message: system_state_pb2.OtherRoutersState) -> SeenRatings:
    told = message.ratings
    return SeenRatings(
        read_ratings(told.tasks), read_ratings(told.own_tasks), bool(message.own_sequence)
    )


def _targets(message: system_state_pb2.TargetOverrides) -> tuple[SeenTarget, ...]:
    return tuple(
        SeenTarget(
            each.task,
            min(MOST_TARGET, max(0.0, each.target)),
            each.set_by,
            each.expire_time.ToNanoseconds() if each.HasField("expire_time") else 0,
            each.set_time.ToNanoseconds(),
        )
        for each in message.overrides
        if each.HasField("target")
    )


def _endpoint(state: system_state_pb2.EndpointState) -> SeenEndpoint:
    spec = endpoint_of_message(state.endpoint)
    # Rounded, so that a drifting estimate does not rebuild the fleet ten times a second.
    # A claim never makes a device count as faster than its profile: answers tell that.
    spec = replace(spec, speed=min(1.0, max(0.01, round(spec.speed, 2))))
    health = state.health
    weight, reason = state.ramp_weight, state.reason
    ready = frozenset(spec.models)
    if health == common_pb2.ENDPOINT_HEALTH_UNSPECIFIED:
        # A monitor that has just started has not probed yet; until it has, the own breakers decide.
        weight = 1.0
    elif health == common_pb2.ENDPOINT_HEALTH_PARTIAL:
        ready = frozenset(gauge.tier for gauge in state.gauges if gauge.ready)
    elif health == common_pb2.ENDPOINT_HEALTH_DOWN:
        weight, reason = 0.0, reason or "DOWN"
    elif health == common_pb2.ENDPOINT_HEALTH_DRAINING:
        weight, reason = 0.0, REASON_DRAINING
    return SeenEndpoint(spec, min(1.0, max(0.0, weight)), ready, reason)


class LoadWriter:
    """Writes the load into the reports of one stream, which is told the candidates' order once."""

    def __init__(self) -> None:
        """Starts before the first report."""
        self._told: tuple[Candidate, ...] | None = None
        self._fits = False

    def write(self, message: system_state_pb2.RouterLoad, load: LoadView, *, packs: bool) -> None:
        """Writes what a router has outstanding.

        Args:
            message: the report.
            load: the load.
            packs: whether the monitor knows packed loads.
        """
        if not packs or not self._tell(message, load.candidates):
            self._write_named(message, load.totals())
            return
        rows = np.maximum(np.rint(np.stack(load.own())), 0.0).astype(_FLOAT32)
        for field, row in zip(_PACKED_FIELDS, rows, strict=True):
            setattr(message.packed_loads, field, row.tobytes())
        self._write_named(message, load.ledger.left())

    def _tell(
        self, message: system_state_pb2.RouterLoad, candidates: tuple[Candidate, ...]
    ) -> bool:
        """Tells the order where it is new; returns whether it fits a report."""
        if candidates is not self._told:
            self._told = candidates
            size = sum(len(tier) + len(endpoint) for tier, endpoint in candidates)
            size += _CANDIDATE_BYTES * len(candidates)
            self._fits = len(candidates) <= _MOST_CANDIDATES and size <= _MOST_CANDIDATES_BYTES
            if self._fits:
                for tier, endpoint in candidates:
                    message.candidates.add(tier=tier, endpoint=endpoint)
        return self._fits

    def _write_named(
        self,
        message: system_state_pb2.RouterLoad,
        loads: Mapping[Candidate, tuple[float, float, float]],
    ) -> None:
        for (tier, endpoint), (in_flight, prompt, output) in loads.items():
            message.loads.add(
                candidate=common_pb2.Candidate(tier=tier, endpoint=endpoint),
                in_flight_count=round(in_flight),
                waiting_prompt_token_count=round(prompt),
                remaining_output_token_count=round(output),
            )


def router_load(
    *,
    router_id: str,
    epoch: int,
    sequence: int,
    view: View,
    counts: RouterCounts,
    policy: str,
    policy_version: str,
    activation: int,
    policy_refusal: str,
    attainments: Sequence[Attainment],
    latencies: Mapping[str, NDArray[np.float64]],
    tells_tasks: bool,
    target_pressure: float,
    trial: TrialTold | None,
    watch: WatchReport | None,
    learns_quality: bool,
    ratings: Mapping[tuple[str, str], Rating],
    loads: LoadWriter,
    packs: bool,
    now_s: float,
    now_ns: int,
) -> system_state_pb2.RouterLoad:
    """Returns what this router reports of itself.

    With `tells_tasks` that is also how requests ended by task, and how profiles do.
    """
    whole, by_tier = counts.read()
    short_rps, long_rps = view.traffic.own_rates_rps(now_s)
    message = system_state_pb2.RouterLoad(
        router_id=router_id,
        epoch=epoch,
        sequence=sequence,
        report_time=timestamp_of(now_ns),
        arrival_rate_rps=short_rps,
        arrival_rate_long_rps=long_rps,
        policy=policy,
        policy_version=policy_version,
        activation=activation,
        policy_refusal=policy_refusal,
        outcomes=_counts(whole),
        target_pressure=target_pressure,
        learns_quality=learns_quality,
    )
    if trial is not None:
        message.trial.CopyFrom(trial_report(trial))
    if watch is not None:
        message.watch.CopyFrom(watch_report(watch))
    loads.write(message, view.load, packs=packs)
    for tier, each in by_tier.items():
        message.tier_outcomes.add(tier=tier, outcomes=_counts(each))
    catalog = view.fleet.catalog
    largest = {task.name: catalog.quality_KT[k, -1] for k, task in enumerate(catalog.tasks)}
    for task in attainments:
        message.task_attainments.add(
            task=task.task,
            target=task.target,
            settings_target=task.settings_target,
            on_time_count=task.on_time,
            missed_count=task.missed,
            delivered_reward_sum=task.reward,
            largest_quality=largest.get(task.task, 0.0),
        )
    if tells_tasks:
        _write_outcomes(message, counts)
        _write_profiles(message, view.fleet.errors.read(now_s))
    _write_ratings(message, ratings)
    for known in catalog.tasks:
        if known.name in latencies:
            _write_latency(message.task_latencies.add(), known, latencies[known.name])
    return message


def _write_outcomes(message: system_state_pb2.RouterLoad, counts: RouterCounts) -> None:
    rows = counts.by_task()[:MOST_TASKS].tolist()
    for task, row in zip(counts.tasks, rows, strict=False):
        on_time, late, refused, failed, cancelled = map(round, row[:REWARD])
        outcomes = message.task_outcomes.add(
            task=task,
            on_time_count=on_time,
            late_count=late,
            refused_count=refused,
            failed_count=failed,
            cancelled_count=cancelled,
            delivered_reward_sum=row[REWARD],
            smooth_answer_sum=row[SMOOTH],
        )
        outcomes.token_outcomes.extend(map(token_outcomes, token_ends(row)))
        for tier, count in zip(counts.tiers, row[TIERS:], strict=True):
            if count:
                outcomes.answers.add(tier=tier, answer_count=round(count))


def token_outcomes(ends: TokenEnds) -> common_pb2.TokenOutcomes:
    """Returns what became of requests with a deadline for tokens as a message."""
    return common_pb2.TokenOutcomes(
        slo_kind=slo_kinds.MESSAGE[ends.kind],
        on_time_count=ends.on_time,
        missed_count=ends.missed,
        smooth_answer_sum=ends.smooth,
    )


def _write_latency(
    message: system_state_pb2.TaskLatency, task: Task, counts: NDArray[np.float64]
) -> None:
    """Writes a row of `Accounts.latencies`, empty buckets at both ends left out."""
    answers = counts[:-1]
    filled = np.flatnonzero(answers)
    first, end = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    message.task = task.name
    message.default_deadline.CopyFrom(duration_of(task.default_deadline_s))
    message.slo_kind = slo_kinds.MESSAGE[task.slo_kind]
    message.answer_counts.extend(answers[first:end].astype(np.int64).tolist())
    message.first_bucket = first
    message.cut_off_count = int(counts[-1])


def _write_profiles(
    message: system_state_pb2.RouterLoad, profiles: Sequence[ProfileStatus]
) -> None:
    """Writes profiles: of each tier all answers, and the range that is farthest off."""
    left = _MOST_REPORTED_ERRORS
    for status in profiles[:_MOST_REPORTED_PROFILES]:
        briefly = replace(status, errors=briefest(status.errors)[:left])
        left -= len(briefly.errors)
        message.profiles.append(profile_state(briefly))


def _write_ratings(
    message: system_state_pb2.RouterLoad, told: Mapping[tuple[str, str], Rating]
) -> None:
    by_task: dict[str, system_state_pb2.TaskRatings] = {}
    for (task, tier), rating in told.items():
        if task not in by_task:
            by_task[task] = message.task_ratings.add(task=task)
        by_task[task].tiers.add(
            tier=tier, rating_count=rating.answers, mean=rating.mean, mean_square=rating.square
        )


def profile_state(status: ProfileStatus) -> common_pb2.ProfileState:
    """Returns a profile in use as a message."""
    profile = status.profile
    message = common_pb2.ProfileState(
        profile=profile.name, source=profile.source, method=profile.method
    )
    if profile.measured_s is not None:
        message.measured_time.FromSeconds(int(profile.measured_s))
    for each in status.errors[:_MOST_ERRORS]:
        message.errors.add(
            tier=each.tier, range=each.range, error=each.error, compared_count=round(each.answers)
        )
    return message


def _counts(counts: Counts) -> system_state_pb2.OutcomeCounts:
    return system_state_pb2.OutcomeCounts(
        offered_count=counts.offered,
        on_time_count=counts.on_time,
        late_count=counts.late,
        refused_count=counts.refused,
        cancelled_count=counts.cancelled,
        failed_count=counts.failed,
        delivered_reward_sum=counts.delivered_reward_sum,
        invalid_count=counts.invalid,
    )


def trial_report(told: TrialTold) -> system_state_pb2.TrialReport:
    """Returns what a router has seen of the policy on trial."""
    report = system_state_pb2.TrialReport(
        rollout=told.rollout,
        problem=told.problem[:64],
        problem_detail=told.detail[:200],
        is_canary=told.is_canary,
    )
    part: Any = report.canary if told.is_canary else report.shadow
    if "period" in told.numbers:
        part = report.switchback
    part.SetInParent()
    for name, value in told.numbers.items():
        is_whole = name.endswith("_count") or name == "period"
        setattr(part, name, round(value) if is_whole else value)
    return report


def watch_report(told: WatchReport) -> system_state_pb2.WatchReport:
    """Returns what a router has seen of the policy that is watched."""
    return system_state_pb2.WatchReport(
        activation=told.activation,
        problem=told.problem[:64],
        problem_detail=told.detail[:200],
        before=_figures(told.before),
        after=_figures(told.after),
    )


def _figures(figures: Figures) -> system_state_pb2.PolicyFigures:
    message = system_state_pb2.PolicyFigures(
        decision_count=round(figures.decisions),
        decision_s=figures.decision_s,
        fault_count=round(figures.faults),
    )
    for at in np.flatnonzero(figures.ends_LE[:, REQUESTS]).tolist():
        requests, missed, failed, slow = figures.ends_LE[at].tolist()
        message.classes.add(
            load_class=at,
            request_count=round(requests),
            missed_count=round(missed),
            failed_count=round(failed),
            slow_count=round(slow),
        )
    return message
