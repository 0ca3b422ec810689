"""Messages in and out: any report is either taken or refused by name of its fields."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet import EndpointSpec
from services.common.errors import InvalidArgumentError
from services.load_monitor import convert
from services.load_monitor.model import (
    EndpointView,
    Health,
    Picture,
    TierGauge,
)
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

int64 = st.integers(-(2**63), 2**63 - 1)
loads = st.builds(
    lambda tier, endpoint, in_flight, waiting: pb.CandidateLoad(
        candidate=common_pb2.Candidate(tier=tier, endpoint=endpoint),
        in_flight_count=in_flight,
        waiting_prompt_token_count=waiting,
    ),
    st.text(max_size=5),
    st.text(max_size=5),
    st.integers(-(2**31), 2**31 - 1),
    int64,
)
reports = st.builds(
    lambda router_id, epoch, sequence, rate, entries: pb.RouterLoad(
        router_id=router_id, epoch=epoch, sequence=sequence, arrival_rate_rps=rate, loads=entries
    ),
    st.text(max_size=140),
    int64,
    int64,
    st.floats(),
    st.lists(loads, max_size=3),
)


@given(reports)
def test_any_report_is_taken_or_refused(message: pb.RouterLoad) -> None:
    """No input is an unexpected error, and nothing taken can spoil a sum."""
    try:
        report = convert.report_from_message(message)
    except InvalidArgumentError:
        return
    assert report.router_id
    assert min(report.epoch, report.sequence) > 0
    assert math.isfinite(report.arrival_rate_rps)
    assert report.arrival_rate_rps >= 0.0
    assert all(tier and endpoint and count >= 0 for tier, endpoint, count in report.in_flight)
    assert convert.decode_reports(convert.encode_reports((report,))) == [report]


@given(st.binary(max_size=200))
def test_any_stored_bytes_are_read_or_refused(payload: bytes) -> None:
    """What stands in Redis under our keys cannot break the monitor."""
    for decode in (convert.decode_publication, convert.decode_reports):
        with contextlib.suppress(ValueError):
            decode(payload)


def test_large_report_is_refused() -> None:
    """One router cannot fill the memory."""
    message = pb.RouterLoad(router_id="r", epoch=1, sequence=1, policy="x" * 300_000)
    with pytest.raises(InvalidArgumentError, match="load: at most 262144 bytes"):
        convert.report_from_message(message)


def test_picture_keeps_unknown_apart_from_zero() -> None:
    """Unset means unknown; stamps and durations keep their nanoseconds."""
    view = EndpointView(
        spec=EndpointSpec("e", "h:1", "gpu0", {"small": "m"}, speed=0.9),
        health=Health.PARTIAL,
        ramp_weight=0.5,
        probe_wall_ns=1_700_000_000_123_456_789,
        gauges=(TierGauge("small", True, queue_depth=0, mean_queue_s=0.25, kind="paced"),),
        reason="why",
    )
    picture = Picture(7, "m1", 1_700_000_000_000_000_001, (view,), (), 1.5, 2.5, 3)
    publication = convert.encode_picture(picture)
    state = convert.state_from_publication(publication)
    assert (publication.version, state.version, state.topology_version) == (7, 7, 3)
    assert state.publish_time.ToNanoseconds() == 1_700_000_000_000_000_001
    (entry,) = state.endpoints
    assert entry.probe_time.ToNanoseconds() == 1_700_000_000_123_456_789
    assert entry.endpoint.speed == 0.9
    (gauge,) = entry.gauges
    assert gauge.HasField("queue_depth")
    assert gauge.queue_depth == 0
    assert gauge.mean_queue.ToNanoseconds() == 250_000_000
    assert not gauge.HasField("mean_compute")


def test_every_health_has_its_message() -> None:
    """A new health cannot be forgotten."""
    assert set(convert.HEALTH_TO_MESSAGE) == set(Health)
    assert len(set(convert.HEALTH_TO_MESSAGE.values())) == len(Health)
