"""Messages of the monitor to its own terms and back."""

from __future__ import annotations

import math

from router.fleet import EndpointSpec
from services.common.addresses import parse_address
from services.common.convert import endpoint_of_message, message_of_endpoint
from services.common.errors import InvalidArgumentError
from services.common.times import duration_of, seconds_of, timestamp_of
from services.load_monitor.model import (
    DEFAULT_DRAIN_S,
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

_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_LONGEST_NAME = 64
_LONGEST_ROUTER_ID = 128
_LONGEST_DRAIN_S = 3600.0
_MOST_LOADS = 10_000
_LARGEST_REPORT_BYTES = 256 * 1024

HEALTH_TO_MESSAGE = {
    Health.UNKNOWN: common_pb2.ENDPOINT_HEALTH_UNSPECIFIED,
    Health.READY: common_pb2.ENDPOINT_HEALTH_READY,
    Health.PARTIAL: common_pb2.ENDPOINT_HEALTH_PARTIAL,
    Health.DOWN: common_pb2.ENDPOINT_HEALTH_DOWN,
    Health.DRAINING: common_pb2.ENDPOINT_HEALTH_DRAINING,
}


class _Violations:
    """Collects what is wrong with a request, so that all of it is answered at once."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def check(self, good: bool, field: str, problem: str) -> None:
        if not good:
            self._found.append((field, problem))

    def raise_if_any(self) -> None:
        if self._found:
            (field, problem), *more = self._found
            raise InvalidArgumentError(field, problem, more=more)


def report_from_message(load: state_pb2.RouterLoad) -> RouterReport:
    """Returns a router's report.

    Raises:
        InvalidArgumentError: Naming every field that is wrong.
    """
    bad = _Violations()
    bad.check(
        0 < len(load.router_id) <= _LONGEST_ROUTER_ID,
        "load.router_id",
        f"must have 1 to {_LONGEST_ROUTER_ID} characters",
    )
    bad.check(
        load.ByteSize() <= _LARGEST_REPORT_BYTES, "load", f"at most {_LARGEST_REPORT_BYTES} bytes"
    )
    bad.check(load.epoch > 0, "load.epoch", "must be above 0")
    bad.check(load.sequence > 0, "load.sequence", "must be above 0")
    rate = load.arrival_rate_rps
    bad.check(
        math.isfinite(rate) and rate >= 0.0, "load.arrival_rate_rps", "must be finite, at least 0"
    )
    bad.check(len(load.loads) <= _MOST_LOADS, "load.loads", f"at most {_MOST_LOADS} candidates")
    for index, entry in enumerate(load.loads):
        named = bool(entry.candidate.tier and entry.candidate.endpoint)
        bad.check(named, f"load.loads[{index}].candidate", "must name a tier and an endpoint")
        lowest = min(
            entry.in_flight_count,
            entry.waiting_prompt_token_count,
            entry.remaining_output_token_count,
        )
        bad.check(lowest >= 0, f"load.loads[{index}]", "counts must be at least 0")
    bad.raise_if_any()
    return RouterReport(
        router_id=load.router_id,
        epoch=load.epoch,
        sequence=load.sequence,
        arrival_rate_rps=rate,
        in_flight=tuple(
            (entry.candidate.tier, entry.candidate.endpoint, entry.in_flight_count)
            for entry in load.loads
        ),
        encoded=load.SerializeToString(),
    )


def endpoint_from_message(message: common_pb2.Endpoint, tiers: tuple[str, ...]) -> EndpointSpec:
    """Returns the definition of an endpoint.

    Args:
        message: The definition as a client sent it.
        tiers: The mesh's tiers.

    Raises:
        InvalidArgumentError: Naming every field that is wrong.
    """
    bad = _Violations()
    name_rule = f"must have 1 to {_LONGEST_NAME} characters of [a-z0-9_-]"
    bad.check(_is_name(message.endpoint), "endpoint.endpoint", name_rule)
    device_is_good = not message.device or len(message.device) <= _LONGEST_NAME
    bad.check(device_is_good, "endpoint.device", f"must have at most {_LONGEST_NAME} characters")
    for field in ("address", "metrics_address"):
        text = getattr(message, field)
        if text or field == "address":
            bad.check(_is_address(text), f"endpoint.{field}", "must be host:port")
    served = [tier.tier for tier in message.tiers]
    bad.check(bool(served), "endpoint.tiers", "must name at least one tier")
    bad.check(len(set(served)) == len(served), "endpoint.tiers", "must name each tier at most once")
    for index, tier in enumerate(served):
        known = ", ".join(tiers)
        bad.check(tier in tiers, f"endpoint.tiers[{index}].tier", f"must be one of {known}")
    speed_is_good = math.isfinite(message.speed) and message.speed >= 0.0
    bad.check(speed_is_good, "endpoint.speed", "must be finite, at least 0")
    bad.raise_if_any()
    return endpoint_of_message(message)


def drain_from_message(request: service_pb2.RemoveEndpointRequest) -> float:
    """Returns how long an endpoint may drain, seconds; InvalidArgumentError if out of range."""
    if not request.HasField("drain"):
        return DEFAULT_DRAIN_S
    drain_s = seconds_of(request.drain)
    if not 0.0 <= drain_s <= _LONGEST_DRAIN_S:
        raise InvalidArgumentError("drain", f"is {drain_s:g} s", f"0 to {_LONGEST_DRAIN_S:g} s")
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
    return Publication(picture.version, state.SerializeToString(), picture.publish_wall_ns)


def decode_publication(payload: bytes) -> Publication:
    """Returns a publication another monitor stored; ValueError if the bytes are something else."""
    state = _parsed_state(payload)
    return Publication(state.version, payload, state.publish_time.ToNanoseconds())


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


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and _NAME_CHARACTERS.issuperset(text)


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
