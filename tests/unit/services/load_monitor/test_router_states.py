"""What a router that watches is sent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router.fleet import EndpointSpec
from router.quality import Rating
from services.common.ratings import read_ratings
from services.common.times import seconds_of
from services.load_monitor.convert_ratings import messages_of_table
from services.load_monitor.loads import RouterLoads
from services.load_monitor.model import (
    EndpointView,
    Health,
    Picture,
    RatingTable,
    RouterReport,
    TierGauge,
    ToldTasks,
)
from services.load_monitor.router_states import RouterStates, Watcher
from services.load_monitor.targets import TargetOverride
from tests.unit.services.load_monitor.rig import endpoint, picture, report
from tiercel.load_monitor.v1 import system_state_pb2 as pb


def view(spec: EndpointSpec, weight: float = 1.0, queue_depth: int = 0) -> EndpointView:
    """Returns a ready endpoint."""
    gauges = tuple(TierGauge(tier, True, queue_depth=queue_depth) for tier in spec.models)
    return EndpointView(spec, Health.READY, weight, 1, gauges, "")


def after(first: Picture, *views: EndpointView) -> Picture:
    """Returns a later picture of the same list."""
    return replace(first, version=first.version + 1, endpoints=views)


def test_the_list_is_sent_once_and_then_what_changed() -> None:
    """Gauges that no router decides by are no change."""
    states, watcher = RouterStates(), Watcher("r1", 1)
    one, two = endpoint("e1"), endpoint("e2")
    first = picture(1, (view(one), view(two)))
    whole = states.state_for(watcher, first)
    assert whole.is_whole_list
    assert [each.endpoint.endpoint for each in whole.endpoints] == ["e1", "e2"]
    assert not whole.endpoints[0].HasField("probe_time")
    second = after(first, view(one, queue_depth=9), view(two))
    assert not states.state_for(watcher, second).endpoints
    changed = states.state_for(watcher, after(second, view(one), view(two, weight=0.5)))
    assert not changed.is_whole_list
    assert [each.endpoint.endpoint for each in changed.endpoints] == ["e2"]


def test_a_slow_router_is_told_all_that_changed_meanwhile() -> None:
    """It skips states, not changes."""
    states, fast, slow = RouterStates(), Watcher("r1", 1), Watcher("r2", 1)
    specs = [endpoint(f"e{index}") for index in range(3)]
    shown = picture(1, tuple(map(view, specs)))
    for watcher in (fast, slow):
        states.state_for(watcher, shown)
    for index in range(2):
        views = [view(spec, 0.5 if at <= index else 1.0) for at, spec in enumerate(specs)]
        shown = after(shown, *views)
        assert len(states.state_for(fast, shown).endpoints) == 1
    assert len(states.state_for(slow, shown).endpoints) == 2


def test_a_list_of_the_same_number_in_another_order_is_sent_whole() -> None:
    """Monitors that were apart may have numbered different lists alike."""
    states, watcher = RouterStates(), Watcher("r1", 1)
    spec = endpoint("e1")
    turned = replace(spec, models=dict(reversed(list(spec.models.items()))))
    states.state_for(watcher, picture(1, (view(spec),)))
    whole = states.state_for(watcher, picture(2, (view(turned),)))
    assert whole.is_whole_list
    assert [tier.tier for tier in whole.endpoints[0].endpoint.tiers] == list(turned.models)


def test_only_what_this_process_reported_is_left_out() -> None:
    """By name and epoch; the number of the report that was left out is told back."""
    reports = [
        replace(report(name, sequence), loads=RouterLoads.by_name({("small", "e1"): (count, 0, 0)}))
        for name, sequence, count in (("r1", 7, 2), ("r2", 1, 5))
    ]
    shown = picture(1, (view(endpoint("e1")),), tuple(reports))
    for epoch, count, sequence in ((1, 5.0, 7), (2, 7.0, 0)):
        state = RouterStates().state_for(Watcher("r1", epoch), shown)
        assert np.frombuffer(state.loads.in_flight_counts, "<f4").tolist() == [count, 0.0]
        assert state.own_sequence == sequence


def test_a_router_is_told_how_old_the_others_are() -> None:
    """As the picture and its reports are old; and what arrives there in the long run."""
    reports = tuple(
        replace(report(name, 1), age_s=age_s, arrival_rate_long_rps=rate_rps)
        for name, age_s, rate_rps in (("r1", 0.125, 8.0), ("r2", 0.5, 2.0))
    )
    shown = picture(1, (view(endpoint("e1")),), reports)
    state = RouterStates().state_for(Watcher("r1", 1), shown, 0.25)
    assert seconds_of(state.others_age) == 0.75
    assert state.others_arrival_rate_long_rps == 2.0
    alone = RouterStates().state_for(Watcher("r1", 1), picture(2, shown.endpoints, reports[:1]))
    assert not alone.HasField("others_age")
    assert alone.HasField("others_arrival_rate_long_rps")


def test_targets_are_told_first_and_when_they_change() -> None:
    """That there are none is told too, so that a router drops what it had heard before."""
    states, watcher = RouterStates(), Watcher("r1", 1)
    first = picture(1, (view(endpoint("e1")),))
    assert states.state_for(watcher, first).HasField("targets")
    assert not states.state_for(watcher, replace(first, version=2)).HasField("targets")
    overrides = (TargetOverride("copa", 0.999, 1),)
    changed = states.state_for(watcher, replace(first, version=3, targets=overrides))
    assert [each.task for each in changed.targets.overrides] == ["copa"]
    again = replace(first, version=4, targets=tuple(map(replace, overrides)))
    assert not states.state_for(watcher, again).HasField("targets")
    gone = states.state_for(watcher, replace(first, version=5))
    assert gone.HasField("targets")
    assert not gone.targets.overrides


def test_a_router_is_told_its_home_once_it_has_reported() -> None:
    """Homes of all routers cover everything; who is not among them has none."""
    reports = tuple(report(name, 1) for name in ("r1", "r2"))
    shown = picture(1, (view(endpoint("e1")),), reports)
    first, second, third = (
        RouterStates().state_for(Watcher(name, 1), shown) for name in ("r1", "r2", "r3")
    )
    assert (first.home.start, first.home.end) == (0.0, second.home.start)
    assert second.home.end == 1.0
    assert not third.HasField("home")


def told_tasks(table: RatingTable) -> ToldTasks:
    """Returns what a router told of ratings."""
    told = pb.RouterLoad(task_ratings=messages_of_table(table))
    return ToldTasks(ratings=told.SerializeToString(), table=table)


def test_ratings_are_told_where_they_changed_about_once_a_second() -> None:
    """And at once to a router whose reports begin to be counted: its own are among them then."""
    states, watcher = RouterStates(), Watcher("r1", 1)
    tables = [{("copa", "small"): Rating(answers, 0.5, 0.3)} for answers in (1, 2, 3)]
    tasks = told_tasks(tables[0])
    reports = [replace(report("r1", at), tasks=tasks) for at in (1, 2, 3)]
    empty = picture(1, (view(endpoint("e1")),))
    assert not states.state_for(watcher, empty).HasField("ratings")

    def sent(after_s: float, table: RatingTable, own: RouterReport | None) -> list[int] | None:
        told = picture(2, empty.endpoints, () if own is None else (own,))
        stamp = empty.publish_wall_ns + round(after_s * 1e9)
        state = states.state_for(watcher, replace(told, publish_wall_ns=stamp, ratings=table))
        if not state.HasField("ratings"):
            return None
        parts = state.ratings.tasks, state.ratings.own_tasks
        return [sum(tier.rating_count for task in part for tier in task.tiers) for part in parts]

    assert sent(2.0, tables[0], None) == [1, 0]
    assert sent(2.1, tables[1], None) is None
    assert sent(2.2, tables[1], reports[0]) == [2, 1]
    assert sent(2.4, tables[2], reports[1]) is None
    assert sent(3.3, tables[2], reports[1]) == [3, 1]
    assert sent(5.0, tables[2], reports[2]) is None
    assert sent(5.1, tables[2], None) == [3, 0]


def test_routers_are_told_the_same_of_the_mesh_and_each_its_own() -> None:
    """What is the same for all is made once per table."""
    mesh = {("copa", "small"): Rating(9, 0.5, 0.3), ("piqa", "small"): Rating(4, 0.25, 0.1)}
    own = {"r1": {("copa", "small"): Rating(5, 0.75, 0.6)}, "r2": {}}
    reports = tuple(replace(report(name, 1), tasks=told_tasks(own[name])) for name in own)
    shown = picture(1, (view(endpoint("e1")),), reports)
    shown = replace(shown, publish_wall_ns=2 * 10**9, ratings=mesh)
    states = RouterStates()
    for name, table in {**own, "r3": {}}.items():
        told = states.state_for(Watcher(name, 1), shown).ratings
        assert read_ratings(told.tasks) == mesh
        assert read_ratings(told.own_tasks) == table
    later = replace(shown, ratings={**mesh, ("copa", "small"): Rating(10, 0.5, 0.3)})
    told = states.state_for(Watcher("r1", 1), later).ratings
    assert read_ratings(told.tasks) == later.ratings
