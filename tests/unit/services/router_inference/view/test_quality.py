"""What feedback says of tiers reaches decisions; what was decided before stays explained."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from router.explanation import Explainer
from router.quality import Rating
from services.common.errors import NotFoundError
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.board import Board
from services.load_monitor.convert import report_from_message
from services.load_monitor.health import HealthRules
from services.load_monitor.ratings import MeshRatings
from services.load_monitor.router_states import RouterStates, Watcher
from services.load_monitor.topology import Topology
from services.router_inference.job import Job, Outcome
from services.router_inference.path.leases import Report
from services.router_inference.view.client_shares import FREE
from services.router_inference.view.convert import LoadWriter, StateReader, router_load
from services.router_inference.view.quality import EVERY_S, MOST_TOLD
from tests.unit.services.load_monitor.test_ratings import told
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb


async def rated(rig: Rig, count: int, score: float, tier: str = "small") -> Job:
    """Has so many requests answered by a tier and rates each; returns the last one."""
    for number in range(count):
        job = rig.job(request_id=f"{tier}-{number}", tier=tier)
        await rig.answer(job)
        rig.core.leases.feedback("", job.request_id, score)
    return job


def in_use(rig: Rig, tier: str = "small") -> float:
    """Returns the quality of a tier on task hard that decisions use."""
    fleet = rig.core.view.fleet.latest
    return float(fleet.arrays.quality_KC[0, fleet.row[tier, "e0"]])


@scenario
async def test_decisions_use_the_next_table() -> None:
    """Not each report by itself; answers earn by it too."""
    rig = make_rig(learn_quality=True)
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    assert in_use(rig) == before
    working = asyncio.create_task(rig.core.quality.run())
    await asyncio.sleep(1.5 * EVERY_S)
    working.cancel()
    [found] = rig.core.status.read().qualities
    assert before - 0.2 <= in_use(rig) < before - 0.1
    assert (found.task, found.tier, found.reports) == ("hard", "small", 40)
    assert (found.quality, found.settings_quality) == (in_use(rig), before)
    assert 0.0 < found.error < 0.3
    job = rig.job(tier="small")
    await rig.answer(job)
    assert job.quality == in_use(rig)
    assert rig.core.status.read().quality_version == 1


@scenario
async def test_a_decision_is_explained_by_the_table_it_was_taken_by() -> None:
    """To the last bit, whatever has been learned since."""
    rig = make_rig(policy="price", learn_quality=True)
    job = await rated(rig, 30, 0.1)
    inputs, explainer = choice_of(job).inputs, Explainer()
    before = explainer.explain(inputs).score_C.copy()
    rig.core.quality.put()
    later = rig.job(tier="small")
    await rig.answer(later)
    assert (explainer.explain(choice_of(later).inputs).score_C != before).any()
    assert (explainer.explain(inputs).score_C == before).all()
    fleet = inputs.fleet.arrays
    assert fleet.quality_KC is not choice_of(later).inputs.fleet.arrays.quality_KC


@scenario
async def test_a_closed_ticket_rates_once() -> None:
    """Feedback for the same answer changes its record, and teaches nothing more."""
    rig = make_rig(learn_quality=True)
    routed = rig.core.leases.route(rig.job(request_id="mine", prompt=None, prompt_tokens=5))
    rig.core.leases.close(routed.ticket, Report(Outcome.ON_TIME, None, 3, 0.5))
    rig.core.leases.feedback("", "mine", 0.4)
    assert [each.reports for each in rig.core.quality.read()] == [1]


@scenario
async def test_what_is_not_the_callers_teaches_nothing() -> None:
    """Neither does a second report on one answer."""
    rig = make_rig(learn_quality=True)
    await rig.answer(rig.job(request_id="mine", client="1.1.1.1"))
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("2.2.2.2", "mine", 0.0)
    assert rig.core.quality.read() == []
    rig.core.leases.feedback("1.1.1.1", "mine", 0.5)
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("1.1.1.1", "mine", 0.0)
    assert [each.reports for each in rig.core.quality.read()] == [1]


@scenario
async def test_one_client_among_others_teaches_no_more_than_they_do() -> None:
    """By feedback and by closed tickets alike; what it says goes into records all the same."""
    rig = make_rig(learn_quality=True)
    for number in range(2):
        await rig.answer(rig.job(request_id=f"b{number}", client="2.2.2.2", tier="small"))
        rig.core.leases.feedback("2.2.2.2", f"b{number}", 0.9)
    for number in range(30):
        job = rig.job(
            request_id=f"a{number}", client="1.1.1.1", tier="small", prompt=None, prompt_tokens=5
        )
        if number % 2:
            ticket = rig.core.leases.route(job).ticket
            rig.core.leases.close(ticket, Report(Outcome.ON_TIME, None, 3, 0.0))
        else:
            await rig.answer(rig.job(request_id=f"f{number}", client="1.1.1.1", tier="small"))
            rig.core.leases.feedback("1.1.1.1", f"f{number}", 0.0)
    assert [each.reports for each in rig.core.quality.read()] == [2 + 2 + FREE]


@scenario
async def test_it_is_off_by_default() -> None:
    """Reports go into records alone."""
    rig = make_rig()
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    rig.core.quality.put()
    assert in_use(rig) == before
    assert rig.core.status.read().qualities == []


@scenario
async def test_switching_it_off_brings_the_table_of_the_settings_back() -> None:
    """And what was learned is forgotten."""
    rig = make_rig(learn_quality=True)
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    rig.core.quality.put()
    assert in_use(rig) < before
    catalog = rig.app._files.catalog
    for is_on in (True, False):
        learned = rig.core.quality.configure(catalog, is_on=is_on)
        assert (learned.quality_KT == catalog.quality_KT).all() != is_on
    assert rig.core.quality.read() == []


class Mesh:
    """A load monitor, and routers that report to it and are told."""

    def __init__(self, rig: Rig) -> None:
        """Starts with the clock of a router."""
        self.clock = rig.clock
        self.board = Board(
            monitor_id="m",
            clock=self.clock,
            rules=HealthRules(2, 2, 5.0, 0.1),
            aggregator=Aggregator(clock=self.clock, silence_s=1e9, max_routers=10),
            topology=Topology({}),
        )
        self._states = RouterStates()
        self._version = 0

    def report(self, rig: Rig, name: str, epoch: int = 1) -> None:
        """Has a router report."""
        self._version += 1
        core = rig.core
        load = router_load(
            router_id=name,
            epoch=epoch,
            sequence=self._version,
            view=core.view,
            counts=core.counts,
            policy="",
            policy_version="",
            activation=0,
            policy_refusal="",
            attainments=(),
            latencies={},
            tells_tasks=False,
            target_pressure=0.0,
            trial=None,
            watch=None,
            learns_quality=core.quality.is_on,
            ratings=core.quality.told(),
            loads=LoadWriter(),
            packs=True,
            now_s=self.clock.monotonic_s(),
            now_ns=self.clock.wall_ns(),
        )
        self.board.aggregator._silence_s = 1e9
        self.board.leave(name, epoch - 1)
        self.board.take_report(report_from_message(load), name)

    def tell(self, rig: Rig, name: str, epoch: int = 1) -> None:
        """Tells a router, as the first state of a watch does."""
        self._version += 1
        others = self._states.state_for(Watcher(name, epoch), self.board.picture(self._version))
        response = monitor_pb.WatchSystemStateResponse(others=others)
        ratings = StateReader(name, epoch).read(response).ratings
        if ratings is not None:
            rig.core.quality.take_in(ratings)


def known(rig: Rig) -> list[tuple[str, str, float, int]]:
    """Returns what a router has learned: task, tier, quality and reports."""
    rig.core.quality.put()
    estimator = rig.core.quality._estimator
    return [
        (each.task, each.tier, round(float(estimator.quality_KT[0, 0]), 9), each.reports)
        for each in rig.core.quality.read()
    ]


@scenario
async def test_two_routers_learn_what_one_would_that_was_told_all() -> None:
    """Whether or not a router's own reports are in what the mesh tells it."""
    one, two, all_told = (make_rig(learn_quality=True) for _ in range(3))
    mesh = Mesh(one)
    for turn in range(4):
        score = 0.2 * turn
        await rated(one, 5, score)
        await rated(two, 3, 1.0 - score)
        await rated(all_told, 5, score)
        await rated(all_told, 3, 1.0 - score)
        for name, rig in (("r1", one), ("r2", two)):
            mesh.report(rig, name)
            mesh.tell(rig, name)
    await rated(one, 4, 0.9)
    await rated(all_told, 4, 0.9)
    for name, rig in (("r1", one), ("r2", two)):
        mesh.tell(rig, name)
    assert known(one) == known(all_told)
    assert known(two)[0][-1] == 32
    mesh.report(one, "r1")
    mesh.tell(two, "r2")
    assert known(two) == known(all_told)


@scenario
async def test_a_router_that_starts_anew_knows_what_the_mesh_was_told() -> None:
    """With its first state, its own former reports among them."""
    first, other = make_rig(learn_quality=True), make_rig(learn_quality=True)
    mesh = Mesh(first)
    await rated(first, 30, 0.0)
    mesh.report(first, "r1")
    mesh.tell(other, "r2")
    assert in_use(other) < in_use(first)  # the first has not looked yet
    again = make_rig(learn_quality=True)
    mesh.tell(again, "r1", epoch=2)
    assert in_use(again) == in_use(other)
    await rated(again, 2, 1.0)
    mesh.report(again, "r1", epoch=2)
    mesh.tell(again, "r1", epoch=2)
    assert known(again)[0][-1] == 32


@scenario
async def test_a_state_that_knows_nothing_of_this_router_leaves_it_what_it_knows() -> None:
    """A monitor that starts anew hears of it with its next report."""
    rig, other = make_rig(learn_quality=True), make_rig(learn_quality=True)
    mesh = Mesh(rig)
    await rated(rig, 20, 0.1)
    before = known(rig)
    await rated(other, 20, 0.9)
    mesh.report(other, "r2")
    mesh.tell(rig, "r1")
    assert known(rig) == before
    mesh.report(rig, "r1")
    mesh.tell(rig, "r1")
    assert known(rig)[0][-1] == 40


@scenario
async def test_what_the_monitor_does_not_count_stays_in_the_router() -> None:
    """Its settings may lack the task yet, or it has no room: then the own reports are all."""
    rig, alone = make_rig(learn_quality=True), make_rig(learn_quality=True)
    mesh = Mesh(rig)
    mesh.board.ratings = MeshRatings(clock=mesh.clock, is_known=lambda _, tier: tier == "large")
    for each in (rig, alone):
        await rated(each, 30, 0.0)
        await rated(each, 5, 1.0, tier="large")
    for _ in range(2):
        mesh.report(rig, "r1")
        mesh.tell(rig, "r1")
        assert known(rig) == known(alone)
    for each in (rig, alone):
        await rated(each, 2, 0.5)
    mesh.report(rig, "r1")
    mesh.tell(rig, "r1")
    assert known(rig) == known(alone)


@scenario
async def test_a_claim_of_the_largest_count_does_not_end_all_learning() -> None:
    """Routers go by how counts grow, and the mesh's is kept when all of its processes are gone."""
    rig, other = make_rig(learn_quality=True), make_rig(learn_quality=True)
    mesh = Mesh(rig)
    mesh.board.take_report(told("wrong", {("hard", "small"): Rating(2**53, 0.5, 0.5)}), "wrong")
    mesh.tell(other, "r2")
    [before] = known(other)
    for _ in range(2):
        await rated(rig, 40, 0.0)
        mesh.report(rig, "r1")
        mesh.tell(other, "r2")
        [after] = known(other)
    assert after[2] < before[2] - 0.01


@scenario
async def test_squares_that_go_with_no_mean_tell_no_error_that_is_no_number() -> None:
    """Such as the store may hold, to which others write."""
    rig = make_rig(learn_quality=True)
    response = monitor_pb.WatchSystemStateResponse()
    tiers = response.others.ratings.tasks.add(task="hard").tiers
    tiers.add(tier="small", rating_count=500, mean=1.0, mean_square=0.0)
    tiers.add(tier="large", rating_count=500, mean=1.0, mean_square=0.9)
    ratings = StateReader("r1", 1).read(response).ratings
    assert ratings is not None
    rig.core.quality.take_in(ratings)
    errors = [each.error for each in rig.core.quality.read()]
    assert len(errors) == 2
    assert all(0.0 <= error <= 1.0 for error in errors), errors


@scenario
async def test_what_can_be_no_rating_is_left_out() -> None:
    """And so is what the settings do not have."""
    rig = make_rig(learn_quality=True)
    other = monitor_pb.WatchSystemStateResponse()
    other.others.ratings.SetInParent()
    for task, count, mean, square in (
        ("hard", 5, math.nan, 0.0),
        ("hard", -1, 0.5, 0.5),
        ("soft", 5, 0.5, math.inf),
        ("soft", 2**62, 0.5, 0.5),
        ("unheard", 5, 0.5, 0.5),
        ("first", 5, 0.5, 0.3),
    ):
        tiers = other.others.ratings.tasks.add(task=task).tiers
        tiers.add(tier="small", rating_count=count, mean=mean, mean_square=square)
    ratings = StateReader("r1", 1).read(other).ratings
    assert ratings is not None
    rig.core.quality.take_in(ratings)
    assert [(each.task, each.reports) for each in rig.core.quality.read()] == [("first", 5)]
    assert np.isfinite(rig.core.quality._estimator.quality_KT).all()


@scenario
async def test_off_it_tells_nothing_and_on_again_it_knows_what_the_mesh_does() -> None:
    """What it had told stays the mesh's."""
    rig = make_rig(learn_quality=True)
    mesh, catalog = Mesh(rig), rig.app._files.catalog
    await rated(rig, 40, 0.0)
    mesh.report(rig, "r1")
    rig.core.quality.configure(catalog, is_on=False)
    assert rig.core.quality.told() == {}
    mesh.tell(rig, "r1")
    assert rig.core.quality.read() == []
    rig.core.quality.configure(catalog, is_on=True)
    assert known(rig)[0][-1] == 40
    assert len(rig.core.quality.told()) == 1 < MOST_TOLD
