"""Pictures as messages: router by router for clients, and as monitors share them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from services.common.convert import endpoint_of_message, message_of_endpoint
from services.common.errors import InvalidArgumentError
from services.common.times import duration_of, seconds_of, set_duration, timestamp_of
from services.load_monitor.convert import FLOAT32, PACKED_FIELDS, report_from_message
from services.load_monitor.convert_ratings import messages_of_table, readable
from services.load_monitor.convert_targets import message_of_targets
from services.load_monitor.loads import KINDS, NO_ORDER, Candidate, CandidateOrder, Loads, Triple
from services.load_monitor.model import (
    LONGEST_AGE_S,
    MAX_STATE_BYTES,
    EndpointView,
    Health,
    Picture,
    RouterReport,
    SharedLoads,
    TierGauge,
    order_of,
)
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

_LARGEST_VERSION = 2**52

HEALTH_TO_MESSAGE = {
    Health.UNKNOWN: common_pb2.ENDPOINT_HEALTH_UNSPECIFIED,
    Health.READY: common_pb2.ENDPOINT_HEALTH_READY,
    Health.PARTIAL: common_pb2.ENDPOINT_HEALTH_PARTIAL,
    Health.DOWN: common_pb2.ENDPOINT_HEALTH_DOWN,
    Health.DRAINING: common_pb2.ENDPOINT_HEALTH_DRAINING,
}
_HEALTH_OF_MESSAGE = {value: health for health, value in HEALTH_TO_MESSAGE.items()}


def state_of_picture(picture: Picture) -> state_pb2.SystemState:
    """Returns a picture as clients are sent it, every load by name."""
    state = _without_routers(picture)
    state.targets.CopyFrom(message_of_targets(picture.targets))
    for report in picture.routers:
        _add_router(state, report, NO_ORDER)
    return state


def stored_picture(picture: Picture, *, by_name: bool, since_s: float = 0.0) -> bytes:
    """Returns a picture as other monitors read it.

    Args:
        picture: The picture.
        by_name: True if one of them is of the last release, which knows no packed loads.
        since_s: How long ago it was taken, seconds.
    """
    state = _without_routers(picture)
    reports = (replace(each, age_s=each.age_s + since_s) for each in picture.routers)
    _add_routers(state, reports, picture.loads.order, by_name=by_name)
    return state.SerializeToString()


def stored_reports(
    reports: Iterable[RouterReport], order: CandidateOrder, *, by_name: bool, monitor_id: str = ""
) -> bytes:
    """Returns reports in the form in which monitors hand them to each other; see `stored_picture`.

    The order is there in any case: it tells a monitor that packs from one of the last release.
    `monitor_id` tells which one has them, unlike any other's.
    """
    state = state_pb2.SystemState(monitor_id=monitor_id)
    _add_routers(state, reports, order, by_name=by_name)
    return state.SerializeToString()


def read_picture(payload: bytes, known: CandidateOrder) -> tuple[Picture, bool]:
    """Returns a picture another monitor stored, and whether that monitor packs loads.

    Args:
        payload: The bytes.
        known: An order that takes the place of one that is the same.

    Raises:
        ValueError: The bytes are something else.
    """
    if len(payload) > MAX_STATE_BYTES:
        raise ValueError(f"a state of {len(payload)} bytes (limit: {MAX_STATE_BYTES})")
    state = _parsed_state(payload)
    # Counting goes on above it: a number at the end of what a message holds leaves no room.
    if not 0 < state.version <= _LARGEST_VERSION:
        raise ValueError(f"version {state.version} is not within 1 and {_LARGEST_VERSION}")
    endpoints = tuple(map(_endpoint_view, state.endpoints))
    order = order_of(view.spec for view in endpoints).same_or(known)
    picture = Picture(
        version=state.version,
        monitor_id=state.monitor_id,
        publish_wall_ns=_wall_ns(state.publish_time),
        endpoints=endpoints,
        loads=SharedLoads.of(order, _reports(state, order)),
        arrival_rate_short_rps=state.arrival_rate_short_rps,
        arrival_rate_long_rps=state.arrival_rate_long_rps,
        topology_version=state.topology_version,
        ratings=readable(state.task_ratings),
    )
    return picture, bool(state.candidates)


def read_reports(payload: bytes, known: CandidateOrder) -> tuple[list[RouterReport], bool, str]:
    """Returns what `stored_reports` made, whether that monitor packs loads, and which one it is.

    One of an earlier release does not tell: then the name is empty.

    Raises:
        ValueError: The bytes are something else.
    """
    state = _parsed_state(payload)
    return _reports(state, known), bool(state.candidates), state.monitor_id


def packed_loads(load_LC: Loads) -> state_pb2.PackedLoads:
    """Returns loads as a message carries them."""
    rows = load_LC.astype(FLOAT32)
    return state_pb2.PackedLoads(
        **{field: row.tobytes() for field, row in zip(PACKED_FIELDS, rows, strict=True)}
    )


def _parsed_state(payload: bytes) -> state_pb2.SystemState:
    try:
        return state_pb2.SystemState.FromString(payload)
    except Exception as error:  # the parser's own error type is no part of its interface
        raise ValueError(f"not a system state: {error}") from error


def _reports(state: state_pb2.SystemState, known: CandidateOrder) -> list[RouterReport]:
    order = CandidateOrder((each.tier, each.endpoint) for each in state.candidates).same_or(known)
    try:
        return [report_from_message(load, order) for load in state.routers]
    except InvalidArgumentError as error:
        raise ValueError(f"reports of a peer are wrong: {error}") from error


def _without_routers(picture: Picture) -> state_pb2.SystemState:
    return state_pb2.SystemState(
        version=picture.version,
        monitor_id=picture.monitor_id,
        publish_time=timestamp_of(picture.publish_wall_ns),
        arrival_rate_short_rps=picture.arrival_rate_short_rps,
        arrival_rate_long_rps=picture.arrival_rate_long_rps,
        topology_version=picture.topology_version,
        endpoints=[_endpoint_state(view) for view in picture.endpoints],
        task_ratings=messages_of_table(picture.ratings),
    )


def _add_routers(
    state: state_pb2.SystemState,
    reports: Iterable[RouterReport],
    order: CandidateOrder,
    *,
    by_name: bool,
) -> None:
    for tier, endpoint in order.names:
        state.candidates.add(tier=tier, endpoint=endpoint)
    packed_bytes = KINDS * FLOAT32.itemsize * len(order)
    for report in reports:
        # So a state never grows beyond what its loads take by name.
        is_small = by_name or report.loads.most_bytes <= packed_bytes
        message = _add_router(state, report, NO_ORDER if is_small else order)
        set_duration(message.age, min(report.age_s, LONGEST_AGE_S))


def _add_router(
    state: state_pb2.SystemState, report: RouterReport, order: CandidateOrder
) -> state_pb2.RouterLoad:
    """Adds a report, its loads packed in an order, or by name if that has no candidate."""
    message = state.routers.add()
    message.ParseFromString(report.encoded)
    loads: Mapping[Candidate, Triple]
    if len(order):
        message.packed_loads.CopyFrom(packed_loads(report.loads.on(order)))
        loads = report.loads.outside(order)
    else:
        loads = report.loads.named()
    for (tier, endpoint), (in_flight, waiting, remaining) in loads.items():
        message.loads.add(
            candidate=common_pb2.Candidate(tier=tier, endpoint=endpoint),
            in_flight_count=in_flight,
            waiting_prompt_token_count=waiting,
            remaining_output_token_count=remaining,
        )
    return message


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


def _endpoint_view(state: state_pb2.EndpointState) -> EndpointView:
    return EndpointView(
        spec=endpoint_of_message(state.endpoint),
        health=_HEALTH_OF_MESSAGE.get(state.health, Health.UNKNOWN),
        ramp_weight=state.ramp_weight,
        probe_wall_ns=_wall_ns(state.probe_time),
        gauges=tuple(map(_tier_gauge, state.gauges)),
        reason=state.reason,
    )


def _tier_gauge(gauge: state_pb2.TierGauges) -> TierGauge:
    return TierGauge(
        tier=gauge.tier,
        ready=gauge.ready,
        queue_depth=gauge.queue_depth if gauge.HasField("queue_depth") else None,
        success_count=gauge.success_count,
        failure_count=gauge.failure_count,
        mean_queue_s=seconds_of(gauge.mean_queue) if gauge.HasField("mean_queue") else None,
        mean_compute_s=seconds_of(gauge.mean_compute) if gauge.HasField("mean_compute") else None,
        kind=gauge.kind,
    )


def _wall_ns(moment: Timestamp) -> int:
    return moment.seconds * 1_000_000_000 + moment.nanos
