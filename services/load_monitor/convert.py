"""What clients send, checked and in the monitor's own terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from router.fleet import EndpointSpec
from router.profile import SOURCES
from router.watch import CLASSES
from services.common.access.plain_text import Refusal
from services.common.addresses import parse_address
from services.common.checks import (
    MAX_COUNT,
    MAX_NAME_CHARACTERS,
    MAX_RATE_RPS,
    Checks,
    is_name,
)
from services.common.convert import PROTOCOL_OF_MESSAGE, endpoint_of_message
from services.common.latency_buckets import BUCKET_COUNT
from services.common.mesh_settings import MOST_TARGET
from services.load_monitor.convert_ratings import (
    LONGEST_ROUTER_ID,
    MOST_TOLD,
    MOST_TOLD_TASKS,
    table_from_message,
)
from services.load_monitor.loads import (
    KINDS,
    NO_ORDER,
    Candidate,
    CandidateOrder,
    Loads,
    RouterLoads,
    Triple,
)
from services.load_monitor.model import (
    DEFAULT_DRAIN_S,
    LEAST_CLAIMED_SPEED,
    LONGEST_AGE_S,
    LONGEST_DRAIN_S,
    MAX_REPORT_BYTES,
    MOST_CLAIMED_SPEED,
    NOTHING_TOLD,
    RouterReport,
    ToldTasks,
)
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as service_pb2
from tiercel.load_monitor.v1 import minutes_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

_LONGEST_PROBLEM = 64
_LONGEST_DETAIL = 200
_SIGNED_SUMS = ("value_gain", "value_sum", "control_value_sum", "effect_total")
_LONGEST_POLICY = 128
_LONGEST_WORD = 64
_LONGEST_MODEL = 128
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_MOST_TIERS = 64
_MOST_TASKS = 1_000
_MOST_PRESSURE = 100.0
_MOST_PROFILES = 32
_MOST_PROFILE_ERRORS = 100
_LONGEST_PROFILE = 200
_LONGEST_RANGE = 100
_MOST_TOKEN_KINDS = 8
"""Routers of a later version may have more than are known here."""
_PROFILE_ERROR = (-1.0, 1_000.0)
_LONGEST_DEADLINE_S = 86_400.0
_MOST_LOADS = 10_000
_MOST_IN_FLIGHT = 1_000_000
_MOST_TOKENS = 10**12
_LARGEST_INT64 = 2**63 - 1
PACKED_FIELDS = (
    "in_flight_counts",
    "waiting_prompt_token_counts",
    "remaining_output_token_counts",
)
TASK_COUNTS = (
    "on_time_count",
    "late_count",
    "refused_count",
    "failed_count",
    "cancelled_count",
)
FLOAT32 = np.dtype("<f4")
_MOST_L1 = np.array([[_MOST_IN_FLIGHT], [_MOST_TOKENS], [_MOST_TOKENS]], np.float64)


def report_from_message(
    load: state_pb2.RouterLoad,
    told: CandidateOrder = NO_ORDER,
    known: CandidateOrder = NO_ORDER,
    told_tasks: ToldTasks = NOTHING_TOLD,
) -> RouterReport:
    """Returns a router's report.

    Args:
        load: The report; what it says of candidates and about once a second is taken out.
        told: The order of packed loads that its stream told before.
        known: The order of the endpoint list, which takes the place of one that is the same.
        told_tasks: What its stream told before of what it tells once a second.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad = Checks("load.")
    _check_size(bad, load.ByteSize())
    # What this version does not know would be handed on to every router.
    load.DiscardUnknownFields()  # type: ignore[attr-defined]
    _check_report(bad, load)
    rated = table_from_message(bad, "task_ratings", load.task_ratings, MOST_TOLD_TASKS, MOST_TOLD)
    age_s = bad.duration("age", load.age, 0.0, LONGEST_AGE_S)
    loads = _loads(bad, load, told, known)
    bad.raise_if_any()
    latencies, outcomes_told, profiles, ratings, table = told_tasks
    if load.task_latencies:
        told_now = state_pb2.RouterLoad(task_latencies=load.task_latencies)
        latencies = told_now.SerializeToString()
    if load.task_outcomes:
        told_now = state_pb2.RouterLoad(task_outcomes=load.task_outcomes)
        outcomes_told = told_now.SerializeToString()
    if load.profiles:
        profiles = state_pb2.RouterLoad(profiles=load.profiles).SerializeToString()
    if load.task_ratings:
        table = rated
        ratings = state_pb2.RouterLoad(task_ratings=load.task_ratings).SerializeToString()
    for field in ("loads", "candidates", "packed_loads", "age"):
        load.ClearField(field)
    for often in ("task_latencies", "task_outcomes", "profiles", "task_ratings"):
        load.ClearField(often)
    tells_long = load.HasField("arrival_rate_long_rps")
    report = RouterReport(
        router_id=load.router_id,
        epoch=load.epoch,
        sequence=load.sequence,
        arrival_rate_rps=load.arrival_rate_rps,
        loads=loads,
        # Messages that stand one after the other are one message.
        encoded=load.SerializeToString() + latencies + outcomes_told + profiles + ratings,
        tasks=ToldTasks(latencies, outcomes_told, profiles, ratings, table),
        arrival_rate_long_rps=load.arrival_rate_long_rps if tells_long else None,
        age_s=age_s,
    )
    # It is handed on by name as well.
    _check_size(bad, report.most_bytes)
    return report


def _check_report(bad: Checks, load: state_pb2.RouterLoad) -> None:
    """Checks all of a report but its age and what it says of candidates."""
    bad.text("router_id", load.router_id, LONGEST_ROUTER_ID, 1)
    bad.count("epoch", load.epoch, _LARGEST_INT64, 1)
    bad.count("sequence", load.sequence, _LARGEST_INT64, 1)
    bad.moment("report_time", load.report_time)
    bad.number("arrival_rate_rps", load.arrival_rate_rps, 0.0, MAX_RATE_RPS)
    bad.number("arrival_rate_long_rps", load.arrival_rate_long_rps, 0.0, MAX_RATE_RPS)
    bad.text("policy", load.policy, _LONGEST_POLICY)
    bad.text("policy_version", load.policy_version, _LONGEST_POLICY)
    bad.count("activation", load.activation, _LARGEST_INT64)
    bad.text("policy_refusal", load.policy_refusal, _LONGEST_POLICY)
    if load.HasField("trial"):
        _check_trial(bad, load.trial)
    if load.HasField("watch"):
        _check_watch(bad, load.watch)
    _check_outcomes(bad, "outcomes", load.outcomes)
    if bad.items("tier_outcomes", load.tier_outcomes, _MOST_TIERS):
        for index, tier in enumerate(load.tier_outcomes):
            bad.name(f"tier_outcomes[{index}].tier", tier.tier)
            _check_outcomes(bad, f"tier_outcomes[{index}].outcomes", tier.outcomes)
    if bad.items("task_attainments", load.task_attainments, _MOST_TASKS):
        for index, task in enumerate(load.task_attainments):
            _check_attainment(bad, f"task_attainments[{index}]", task)
    bad.number("target_pressure", load.target_pressure, 0.0, _MOST_PRESSURE)
    if bad.items("task_latencies", load.task_latencies, MOST_TOLD_TASKS):
        for index, latency in enumerate(load.task_latencies):
            bad.name(f"task_latencies[{index}].task", latency.task)
            check_latency(bad, f"task_latencies[{index}]", latency)
    if bad.items("task_outcomes", load.task_outcomes, MOST_TOLD_TASKS):
        for index, outcomes in enumerate(load.task_outcomes):
            check_outcomes(bad, f"task_outcomes[{index}]", outcomes, _MOST_TIERS)
            _check_token_outcomes(bad, f"task_outcomes[{index}].token_outcomes", outcomes)
    if bad.items("profiles", load.profiles, _MOST_PROFILES):
        for index, profile in enumerate(load.profiles):
            _check_profile(bad, f"profiles[{index}]", profile)


def _check_size(bad: Checks, size: int) -> None:
    limit = f"{MAX_REPORT_BYTES} bytes"
    if not bad.require(size <= MAX_REPORT_BYTES, "", f"has {size} bytes", limit):
        bad.raise_if_any()


def _loads(
    bad: Checks, load: state_pb2.RouterLoad, told: CandidateOrder, known: CandidateOrder
) -> RouterLoads:
    """Returns the load per candidate; only sensible if nothing is wrong."""
    if not load.HasField("packed_loads"):
        is_short = bad.items("loads", load.loads, _MOST_LOADS)
        return RouterLoads.by_name(_named(bad, load.loads, NO_ORDER) if is_short else {})
    order = told
    if load.candidates and bad.items("candidates", load.candidates, _MOST_LOADS):
        order = _order(bad, load.candidates).same_or(known)
    beside: dict[Candidate, Triple] = {}
    if bad.items("loads", load.loads, _MOST_LOADS - len(order)):
        beside = _named(bad, load.loads, order)
    bad.raise_if_any()
    return RouterLoads(order, _packed(bad, load.packed_loads, len(order)), beside)


def _packed(bad: Checks, packed: state_pb2.PackedLoads, candidate_count: int) -> Loads:
    parts = [getattr(packed, field) for field in PACKED_FIELDS]
    expected = FLOAT32.itemsize * candidate_count
    for field, part in zip(PACKED_FIELDS, parts, strict=True):
        problem = f"has {len(part)} bytes"
        bad.require(len(part) == expected, f"packed_loads.{field}", problem, f"{expected} bytes")
    bad.raise_if_any()
    told_LC = np.frombuffer(b"".join(parts), FLOAT32).reshape(KINDS, -1).astype(np.float64)
    # NaN lies nowhere.
    is_good_LC = (told_LC >= 0.0) & (told_LC <= _MOST_L1)
    if not is_good_LC.all():
        for field, is_good_C, most in zip(PACKED_FIELDS, is_good_LC, _MOST_L1.flat, strict=True):
            problem = "has a number out of range"
            bad.require(bool(is_good_C.all()), f"packed_loads.{field}", problem, f"0 to {most:g}")
    bad.raise_if_any()
    return np.rint(told_LC).astype(np.int64)


def _order(bad: Checks, candidates: Sequence[common_pb2.Candidate]) -> CandidateOrder:
    names: dict[Candidate, None] = {}
    for index, candidate in enumerate(candidates):
        name = candidate.tier, candidate.endpoint
        if name in names or not (is_name(name[0]) and is_name(name[1])):
            _check_candidate(bad, f"candidates[{index}]", name, is_twice=name in names)
        names[name] = None
    return CandidateOrder(names)


def _named(
    bad: Checks, loads: Iterable[state_pb2.CandidateLoad], order: CandidateOrder
) -> dict[Candidate, Triple]:
    """Returns loads by name; none of them may be in the order."""
    found: dict[Candidate, Triple] = {}
    for index, entry in enumerate(loads):
        name = entry.candidate.tier, entry.candidate.endpoint
        load = (
            entry.in_flight_count,
            entry.waiting_prompt_token_count,
            entry.remaining_output_token_count,
        )
        is_twice = name in found or name in order.row
        if (
            is_twice
            or not (is_name(name[0]) and is_name(name[1]))
            or not 0 <= load[0] <= _MOST_IN_FLIGHT
            or not 0 <= load[1] <= _MOST_TOKENS
            or not 0 <= load[2] <= _MOST_TOKENS
        ):
            # The exception: naming each check for every entry would cost five times this.
            field = f"loads[{index}]"
            _check_candidate(bad, f"{field}.candidate", name, is_twice=is_twice)
            bad.count(f"{field}.in_flight_count", load[0], _MOST_IN_FLIGHT)
            bad.count(f"{field}.waiting_prompt_token_count", load[1], _MOST_TOKENS)
            bad.count(f"{field}.remaining_output_token_count", load[2], _MOST_TOKENS)
        found[name] = load
    return found


def _check_candidate(bad: Checks, field: str, name: Candidate, *, is_twice: bool) -> None:
    bad.name(f"{field}.tier", name[0])
    bad.name(f"{field}.endpoint", name[1])
    bad.require(not is_twice, field, "is named twice")


def _check_outcomes(bad: Checks, field: str, outcomes: state_pb2.OutcomeCounts) -> None:
    for descriptor, value in outcomes.ListFields():
        bad.number(f"{field}.{descriptor.name}", value, 0, MAX_COUNT)


def _check_attainment(bad: Checks, field: str, task: state_pb2.TaskAttainment) -> None:
    bad.name(f"{field}.task", task.task)
    for name in ("target", "settings_target"):
        bad.number(f"{field}.{name}", getattr(task, name), 0.0, MOST_TARGET)
    bad.count(f"{field}.on_time_count", task.on_time_count)
    bad.count(f"{field}.missed_count", task.missed_count)
    bad.number(f"{field}.delivered_reward_sum", task.delivered_reward_sum, 0.0, MAX_COUNT)
    bad.number(f"{field}.largest_quality", task.largest_quality, 0.0, 1.0)


def check_outcomes(
    bad: Checks, field: str, task: state_pb2.TaskOutcomes | minutes_pb2.TaskMinute, most_tiers: int
) -> None:
    """Checks what became of a task's requests, as a router reports it or a minute keeps it."""
    bad.name(f"{field}.task", task.task)
    for name in TASK_COUNTS:
        bad.count(f"{field}.{name}", getattr(task, name))
    bad.number(f"{field}.delivered_reward_sum", task.delivered_reward_sum, 0.0, MAX_COUNT)
    bad.number(f"{field}.smooth_answer_sum", task.smooth_answer_sum, 0.0, MAX_COUNT)
    if bad.items(f"{field}.answers", task.answers, most_tiers):
        for index, each in enumerate(task.answers):
            bad.name(f"{field}.answers[{index}].tier", each.tier)
            bad.count(f"{field}.answers[{index}].answer_count", each.answer_count)


def _check_token_outcomes(bad: Checks, field: str, task: state_pb2.TaskOutcomes) -> None:
    """Checks what became of a task's requests with deadlines for tokens."""
    if not bad.items(field, task.token_outcomes, _MOST_TOKEN_KINDS):
        return
    kinds: set[int] = set()
    for index, each in enumerate(task.token_outcomes):
        at = f"{field}[{index}]"
        bad.require(each.slo_kind not in kinds, at, "is named twice")
        kinds.add(each.slo_kind)
        bad.count(f"{at}.on_time_count", each.on_time_count)
        bad.count(f"{at}.missed_count", each.missed_count)
        bad.number(f"{at}.smooth_answer_sum", each.smooth_answer_sum, 0.0, MAX_COUNT)


def check_latency(bad: Checks, field: str, task: state_pb2.TaskLatency) -> None:
    """Checks a task's latencies, as a router reports them or a minute keeps them."""
    bad.duration(f"{field}.default_deadline", task.default_deadline, 0.0, _LONGEST_DEADLINE_S)
    bad.count(f"{field}.cut_off_count", task.cut_off_count)
    first, counts = task.first_bucket, task.answer_counts
    if bad.count(f"{field}.first_bucket", first, BUCKET_COUNT - 1):
        bad.items(f"{field}.answer_counts", counts, BUCKET_COUNT - first)
    if counts:
        bad.count(f"{field}.answer_counts", min(counts))
        bad.count(f"{field}.answer_counts", max(counts))


def _check_profile(bad: Checks, field: str, profile: common_pb2.ProfileState) -> None:
    bad.text(f"{field}.profile", profile.profile, _LONGEST_PROFILE, 1)
    known = profile.source in SOURCES
    bad.require(known, f"{field}.source", "is none that is known here", ", ".join(SOURCES))
    bad.text(f"{field}.method", profile.method, _LONGEST_PROFILE)
    if profile.HasField("measured_time"):
        bad.moment(f"{field}.measured_time", profile.measured_time)
    if bad.items(f"{field}.errors", profile.errors, _MOST_PROFILE_ERRORS):
        for index, each in enumerate(profile.errors):
            bad.name(f"{field}.errors[{index}].tier", each.tier)
            bad.text(f"{field}.errors[{index}].range", each.range, _LONGEST_RANGE)
            bad.number(f"{field}.errors[{index}].error", each.error, *_PROFILE_ERROR)
            bad.count(f"{field}.errors[{index}].compared_count", each.compared_count)


def _check_trial(bad: Checks, trial: state_pb2.TrialReport) -> None:
    """Sums are for the trainer to judge; here they are numbers that can be added up."""
    bad.count("trial.rollout", trial.rollout, _LARGEST_INT64, 1)
    bad.text("trial.problem", trial.problem, _LONGEST_PROBLEM)
    bad.text("trial.problem_detail", trial.problem_detail, _LONGEST_DETAIL)
    for field in ("shadow", "canary", "switchback"):
        for descriptor, value in getattr(trial, field).ListFields():
            low = -MAX_COUNT if descriptor.name in _SIGNED_SUMS else 0
            bad.number(f"trial.{field}.{descriptor.name}", value, low, MAX_COUNT)


def _check_watch(bad: Checks, watch: state_pb2.WatchReport) -> None:
    """As with a trial: numbers that can be added up."""
    bad.count("watch.activation", watch.activation, _LARGEST_INT64, 1)
    bad.text("watch.problem", watch.problem, _LONGEST_PROBLEM)
    bad.text("watch.problem_detail", watch.problem_detail, _LONGEST_DETAIL)
    for field in ("before", "after"):
        figures = getattr(watch, field)
        for name in ("decision_count", "decision_s", "fault_count"):
            bad.number(f"watch.{field}.{name}", getattr(figures, name), 0.0, MAX_COUNT)
        if bad.items(f"watch.{field}.classes", figures.classes, CLASSES):
            for index, each in enumerate(figures.classes):
                for descriptor, value in each.ListFields():
                    most = CLASSES - 1 if descriptor.name == "load_class" else MAX_COUNT
                    bad.count(f"watch.{field}.classes[{index}].{descriptor.name}", value, most)


def endpoint_from_message(
    message: common_pb2.Endpoint,
    tiers: tuple[str, ...] | None,
    refusal: Callable[[str, str], Refusal | None],
) -> EndpointSpec:
    """Returns the definition of an endpoint.

    Args:
        message: The definition as a client sent it.
        tiers: The mesh's tiers; None takes any.
        refusal: Tells by field (`address`, `metrics_address`, `http_address`) and address why an
            endpoint may not have it.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad = Checks("endpoint.")
    bad.name("endpoint", message.endpoint)
    for field in ("device", "profile"):
        text = getattr(message, field)
        if bad.text(field, text, _LONGEST_WORD):
            good = _WORD.fullmatch(text) is not None
            bad.require(good, field, "has other characters", "characters of [A-Za-z0-9_.-]")
    for field in ("address", "metrics_address", "http_address"):
        text = getattr(message, field)
        if (text or field == "address") and bad.require(
            _is_address(text), field, "is no address", "host:port"
        ):
            refused = refusal(field, text)
            if refused is not None:
                bad.require(False, field, refused.problem, refused.allowed)
    known = message.protocol in PROTOCOL_OF_MESSAGE
    bad.require(known, "protocol", "is none that is known here", "TRITON, OPENAI")
    if message.speed != 0.0:  # 0 means that nothing is claimed
        bad.number("speed", message.speed, LEAST_CLAIMED_SPEED, MOST_CLAIMED_SPEED)
    most = _MOST_TIERS if tiers is None else len(tiers)
    if bad.items("tiers", message.tiers, most, 1):
        _check_tiers(bad, message.tiers, tiers)
    bad.raise_if_any()
    return endpoint_of_message(message)


def _check_tiers(
    bad: Checks, served: Iterable[common_pb2.ServedTier], tiers: tuple[str, ...] | None
) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(served):
        field = f"tiers[{index}]"
        if bad.name(f"{field}.tier", entry.tier):
            bad.require(entry.tier not in seen, f"{field}.tier", "is named twice")
            is_known = tiers is None or entry.tier in tiers
            bad.require(is_known, f"{field}.tier", "is no tier of the mesh", ", ".join(tiers or ()))
        seen.add(entry.tier)
        bad.text(f"{field}.model_name", entry.model_name, _LONGEST_MODEL)


def endpoint_name_of(request: service_pb2.RemoveEndpointRequest) -> str:
    """Returns the name of the endpoint to remove; InvalidArgumentError if it can be none."""
    bad = Checks()
    bad.text("endpoint", request.endpoint, MAX_NAME_CHARACTERS, 1)
    bad.raise_if_any()
    return request.endpoint


def watcher_of(request: service_pb2.WatchSystemStateRequest) -> tuple[int, str, int]:
    """Returns the number a watcher has, and name and epoch of its router; "" and 0 if it is none.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad = Checks()
    bad.count("after_version", request.after_version, _LARGEST_INT64)
    bad.text("router_id", request.router_id, LONGEST_ROUTER_ID)
    is_router = bool(request.router_id)
    bad.count("epoch", request.epoch, _LARGEST_INT64 if is_router else 0, int(is_router))
    bad.raise_if_any()
    return request.after_version, request.router_id, request.epoch


def span_from_message(request: service_pb2.ListMinutesRequest, now_s: float) -> tuple[float, float]:
    """Returns beginning and end of the time asked for, seconds since 1970, the end at most now.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad = Checks()
    start_s, end_s = 0.0, now_s
    if request.HasField("start_time"):
        start_s = bad.moment("start_time", request.start_time)
    if request.HasField("end_time"):
        end_s = min(end_s, bad.moment("end_time", request.end_time))
    bad.raise_if_any()
    return start_s, end_s


def drain_from_message(request: service_pb2.RemoveEndpointRequest) -> float:
    """Returns how long an endpoint may drain, seconds; InvalidArgumentError if out of range."""
    if not request.HasField("drain"):
        return DEFAULT_DRAIN_S
    bad = Checks()
    drain_s = bad.duration("drain", request.drain, 0.0, LONGEST_DRAIN_S)
    bad.raise_if_any()
    return drain_s


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
