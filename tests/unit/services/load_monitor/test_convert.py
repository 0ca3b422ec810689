"""Messages in and out: any report is either taken or refused by name of its fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import MAX_VIOLATIONS, InvalidArgumentError
from services.load_monitor import convert
from services.load_monitor.convert_state import read_reports, stored_reports
from services.load_monitor.loads import NO_ORDER, CandidateOrder
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as service_pb2
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
    named = report.loads.named()
    assert all(tier and endpoint and min(load) >= 0 for (tier, endpoint), load in named.items())
    (read,), is_packed, _ = read_reports(stored_reports([report], NO_ORDER, by_name=True), NO_ORDER)
    assert not is_packed
    assert read.loads.named() == named
    assert replace(read, loads=report.loads) == report


_MOST = 2**63 - 1
CANDIDATE = common_pb2.Candidate(tier="small", endpoint="e")
PER_TOKEN = common_pb2.SLO_KIND_PER_TOKEN


def load_of(**fields: Any) -> pb.RouterLoad:
    """Returns a report with fields of its own."""
    whole: dict[str, Any] = {"router_id": "r", "epoch": 1, "sequence": 1}
    return pb.RouterLoad(**(whole | fields))


def latency_of(**fields: Any) -> pb.RouterLoad:
    """Returns a report of one task's latency."""
    return load_of(task_latencies=[pb.TaskLatency(**({"task": "a"} | fields))])


def ratings_of(*tiers: Any, task: str = "a") -> pb.RouterLoad:
    """Returns a report of what clients said of the answers of tiers, on one task."""
    return load_of(task_ratings=[pb.TaskRatings(task=task, tiers=tiers)])


def rated(**fields: Any) -> pb.TierRatings:
    """Returns what clients said of the answers of a tier."""
    whole: dict[str, Any] = {"tier": "s", "rating_count": 2, "mean": 0.5, "mean_square": 0.25}
    return pb.TierRatings(**(whole | fields))


def entry(**fields: Any) -> pb.CandidateLoad:
    """Returns the load of one candidate."""
    return pb.CandidateLoad(**({"candidate": CANDIDATE} | fields))


def packed_of(
    candidates: Sequence[common_pb2.Candidate], counts: Sequence[float] = (1.0,), **fields: Any
) -> pb.RouterLoad:
    """Returns a report of packed loads, the same numbers of each kind."""
    numbers = np.array(counts, "<f4").tobytes()
    packed = pb.PackedLoads(
        in_flight_counts=numbers,
        waiting_prompt_token_counts=numbers,
        remaining_output_token_counts=numbers,
    )
    return load_of(candidates=candidates, packed_loads=packed, **fields)


def tokens_of(*outcomes: common_pb2.TokenOutcomes) -> pb.RouterLoad:
    """Returns a report of one task with such deadlines for tokens."""
    return load_of(task_outcomes=[pb.TaskOutcomes(task="a", token_outcomes=outcomes)])


def profile_of(**fields: Any) -> common_pb2.ProfileState:
    """Returns a profile in use, right but for what is given."""
    known: dict[str, Any] = {"profile": "p", "source": "measured"}
    return common_pb2.ProfileState(**(known | fields))


def off_by(error: float, count: int = 1, **fields: Any) -> common_pb2.ProfileState:
    """Returns a profile with so many errors."""
    known: dict[str, Any] = {"tier": "s", "error": error}
    return profile_of(errors=[common_pb2.ProfileError(**(known | fields))] * count)


@pytest.mark.parametrize(
    ("load", "field"),
    [
        (load_of(router_id="x" * 129), "load.router_id"),
        (load_of(epoch=0), "load.epoch"),
        (load_of(sequence=-1), "load.sequence"),
        (load_of(report_time=Timestamp(seconds=_MOST)), "load.report_time"),
        (load_of(report_time=Timestamp(nanos=-1)), "load.report_time"),
        (load_of(arrival_rate_rps=1.7e308), "load.arrival_rate_rps"),
        (load_of(arrival_rate_rps=1.1e9), "load.arrival_rate_rps"),
        (load_of(arrival_rate_rps=math.inf), "load.arrival_rate_rps"),
        (load_of(arrival_rate_rps=math.nan), "load.arrival_rate_rps"),
        (load_of(arrival_rate_long_rps=-1.0), "load.arrival_rate_long_rps"),
        (load_of(arrival_rate_long_rps=math.nan), "load.arrival_rate_long_rps"),
        (load_of(age=Duration(seconds=-1)), "load.age"),
        (load_of(age=Duration(seconds=3601)), "load.age"),
        (load_of(age=Duration(nanos=10**9)), "load.age"),
        (load_of(policy="x" * 129), "load.policy"),
        (load_of(policy_version="x" * 129), "load.policy_version"),
        (load_of(policy_refusal="x" * 129), "load.policy_refusal"),
        (load_of(activation=-1), "load.activation"),
        (load_of(trial=pb.TrialReport()), "load.trial.rollout"),
        (load_of(trial=pb.TrialReport(rollout=1, problem="x" * 65)), "load.trial.problem"),
        (
            load_of(trial=pb.TrialReport(rollout=1, problem_detail="x" * 201)),
            "load.trial.problem_detail",
        ),
        (
            load_of(trial=pb.TrialReport(rollout=1, shadow=pb.ShadowCounts(value_gain=math.nan))),
            "load.trial.shadow.value_gain",
        ),
        (
            load_of(trial=pb.TrialReport(rollout=1, canary=pb.CanaryCounts(effect_square=-1.0))),
            "load.trial.canary.effect_square",
        ),
        (load_of(policy="x" * 300_000), "load"),
        (load_of(outcomes=pb.OutcomeCounts(on_time_count=_MOST)), "load.outcomes.on_time_count"),
        (load_of(outcomes=pb.OutcomeCounts(late_count=-1)), "load.outcomes.late_count"),
        (
            load_of(outcomes=pb.OutcomeCounts(delivered_reward_sum=math.inf)),
            "load.outcomes.delivered_reward_sum",
        ),
        (load_of(tier_outcomes=[pb.TierOutcomeCounts(tier="a")] * 65), "load.tier_outcomes"),
        (load_of(tier_outcomes=[pb.TierOutcomeCounts()]), "load.tier_outcomes[0].tier"),
        (load_of(target_pressure=math.nan), "load.target_pressure"),
        (load_of(task_latencies=[pb.TaskLatency(task="a")] * 65), "load.task_latencies"),
        (latency_of(task=""), "load.task_latencies[0].task"),
        (
            latency_of(default_deadline=Duration(seconds=-1)),
            "load.task_latencies[0].default_deadline",
        ),
        (latency_of(cut_off_count=-1), "load.task_latencies[0].cut_off_count"),
        (latency_of(first_bucket=130), "load.task_latencies[0].first_bucket"),
        (
            latency_of(first_bucket=129, answer_counts=[1, 1]),
            "load.task_latencies[0].answer_counts",
        ),
        (latency_of(answer_counts=[0, -1]), "load.task_latencies[0].answer_counts"),
        (latency_of(answer_counts=[0, _MOST]), "load.task_latencies[0].answer_counts"),
        (
            load_of(
                tier_outcomes=[
                    pb.TierOutcomeCounts(tier="a", outcomes=pb.OutcomeCounts(failed_count=-1))
                ]
            ),
            "load.tier_outcomes[0].outcomes.failed_count",
        ),
        (
            tokens_of(*[common_pb2.TokenOutcomes()] * 9),
            "load.task_outcomes[0].token_outcomes",
        ),
        (
            tokens_of(*[common_pb2.TokenOutcomes(slo_kind=PER_TOKEN)] * 2),
            "load.task_outcomes[0].token_outcomes[1]",
        ),
        (
            tokens_of(common_pb2.TokenOutcomes(slo_kind=PER_TOKEN, on_time_count=-1)),
            "load.task_outcomes[0].token_outcomes[0].on_time_count",
        ),
        (
            tokens_of(common_pb2.TokenOutcomes(slo_kind=PER_TOKEN, missed_count=_MOST)),
            "load.task_outcomes[0].token_outcomes[0].missed_count",
        ),
        (
            tokens_of(common_pb2.TokenOutcomes(slo_kind=PER_TOKEN, smooth_answer_sum=math.nan)),
            "load.task_outcomes[0].token_outcomes[0].smooth_answer_sum",
        ),
        (load_of(profiles=[profile_of()] * 33), "load.profiles"),
        (load_of(profiles=[profile_of(profile="")]), "load.profiles[0].profile"),
        (load_of(profiles=[profile_of(source="guessed")]), "load.profiles[0].source"),
        (load_of(profiles=[profile_of(method="m" * 201)]), "load.profiles[0].method"),
        (
            load_of(profiles=[profile_of(measured_time=Timestamp(seconds=-1))]),
            "load.profiles[0].measured_time",
        ),
        (load_of(profiles=[off_by(0.0, count=101)]), "load.profiles[0].errors"),
        (load_of(profiles=[off_by(0.0, tier="S")]), "load.profiles[0].errors[0].tier"),
        (load_of(profiles=[off_by(0.0, range="r" * 101)]), "load.profiles[0].errors[0].range"),
        (load_of(profiles=[off_by(math.nan)]), "load.profiles[0].errors[0].error"),
        (load_of(profiles=[off_by(-1.1)]), "load.profiles[0].errors[0].error"),
        (
            load_of(profiles=[off_by(0.0, compared_count=-1)]),
            "load.profiles[0].errors[0].compared_count",
        ),
        (load_of(task_ratings=[pb.TaskRatings(task="a")] * 65), "load.task_ratings"),
        (ratings_of(*[rated()] * 257), "load.task_ratings"),
        (ratings_of(rated(), task="A"), "load.task_ratings[0].task"),
        (
            load_of(task_ratings=[pb.TaskRatings(task="a")] * 2),
            "load.task_ratings[1].task",
        ),
        (ratings_of(rated(), rated()), "load.task_ratings[0].tiers[1].tier"),
        (ratings_of(rated(tier="")), "load.task_ratings[0].tiers[0].tier"),
        (ratings_of(rated(rating_count=0)), "load.task_ratings[0].tiers[0].rating_count"),
        (ratings_of(rated(rating_count=_MOST)), "load.task_ratings[0].tiers[0].rating_count"),
        (ratings_of(rated(mean=math.nan)), "load.task_ratings[0].tiers[0].mean"),
        (ratings_of(rated(mean=1.1)), "load.task_ratings[0].tiers[0].mean"),
        (ratings_of(rated(mean_square=math.inf)), "load.task_ratings[0].tiers[0].mean_square"),
        (ratings_of(rated(mean_square=-0.1)), "load.task_ratings[0].tiers[0].mean_square"),
        (load_of(loads=[pb.CandidateLoad()] * 10_001), "load.loads"),
        (load_of(loads=[pb.CandidateLoad()]), "load.loads[0].candidate.tier"),
        (load_of(loads=[entry(in_flight_count=2**31 - 1)]), "load.loads[0].in_flight_count"),
        (
            load_of(loads=[entry(waiting_prompt_token_count=_MOST)]),
            "load.loads[0].waiting_prompt_token_count",
        ),
        (
            load_of(loads=[entry(remaining_output_token_count=-1)]),
            "load.loads[0].remaining_output_token_count",
        ),
        (load_of(loads=[entry(), entry()]), "load.loads[1].candidate"),
        (packed_of([]), "load.packed_loads.in_flight_counts"),
        (packed_of([CANDIDATE] * 2), "load.candidates[1]"),
        (packed_of([common_pb2.Candidate(tier="S", endpoint="e")]), "load.candidates[0].tier"),
        (packed_of([CANDIDATE] * 10_001), "load.candidates"),
        (packed_of([CANDIDATE], loads=[entry()]), "load.loads[0].candidate"),
        (packed_of([CANDIDATE], [1e7]), "load.packed_loads.in_flight_counts"),
        (packed_of([CANDIDATE], [-1.0]), "load.packed_loads.in_flight_counts"),
        (packed_of([CANDIDATE], [math.nan]), "load.packed_loads.in_flight_counts"),
        (packed_of([CANDIDATE], [math.inf]), "load.packed_loads.in_flight_counts"),
        (packed_of([CANDIDATE], [1.0, 1.0]), "load.packed_loads.in_flight_counts"),
        (
            load_of(loads=[entry(candidate=common_pb2.Candidate(tier="s", endpoint="x" * 65))]),
            "load.loads[0].candidate.endpoint",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_of_a_report_has_its_limit(load: pb.RouterLoad, field: str) -> None:
    """What is out of range is refused by the field's name, with the limit."""
    with pytest.raises(InvalidArgumentError) as caught:
        convert.report_from_message(load)
    assert caught.value.field == field
    assert "limit" in caught.value.message or "named twice" in caught.value.message


@pytest.mark.parametrize("count", [200_000, 100])
def test_a_report_of_empty_loads_is_refused_in_few_words(count: int) -> None:
    """Neither the walk nor the answer grows with the mistakes."""
    load = load_of(loads=[pb.CandidateLoad()] * count)
    with pytest.raises(InvalidArgumentError) as caught:
        convert.report_from_message(load)
    assert len(caught.value.violations) <= MAX_VIOLATIONS


def test_a_long_rate_of_nothing_is_told_from_none() -> None:
    """A router of the last release does not tell; where one has no requests it is 0."""
    assert convert.report_from_message(load_of()).arrival_rate_long_rps is None
    assert (
        convert.report_from_message(load_of(arrival_rate_long_rps=0.0)).arrival_rate_long_rps == 0
    )
    aged = convert.report_from_message(load_of(arrival_rate_long_rps=7.5, age=Duration(seconds=2)))
    assert (aged.arrival_rate_long_rps, aged.age_s) == (7.5, 2.0)
    assert not pb.RouterLoad.FromString(aged.encoded).HasField("age")


def test_latencies_that_a_report_leaves_out_are_as_the_stream_told_last() -> None:
    """A router tells of them once a second, and every state has them."""
    first = convert.report_from_message(latency_of(cut_off_count=7))
    second = convert.report_from_message(load_of(sequence=2), told_tasks=first.tasks)
    (read,), *_ = read_reports(stored_reports([second], NO_ORDER, by_name=False), NO_ORDER)
    whole = pb.RouterLoad.FromString(read.encoded)
    assert [(each.task, each.cut_off_count) for each in whole.task_latencies] == [("a", 7)]
    assert replace(read, loads=second.loads) == second
    third = convert.report_from_message(latency_of(cut_off_count=8), told_tasks=first.tasks)
    told = pb.RouterLoad.FromString(third.encoded).task_latencies
    assert [each.cut_off_count for each in told] == [8]


def test_deadlines_for_tokens_of_a_kind_that_is_not_known_yet_are_taken_in() -> None:
    """A router may be of a later version than the monitor."""
    later: Any = 9
    load = tokens_of(
        common_pb2.TokenOutcomes(slo_kind=PER_TOKEN, on_time_count=3),
        common_pb2.TokenOutcomes(slo_kind=later, on_time_count=2),
    )
    report = convert.report_from_message(load)
    (task,) = pb.RouterLoad.FromString(report.tasks.outcomes).task_outcomes
    assert [each.on_time_count for each in task.token_outcomes] == [3, 2]


def test_profiles_that_a_report_leaves_out_are_as_the_stream_told_last() -> None:
    """A router tells of them once a second, and every state has them."""
    first = convert.report_from_message(load_of(profiles=[off_by(-0.25)]))
    second = convert.report_from_message(load_of(sequence=2), told_tasks=first.tasks)
    whole = pb.RouterLoad.FromString(second.encoded)
    assert [(each.profile, each.errors[0].error) for each in whole.profiles] == [("p", -0.25)]


def test_ratings_that_a_report_leaves_out_are_as_the_stream_told_last() -> None:
    """They are not read anew then, and other monitors read them as they came."""
    first = convert.report_from_message(ratings_of(rated()))
    assert first.tasks.table == {("a", "s"): (2, 0.5, 0.25)}
    second = convert.report_from_message(load_of(sequence=2), told_tasks=first.tasks)
    assert second.tasks.table is first.tasks.table
    (read,), *_ = read_reports(stored_reports([second], NO_ORDER, by_name=False), NO_ORDER)
    assert replace(read, loads=second.loads) == second


def test_an_order_is_told_once() -> None:
    """The reports that follow in the stream are read in it; an order of ours is ours."""
    known = CandidateOrder([("small", "e")])
    first = convert.report_from_message(packed_of([CANDIDATE], [3.0]), NO_ORDER, known)
    assert first.loads.order is known
    second = convert.report_from_message(packed_of([], [4.0]), first.loads.order)
    assert second.loads.named() == {("small", "e"): (4, 4, 4)}


@given(
    st.lists(st.floats(width=32), max_size=4),
    st.lists(st.sampled_from("abcd"), max_size=4),
    st.binary(max_size=20),
)
def test_any_packed_report_is_taken_or_refused(
    counts: list[float], names: list[str], noise: bytes
) -> None:
    """Nothing that is taken can spoil a sum."""
    candidates = [common_pb2.Candidate(tier="small", endpoint=name) for name in names]
    message = packed_of(candidates, counts)
    if noise:
        message.packed_loads.remaining_output_token_counts = noise
    try:
        loads = convert.report_from_message(message).loads
    except InvalidArgumentError:
        return
    assert loads.load_LC.shape == (3, len(names))
    assert (loads.load_LC >= 0).all()
    assert loads.load_LC.max(initial=0) <= 10**12


def test_a_report_must_fit_by_name_as_well() -> None:
    """Packed or not, it is at most 256 KiB where it is handed on by name."""
    candidates = [
        common_pb2.Candidate(tier="t" * 10, endpoint=f"{index:05d}") for index in range(9_000)
    ]
    with pytest.raises(InvalidArgumentError, match="bytes"):
        convert.report_from_message(packed_of(candidates, [1.0] * len(candidates)))


def test_what_a_report_holds_beyond_the_contract_is_dropped() -> None:
    """Unknown fields would be handed on to every router."""
    load = load_of()
    load.MergeFromString(b"\xfa\x7f\x03abc")
    assert b"abc" not in convert.report_from_message(load).encoded


def definition(**fields: Any) -> common_pb2.Endpoint:
    """Returns an endpoint's definition with fields of its own."""
    tiers = [common_pb2.ServedTier(tier="small")]
    whole: dict[str, Any] = {"endpoint": "e", "address": "h:1", "tiers": tiers}
    return common_pb2.Endpoint(**(whole | fields))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (definition(endpoint="E"), "endpoint.endpoint"),
        (definition(endpoint="x" * 5_000), "endpoint.endpoint"),
        (definition(profile="x" * 3_000_000), "endpoint.profile"),
        (definition(profile="../secret"), "endpoint.profile"),
        (definition(device="x" * 65), "endpoint.device"),
        (definition(device="a b"), "endpoint.device"),
        (definition(address="h"), "endpoint.address"),
        (definition(address="h" * 3_000 + ":1"), "endpoint.address"),
        (definition(address="h:" + "0" * 4_000 + "1"), "endpoint.address"),
        (definition(metrics_address="h:1/x"), "endpoint.metrics_address"),
        (definition(speed=100.0), "endpoint.speed"),
        (definition(speed=1.01), "endpoint.speed"),
        (definition(speed=-0.1), "endpoint.speed"),
        (definition(speed=1e-9), "endpoint.speed"),
        (definition(speed=math.nan), "endpoint.speed"),
        (definition(tiers=[]), "endpoint.tiers"),
        (definition(tiers=[common_pb2.ServedTier(tier="small")] * 3), "endpoint.tiers"),
        (definition(tiers=[common_pb2.ServedTier(tier="small")] * 2), "endpoint.tiers[1].tier"),
        (definition(tiers=[common_pb2.ServedTier(tier="x")] * 200_000), "endpoint.tiers"),
        (definition(tiers=[common_pb2.ServedTier(tier="x")]), "endpoint.tiers[0].tier"),
        (
            definition(tiers=[common_pb2.ServedTier(tier="small", model_name="m" * 129)]),
            "endpoint.tiers[0].model_name",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_of_an_endpoint_has_its_limit(message: common_pb2.Endpoint, field: str) -> None:
    """What is out of range is refused by the field's name."""
    with pytest.raises(InvalidArgumentError) as caught:
        convert.endpoint_from_message(message, ("small", "large"), lambda *_: None)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "request_",
    [
        service_pb2.RemoveEndpointRequest(drain=Duration(seconds=_MOST)),
        service_pb2.RemoveEndpointRequest(drain=Duration(seconds=-1)),
        service_pb2.RemoveEndpointRequest(drain=Duration(nanos=-(2**31))),
        service_pb2.RemoveEndpointRequest(drain=Duration(seconds=3_601)),
    ],
)
def test_a_drain_out_of_range_is_refused(
    request_: service_pb2.RemoveEndpointRequest,
) -> None:
    """An endpoint drains for an hour at most."""
    with pytest.raises(InvalidArgumentError, match="drain"):
        convert.drain_from_message(request_)


@pytest.mark.parametrize("name", ["", "x" * 65, "x" * 5_000])
def test_a_name_that_can_be_no_endpoint_is_refused(name: str) -> None:
    """It is not looked up, nor sent back."""
    with pytest.raises(InvalidArgumentError, match="endpoint"):
        convert.endpoint_name_of(service_pb2.RemoveEndpointRequest(endpoint=name))
