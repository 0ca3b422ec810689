"""Pictures as messages: by name for clients, packed between monitors, and back."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet import EndpointSpec
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_state import (
    HEALTH_TO_MESSAGE,
    read_picture,
    read_reports,
    state_of_picture,
    stored_picture,
    stored_reports,
)
from services.load_monitor.loads import NO_ORDER, CandidateOrder, RouterLoads
from services.load_monitor.model import EndpointView, Health, RouterReport, TierGauge
from tests.unit.services.load_monitor.rig import picture, report
from tiercel.load_monitor.v1 import system_state_pb2 as pb

names = st.tuples(st.sampled_from(["small", "large"]), st.sampled_from("abc"))
triples = st.tuples(st.integers(0, 10**6), st.integers(0, 2**24), st.integers(0, 2**24))
loads = st.dictionaries(names, triples, max_size=6)


@given(st.binary(max_size=200))
def test_any_stored_bytes_are_read_or_refused(payload: bytes) -> None:
    """What stands in Redis under our keys cannot break the monitor."""
    with contextlib.suppress(ValueError):
        read_picture(payload, NO_ORDER)
    with contextlib.suppress(ValueError):
        read_reports(payload, NO_ORDER)


@given(loads, st.lists(names, unique=True), st.lists(names, unique=True), st.booleans())
def test_loads_come_through_in_any_form(
    load: dict[tuple[str, str], tuple[int, int, int]],
    told: list[tuple[str, str]],
    order: list[tuple[str, str]],
    by_name: bool,
) -> None:
    """Whatever order they were told in, and are packed in, no load is lost or another's."""
    told_order = CandidateOrder(told)
    beside = {name: each for name, each in load.items() if name not in told}
    by_row = RouterLoads.by_name(load).on(told_order)
    first = replace(report("r1"), loads=RouterLoads(told_order, by_row, beside))
    known = CandidateOrder(order)
    (read,), packs, _ = read_reports(stored_reports([first], known, by_name=by_name), known)
    assert packs is bool(order)
    assert {name: each for name, each in read.loads.named().items() if any(each)} == {
        name: each for name, each in load.items() if any(each)
    }
    assert (read.loads.on(known) == RouterLoads.by_name(load).on(known)).all()


def test_a_report_takes_no_more_bytes_than_was_counted() -> None:
    """The bound by which the door keeps a state small holds for the largest numbers."""
    load = {("t" * 64, f"{index:064d}"): (10**6, 10**12, 10**12) for index in range(100)}
    whole: RouterReport = replace(report("r1"), loads=RouterLoads.by_name(load))
    bare = replace(whole, loads=RouterLoads.by_name({}))
    empty = len(stored_reports([bare], NO_ORDER, by_name=True))
    size = len(stored_reports([whole], NO_ORDER, by_name=True)) - empty
    assert 0.9 * size < whole.most_bytes - bare.most_bytes
    assert size <= whole.most_bytes - bare.most_bytes + 8


def test_a_state_of_idle_candidates_is_not_packed() -> None:
    """Between monitors a report takes the smaller of its two forms."""
    order = CandidateOrder(("small", f"e{index}") for index in range(1_000))
    (busy,), *_ = read_reports(
        stored_reports([report("r1", in_flight_count=3)], order, by_name=False), order
    )
    assert busy.loads.named() == {("small", "e1"): (3, 0, 0)}
    assert len(stored_reports([busy], NO_ORDER, by_name=True)) < 100


def test_ages_go_from_monitor_to_monitor() -> None:
    """With the time since the picture was taken; clients are told none."""
    load = pb.RouterLoad(router_id="r1", epoch=1, sequence=1, arrival_rate_long_rps=4.0)
    aged = replace(report_from_message(load), age_s=0.25)
    whole = picture(1, (), (aged,))
    read, _ = read_picture(stored_picture(whole, by_name=False, since_s=0.5), NO_ORDER)
    assert [(each.age_s, each.arrival_rate_long_rps) for each in read.routers] == [(0.75, 4.0)]
    (handed,), *_ = read_reports(stored_reports([aged], NO_ORDER, by_name=True), NO_ORDER)
    assert handed.age_s == 0.25
    assert not state_of_picture(whole).routers[0].HasField("age")


@pytest.mark.parametrize("version", [0, -1, 2**63 - 1])
def test_a_stored_state_whose_number_leaves_no_room_is_refused(version: int) -> None:
    """Counting goes on above the stored number, which must be possible."""
    payload = pb.SystemState(version=version).SerializeToString()
    with pytest.raises(ValueError, match="version"):
        read_picture(payload, NO_ORDER)


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
    whole = replace(picture(7, (view,), (), 3), publish_wall_ns=1_700_000_000_000_000_001)
    read, is_packed = read_picture(stored_picture(whole, by_name=False), whole.loads.order)
    assert is_packed
    assert (read.endpoints, read.loads.order) == (whole.endpoints, whole.loads.order)
    state = state_of_picture(read)
    assert (state.version, state.topology_version) == (7, 3)
    assert state.publish_time.ToNanoseconds() == 1_700_000_000_000_000_001
    (endpoint,) = state.endpoints
    assert endpoint.probe_time.ToNanoseconds() == 1_700_000_000_123_456_789
    assert endpoint.endpoint.speed == 0.9
    (gauge,) = endpoint.gauges
    assert gauge.HasField("queue_depth")
    assert gauge.queue_depth == 0
    assert gauge.mean_queue.ToNanoseconds() == 250_000_000
    assert not gauge.HasField("mean_compute")


def test_every_health_has_its_message() -> None:
    """A new health cannot be forgotten."""
    assert set(HEALTH_TO_MESSAGE) == set(Health)
    assert len(set(HEALTH_TO_MESSAGE.values())) == len(Health)
