"""Messages of the load monitor as a router reads them."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration

from router.home import WHOLE, Share
from router.watch import Figures, WatchReport
from services.common.errors import InvalidArgumentError
from services.load_monitor.convert import report_from_message
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trial_counts import (
    ArmCounts,
    CanaryCounts,
    PeriodCounts,
    ShadowCounts,
    SwitchCounts,
    TrialSeen,
    TrialTold,
    reported,
)
from services.router_inference.view.convert import LoadWriter, StateReader, router_load
from services.router_inference.view.load import LoadView
from services.router_inference.view.seen import SeenState, SeenTarget
from services.router_inference.workers.siblings import NoSiblings
from services.trainer.convert import trial_seen, watch_seen
from services.trainer.rollout_verdicts import SwitchSeen
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2, system_state_pb2

ENDPOINT = common_pb2.Endpoint(endpoint="e0", tiers=[common_pb2.ServedTier(tier="small")])


def seen_state(message: system_state_pb2.SystemState, router_id: str, epoch: int) -> SeenState:
    """Reads a state as a monitor of the last release sends it."""
    response = load_monitor_service_pb2.WatchSystemStateResponse(state=message)
    return StateReader(router_id, epoch).read(response)


def test_own_reports_are_left_out_of_a_state() -> None:
    """Everybody else's load counts, that of another process of the same name included."""
    message = system_state_pb2.SystemState(version=1)
    for router_id, epoch, count in (("me", 1, 5), ("me", 2, 7), ("other", 1, 3)):
        router = message.routers.add(router_id=router_id, epoch=epoch, arrival_rate_rps=count)
        router.loads.add(
            candidate=common_pb2.Candidate(tier="small", endpoint="e0"), in_flight_count=count
        )
    message.endpoints.add().endpoint.CopyFrom(ENDPOINT)
    seen = seen_state(message, "me", 2)
    assert seen.candidates == (("small", "e0"),)
    assert seen.others_LC[:, 0].tolist() == [8.0, 0.0, 0.0]
    assert seen.own_sequence == 0
    assert seen.other_rate_rps == 8.0


@pytest.mark.parametrize("rate_rps", [math.inf, math.nan, -1.0, 1.7e308])
def test_a_rate_that_is_none_counts_as_none(rate_rps: float) -> None:
    """No state, whoever wrote it, makes a feature infinite."""
    message = system_state_pb2.SystemState(version=1, arrival_rate_long_rps=rate_rps)
    for router_id in ("a", "b"):
        message.routers.add(router_id=router_id, arrival_rate_rps=rate_rps)
    seen = seen_state(message, "me", 1)
    assert (seen.other_rate_rps, seen.rate_long_rps) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("claimed", "expected"), [(0.0, 1.0), (100.0, 1.0), (math.nan, 0.01), (-1.0, 0.01), (0.5, 0.5)]
)
def test_a_claimed_speed_only_slows_down(claimed: float, expected: float) -> None:
    """An endpoint that says it is a hundred times faster is sent no more than its like."""
    message = system_state_pb2.SystemState(version=1)
    message.endpoints.add().endpoint.speed = claimed
    assert seen_state(message, "me", 1).endpoints[0].spec.speed == expected


def test_health_words_become_weights() -> None:
    """DOWN and DRAINING get nothing; not yet probed is left to the own breakers."""
    message = system_state_pb2.SystemState(version=1)
    healths = ("READY", "DOWN", "DRAINING", "UNSPECIFIED")
    for word in healths:
        entry = message.endpoints.add(ramp_weight=0.5)
        entry.health = common_pb2.EndpointHealth.Value(f"ENDPOINT_HEALTH_{word}")
        entry.endpoint.endpoint = word.lower()
        entry.endpoint.tiers.add(tier="small")
    seen = seen_state(message, "me", 2)
    assert [item.weight for item in seen.endpoints] == [0.5, 0.0, 0.0, 1.0]
    assert seen.endpoints[0].spec.models == {"small": "small"}
    assert seen.endpoints[0].spec.speed == 1.0


@scenario
async def test_a_report_says_what_was_done_with_a_promoted_policy() -> None:
    """The trainer reads there whether this router uses it, and why not."""
    rig = make_rig()
    rig.core.slot.promote(Promoted("nonsense", "", b"", b"", 5))
    load = report_of(rig)
    told = (load.policy, load.activation, load.policy_refusal)
    assert told == ("static-large", 5, "POLICY_UNKNOWN")
    tasks = [(each.task, each.target, each.settings_target) for each in load.task_attainments]
    assert tasks == [("hard", 0.99, 0.99), ("soft", 0.0, 0.0), ("first", 0.99, 0.99)]
    assert not load.HasField("trial")


@scenario
async def test_a_report_tells_when_answers_of_each_task_came() -> None:
    """Of the last minute, beside the deadline; the monitor takes it in."""
    rig = make_rig()
    rig.core.attainments.note(rig.clock.monotonic_s())
    await rig.answer(rig.job())
    rig.core.attainments.note(rig.clock.monotonic_s() + 1.0)
    load = report_of(rig)
    hard, soft, first = load.task_latencies
    assert (hard.task, sum(hard.answer_counts), hard.cut_off_count) == ("hard", 1, 0)
    assert (len(soft.answer_counts), first.slo_kind) == (0, common_pb2.SLO_KIND_FIRST_TOKEN)
    assert hard.default_deadline.ToTimedelta().total_seconds() > 0.0
    taken = report_from_message(load)
    assert taken.tasks.latencies
    told = system_state_pb2.RouterLoad.FromString(taken.tasks.outcomes).task_outcomes
    assert [(each.task, each.on_time_count) for each in told][:2] == [("hard", 1), ("soft", 0)]
    assert [(each.tier, each.answer_count) for each in told[0].answers] == [("large", 1)]
    (attained, *_) = load.task_attainments
    assert attained.delivered_reward_sum == told[0].delivered_reward_sum == attained.largest_quality


def report_of(
    rig: Rig, trial: TrialTold | None = None, watch: WatchReport | None = None
) -> system_state_pb2.RouterLoad:
    """What a router reports."""
    slot = rig.core.slot
    return router_load(
        router_id="r1",
        epoch=1,
        sequence=1,
        view=rig.core.view,
        counts=rig.core.counts,
        policy=slot.name,
        policy_version=slot.version,
        activation=slot.activation,
        policy_refusal=slot.refusal,
        attainments=rig.core.attainments.read(),
        latencies=rig.core.attainments.latencies(),
        tells_tasks=True,
        target_pressure=rig.core.hold.pressure(),
        trial=trial,
        watch=watch,
        learns_quality=rig.core.quality.is_on,
        ratings=rig.core.quality.told(),
        loads=LoadWriter(),
        packs=True,
        now_s=rig.clock.monotonic_s(),
        now_ns=rig.clock.wall_ns(),
    )


@scenario
async def test_a_report_says_what_was_seen_of_a_switchback() -> None:
    """The last two periods, as the monitor takes it and the trainer reads it again."""
    counts = SwitchCounts(4, PeriodCounts(30, 2, 20.5), PeriodCounts(40, 3, 31.0), faults=1)
    told = reported(TrialSeen(5, True, "", "", None, None, counts))
    load = report_of(make_rig(), told)
    report_from_message(load)
    assert not load.trial.HasField("canary")
    found = trial_seen(load.trial).switch
    assert found == SwitchSeen(4.0, 30.0, 2.0, 20.5, 40.0, 3.0, 31.0, 1.0)
    load.trial.switchback.request_count = -1
    with pytest.raises(InvalidArgumentError, match=r"trial.switchback.request_count"):
        report_from_message(load)


@scenario
async def test_a_report_says_what_was_seen_of_a_watched_policy() -> None:
    """The figures of both policies by load, as the trainer then reads them again."""
    before, after = Figures(decisions=9.0, decision_s=0.25), Figures(faults=2.0)
    before.ends_LE[7], after.ends_LE[9] = (100.0, 3.0, 1.0, 0.0), (50.0, 40.0, 2.0, 5.0)
    told = WatchReport(4, "WATCH_MISSES", "by far", before, after)
    load = report_of(make_rig(), watch=told)
    report_from_message(load)
    found = watch_seen(load.watch)
    assert (found.activation, found.problem, found.detail) == (4, "WATCH_MISSES", "by far")
    assert found.before.row().tolist() == before.row().tolist()
    assert found.after.row().tolist() == after.row().tolist()
    assert not report_of(make_rig()).HasField("watch")


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"load_class": 32, "request_count": 1}, r"watch.after.classes\[0\].load_class"),
        ({"missed_count": -1}, r"watch.after.classes\[0\].missed_count"),
    ],
)
@scenario
async def test_figures_that_are_none_are_refused(wrong: dict[str, int], field: str) -> None:
    """By the monitor, naming the field."""
    load = report_of(make_rig(), watch=WatchReport(4, "", "", Figures(), Figures()))
    load.watch.after.classes.add(**wrong)
    with pytest.raises(InvalidArgumentError, match=field):
        report_from_message(load)


@scenario
async def test_a_report_says_what_was_seen_of_a_trial() -> None:
    """The sums of its stage, and why the router asks that policy no more."""
    rig = make_rig()
    counts = ShadowCounts(decisions=9, same_tier=4, tiers=Counter({1: 6, 2: 3}), value_gain=-0.5)
    shadow = report_of(rig, reported(TrialSeen(3, False, "", "", counts, None))).trial
    assert (shadow.rollout, shadow.is_canary, shadow.HasField("canary")) == (3, False, False)
    assert (shadow.shadow.decision_count, shadow.shadow.top_tier_count) == (9, 6)
    assert shadow.shadow.value_gain == -0.5
    seen = CanaryCounts(canary=ArmCounts(3, 1, 2.0, 0.25), control=ArmCounts(4, 0, 3.0), faults=1)
    seen.values.add(True, 0.5)
    canary = report_of(rig, reported(TrialSeen(4, True, "CANARY_SLOW", "by far", None, seen))).trial
    assert canary.is_canary
    assert (canary.problem, canary.problem_detail) == ("CANARY_SLOW", "by far")
    found = canary.canary
    assert (found.request_count, found.missed_count, found.control_value_sum) == (3, 1, 3.0)
    assert (found.effect_count, found.effect_total, found.effect_square) == (1, 1.0, 1.0)


def others(count: int = 1, **fields: Any) -> load_monitor_service_pb2.WatchSystemStateResponse:
    """Returns a state as this release's monitor sends it, of list 1, with load 3 everywhere."""
    numbers = np.full(count, 3.0, "<f4").tobytes()
    whole: dict[str, Any] = {
        "version": 1,
        "topology_version": 1,
        "loads": system_state_pb2.PackedLoads(
            in_flight_counts=numbers,
            waiting_prompt_token_counts=numbers,
            remaining_output_token_counts=numbers,
        ),
    }
    message = system_state_pb2.OtherRoutersState(**(whole | fields))
    return load_monitor_service_pb2.WatchSystemStateResponse(others=message)


def told(*names: str) -> dict[str, Any]:
    """Returns the fields of a state that tells the whole list."""
    endpoints = []
    for name in names:
        endpoint = common_pb2.Endpoint(endpoint=name, tiers=ENDPOINT.tiers)
        endpoints.append(system_state_pb2.EndpointState(endpoint=endpoint, ramp_weight=1.0))
    return {"is_whole_list": True, "endpoints": endpoints}


def test_the_list_is_read_once_and_endpoints_where_they_change() -> None:
    """What did not change is the same object, so that nothing is looked at again."""
    reader = StateReader("me", 1)
    first = reader.read(others(2, **told("e0", "e1")))
    second = reader.read(others(2))
    assert second.endpoints is first.endpoints
    assert second.candidates is first.candidates
    assert second.others_LC.tolist() == [[3.0, 3.0]] * 3
    changed = told("e1")["endpoints"]
    changed[0].health = common_pb2.ENDPOINT_HEALTH_DOWN
    third = reader.read(others(2, endpoints=changed))
    assert [each.weight for each in third.endpoints] == [1.0, 0.0]
    assert third.candidates is first.candidates
    assert reader.read(others(1, topology_version=2, **told("e1"))).candidates == (("small", "e1"),)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.25, 0.5, Share(0.25, 0.5)), (0.5, 0.25, WHOLE), (-1.0, 0.5, WHOLE), (0.0, math.nan, WHOLE)],
)
def test_a_home_that_is_none_is_everything(start: float, end: float, expected: Share) -> None:
    """As it is where none is told."""
    reader = StateReader("r1", 1)
    assert reader.read(others(1, **told("e0"))).home == WHOLE
    message = system_state_pb2.HomeShare(start=start, end=end)
    assert reader.read(others(1, home=message)).home == expected


@pytest.mark.parametrize(
    ("told_age", "expected"),
    [(Duration(seconds=1, nanos=250_000_000), 1.25), (Duration(seconds=-1), 0.0), (None, 0.0)],
)
def test_the_others_age_is_that_of_their_reports(
    told_age: Duration | None, expected: float
) -> None:
    """None where a monitor tells none, or what can be no age."""
    assert (
        StateReader("r1", 1).read(others(1, **told("e0"), others_age=told_age)).others_age_s
        == expected
    )


@pytest.mark.parametrize(
    ("rate_rps", "expected"), [(7.5, 7.5), (0.0, 0.0), (None, None), (math.nan, 0.0)]
)
def test_a_long_rate_that_is_not_told_is_not_none(
    rate_rps: float | None, expected: float | None
) -> None:
    """Without it a router reckons by what the monitor saw."""
    message = others(1, **told("e0"), others_arrival_rate_long_rps=rate_rps)
    assert StateReader("r1", 1).read(message).others_long_rps == expected


@scenario
async def test_a_report_tells_the_rates_at_both_time_scales() -> None:
    """As the router reckons them for its own decisions."""
    rig = make_rig()
    now_s = rig.clock.monotonic_s()
    for tick in range(5):
        rig.core.view.traffic.on_arrival(now_s - 0.4 + 0.1 * tick, 10.0)
    load = report_of(rig)
    short_rps, long_rps = rig.core.view.traffic.own_rates_rps(now_s)
    assert (load.arrival_rate_rps, load.arrival_rate_long_rps) == (short_rps, long_rps)
    assert report_from_message(load).arrival_rate_long_rps == long_rps > 0.0


def test_targets_that_were_not_told_stay_and_none_is_something_to_be_told() -> None:
    """None means as before: a monitor tells them where they changed."""
    reader = StateReader("me", 1)
    overrides = system_state_pb2.TargetOverrides()
    overrides.overrides.add(task="copa", target=0.999, set_by="ops")
    overrides.overrides.add(task="piqa")
    first = reader.read(others(1, **told("e0"), targets=overrides))
    assert first.targets == (SeenTarget("copa", 0.999, "ops", 0),)
    assert reader.read(others(1)).targets is None
    assert reader.read(others(1, targets=system_state_pb2.TargetOverrides())).targets == ()


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (others(1, topology_version=2), "for list 2, not 1"),
        (others(2), "do not fit 1 candidates"),
        (others(0), "do not fit 1 candidates"),
        (others(1, loads=system_state_pb2.PackedLoads()), "do not fit"),
        (others(1, endpoints=told("e9")["endpoints"]), "not in its list"),
        (
            others(
                loads=system_state_pb2.PackedLoads(
                    in_flight_counts=np.array([np.nan], "<f4").tobytes(),
                    waiting_prompt_token_counts=bytes(4),
                    remaining_output_token_counts=bytes(4),
                )
            ),
            "out of range",
        ),
    ],
)
def test_a_state_for_another_list_is_refused(
    state: load_monitor_service_pb2.WatchSystemStateResponse, problem: str
) -> None:
    """No load is taken for another candidate's: the router asks for the whole list again."""
    reader = StateReader("me", 1)
    reader.read(others(1, **told("e0")))
    with pytest.raises(ValueError, match=problem):
        reader.read(state)


def test_a_list_too_long_for_a_report_is_reported_by_name() -> None:
    """Where there is load; the order alone would not fit."""
    row = {("t" * 60, f"{index:060d}"): index for index in range(2_000)}
    fleet: Any = SimpleNamespace(row=row, candidate_count=len(row))
    load = LoadView(fleet, NoSiblings())
    load.ledger.dispatch(1, next(iter(row)), 10.0, 8.0)
    message = system_state_pb2.RouterLoad()
    LoadWriter().write(message, load, packs=True)
    assert not message.HasField("packed_loads")
    assert not message.candidates
    assert [each.in_flight_count for each in message.loads] == [1]
