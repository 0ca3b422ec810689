"""Messages of the monitor to its own terms and back."""

from __future__ import annotations

import re
from collections.abc import Iterable

from router.fleet import EndpointSpec
from services.common.addresses import parse_address
from services.common.checks import (
    MAX_COUNT,
    MAX_NAME_CHARACTERS,
    MAX_RATE_RPS,
    Checks,
    is_name,
)
from services.common.convert import endpoint_of_message, message_of_endpoint
from services.common.errors import InvalidArgumentError
from services.common.times import duration_of, timestamp_of
from services.load_monitor.model import (
    DEFAULT_DRAIN_S,
    LEAST_CLAIMED_SPEED,
    LONGEST_DRAIN_S,
    MAX_REPORT_BYTES,
    MAX_STATE_BYTES,
    MOST_CLAIMED_SPEED,
    EndpointView,
    Health,
    Picture,
    Publication,
    RouterReport,
    TierGauge,
)
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as service_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

_LONGEST_ROUTER_ID = 128
_LONGEST_POLICY = 128
_LONGEST_WORD = 64
_LONGEST_MODEL = 128
_WORD = re.compile(r"[A-Za-z0-9_.-]*")
_MOST_TIERS = 64
_MOST_LOADS = 10_000
_MOST_IN_FLIGHT = 1_000_000
_MOST_TOKENS = 10**12
_LARGEST_INT64 = 2**63 - 1
_LARGEST_VERSION = 2**52

HEALTH_TO_MESSAGE = {
    Health.UNKNOWN: common_pb2.ENDPOINT_HEALTH_UNSPECIFIED,
    Health.READY: common_pb2.ENDPOINT_HEALTH_READY,
    Health.PARTIAL: common_pb2.ENDPOINT_HEALTH_PARTIAL,
    Health.DOWN: common_pb2.ENDPOINT_HEALTH_DOWN,
    Health.DRAINING: common_pb2.ENDPOINT_HEALTH_DRAINING,
}


def report_from_message(load: state_pb2.RouterLoad) -> RouterReport:
    """Returns a router's report.

    Raises:
        InvalidArgumentError: Naming what is wrong.
    """
    bad = Checks("load.")
    size = load.ByteSize()
    if not bad.require(
        size <= MAX_REPORT_BYTES, "", f"has {size} bytes", f"{MAX_REPORT_BYTES} bytes"
    ):
        bad.raise_if_any()
    # What this version does not know would be handed on to every router.
    load.DiscardUnknownFields()  # type: ignore[attr-defined]
    bad.text("router_id", load.router_id, _LONGEST_ROUTER_ID, 1)
    bad.count("epoch", load.epoch, _LARGEST_INT64, 1)
    bad.count("sequence", load.sequence, _LARGEST_INT64, 1)
    bad.moment("report_time", load.report_time)
    bad.number("arrival_rate_rps", load.arrival_rate_rps, 0.0, MAX_RATE_RPS)
    bad.text("policy", load.policy, _LONGEST_POLICY)
    bad.text("policy_version", load.policy_version, _LONGEST_POLICY)
    bad.count("activation", load.activation, _LARGEST_INT64)
    bad.text("policy_refusal", load.policy_refusal, _LONGEST_POLICY)
    _check_outcomes(bad, "outcomes", load.outcomes)
    if bad.items("tier_outcomes", load.tier_outcomes, _MOST_TIERS):
        for index, tier in enumerate(load.tier_outcomes):
            bad.name(f"tier_outcomes[{index}].tier", tier.tier)
            _check_outcomes(bad, f"tier_outcomes[{index}].outcomes", tier.outcomes)
    if bad.items("loads", load.loads, _MOST_LOADS):
        _check_loads(bad, load.loads)
    bad.raise_if_any()
    return RouterReport(
        router_id=load.router_id,
        epoch=load.epoch,
        sequence=load.sequence,
        arrival_rate_rps=load.arrival_rate_rps,
        in_flight=tuple(
            (entry.candidate.tier, entry.candidate.endpoint, entry.in_flight_count)
            for entry in load.loads
        ),
        encoded=load.SerializeToString(),
    )


def _check_loads(bad: Checks, loads: Iterable[state_pb2.CandidateLoad]) -> None:
    seen: set[tuple[str, str]] = set()
    for index, entry in enumerate(loads):
        tier, endpoint = entry.candidate.tier, entry.candidate.endpoint
        if (
            is_name(tier)
            and is_name(endpoint)
            and (tier, endpoint) not in seen
            and 0 <= entry.in_flight_count <= _MOST_IN_FLIGHT
            and 0 <= entry.waiting_prompt_token_count <= _MOST_TOKENS
            and 0 <= entry.remaining_output_token_count <= _MOST_TOKENS
        ):
            # The rule, ten times a second and router: naming each check would cost five times this.
            seen.add((tier, endpoint))
            continue
        field = f"loads[{index}]"
        bad.name(f"{field}.candidate.tier", tier)
        bad.name(f"{field}.candidate.endpoint", endpoint)
        bad.require((tier, endpoint) not in seen, f"{field}.candidate", "is named twice")
        bad.count(f"{field}.in_flight_count", entry.in_flight_count, _MOST_IN_FLIGHT)
        for name in ("waiting_prompt_token_count", "remaining_output_token_count"):
            bad.count(f"{field}.{name}", getattr(entry, name), _MOST_TOKENS)


def _check_outcomes(bad: Checks, field: str, outcomes: state_pb2.OutcomeCounts) -> None:
    for descriptor, value in outcomes.ListFields():
        bad.number(f"{field}.{descriptor.name}", value, 0, MAX_COUNT)


def endpoint_from_message(
    message: common_pb2.Endpoint, tiers: tuple[str, ...] | None
) -> EndpointSpec:
    """Returns the definition of an endpoint.

    Args:
        message: The definition as a client sent it.
        tiers: The mesh's tiers; None takes any.

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
    for field in ("address", "metrics_address"):
        text = getattr(message, field)
        if text or field == "address":
            bad.require(_is_address(text), field, "is no address", "host:port")
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


def after_version_of(request: service_pb2.WatchSystemStateRequest) -> int:
    """Returns the number a watcher has; InvalidArgumentError if it is negative."""
    bad = Checks()
    bad.count("after_version", request.after_version, _LARGEST_INT64)
    bad.raise_if_any()
    return request.after_version


def drain_from_message(request: service_pb2.RemoveEndpointRequest) -> float:
    """Returns how long an endpoint may drain, seconds; InvalidArgumentError if out of range."""
    if not request.HasField("drain"):
        return DEFAULT_DRAIN_S
    bad = Checks()
    drain_s = bad.duration("drain", request.drain, 0.0, LONGEST_DRAIN_S)
    bad.raise_if_any()
    return drain_s


def encode_picture(picture: Picture) -> Publication:
    """Returns a picture as a serialized SystemState."""
    state = state_pb2.SystemState(
        version=picture.version,
        monitor_id=picture.monitor_id,
        publish_time=timestamp_of(picture.publish_wall_ns),
        arrival_rate_short_rps=picture.arrival_rate_short_rps,
        arrival_rate_long_rps=picture.arrival_rate_long_rps,
        topology_version=picture.topology_version,
        endpoints=[_endpoint_state(view) for view in picture.endpoints],
    )
    for report in picture.routers:
        state.routers.add().ParseFromString(report.encoded)
    return Publication(picture.version, state.SerializeToString())


def decode_publication(payload: bytes) -> Publication:
    """Returns a publication another monitor stored; ValueError if the bytes are something else."""
    state = _parsed_state(payload)
    # Counting goes on above it: a number at the end of what a message holds leaves no room.
    if not 0 < state.version <= _LARGEST_VERSION:
        raise ValueError(f"version {state.version} is not within 1 and {_LARGEST_VERSION}")
    if len(payload) > MAX_STATE_BYTES:
        raise ValueError(f"a state of {len(payload)} bytes (limit: {MAX_STATE_BYTES})")
    return Publication(state.version, payload)


def encode_reports(reports: tuple[RouterReport, ...]) -> bytes:
    """Returns reports in the form monitors hand to each other."""
    state = state_pb2.SystemState()
    for report in reports:
        state.routers.add().ParseFromString(report.encoded)
    return state.SerializeToString()


def decode_reports(payload: bytes) -> list[RouterReport]:
    """Returns what `encode_reports` made; ValueError if the bytes are something else."""
    try:
        return [report_from_message(load) for load in _parsed_state(payload).routers]
    except InvalidArgumentError as error:
        raise ValueError(f"reports of a peer are wrong: {error}") from error


def state_from_publication(publication: Publication) -> state_pb2.SystemState:
    """Returns the message of a publication."""
    return state_pb2.SystemState.FromString(publication.payload)


def _parsed_state(payload: bytes) -> state_pb2.SystemState:
    try:
        return state_pb2.SystemState.FromString(payload)
    except Exception as error:  # the parser's own error type is no part of its interface
        raise ValueError(f"not a system state: {error}") from error


def _endpoint_state(view: EndpointView) -> state_pb2.EndpointState:
    return state_pb2.EndpointState(
        endpoint=message_of_endpoint(view.spec),
        health=HEALTH_TO_MESSAGE[view.health],
        ramp_weight=view.ramp_weight,
        probe_time=timestamp_of(view.probe_wall_ns) if view.probe_wall_ns else None,
        gauges=[_tier_gauges(gauge) for gauge in view.gauges],
        reason=view.reason,
    )


def _tier_gauges(gauge: TierGauge) -> state_pb2.TierGauges:
    return state_pb2.TierGauges(
        tier=gauge.tier,
        ready=gauge.ready,
        queue_depth=gauge.queue_depth,
        success_count=gauge.success_count,
        failure_count=gauge.failure_count,
        mean_queue=None if gauge.mean_queue_s is None else duration_of(gauge.mean_queue_s),
        mean_compute=None if gauge.mean_compute_s is None else duration_of(gauge.mean_compute_s),
        kind=gauge.kind,
    )


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
