"""Priority classes in a live router: the low one pays more, and is refused first."""

from __future__ import annotations

import dataclasses
import math

import pytest

from router.priority import CAUTION, MEMORY, OWED, PRICE
from router.types import Priority
from services.common.errors import ResourceExhaustedError
from services.router_inference.doors.convert import explanation_response, status_response
from services.router_inference.job import Standing
from services.router_inference.path.priorities import Priorities
from tests.unit.services.router_inference.parts import TASKS, Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

UNTARGETED = tuple(dataclasses.replace(task, target=0.0) for task in TASKS)
"""What is predicted late then raises no pressure, which would change admission's own factor."""


async def small_s(rig: Rig) -> float:
    """Returns what is predicted for a request to the small tier with nothing under way."""
    job = rig.job(tier="small")
    await rig.answer(job)
    return choice_of(job).predicted_s


def explained(rig: Rig, request_id: str) -> pb2.PriorityExplanation:
    """Returns what is told of a decision's priority."""
    choice = rig.core.explanations.find(request_id)
    assert choice is not None
    explainer = rig.core.servicer._explainer
    found = explainer.explain(choice.inputs)
    larger = explainer.for_larger_tier(choice.inputs, 0)
    return explanation_response(choice, found, larger).priority


@scenario
async def test_the_low_class_is_refused_first() -> None:
    """By its own factor, which the error tells; the same request of another class is served."""
    rig = make_rig(tasks=UNTARGETED)
    deadline_s = 0.72 * await small_s(rig)
    for priority in (Priority.NORMAL, Priority.HIGH):
        job = rig.job(tier="small", deadline_s=deadline_s, priority=priority)
        assert rig.core.dispatcher._decider.decide(job).standing.priority is priority
    low = rig.job(tier="small", deadline_s=deadline_s, priority=Priority.LOW)
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(low)
    assert caught.value.reason == "DEADLINE_NOT_REACHABLE"
    assert "for priority low" in str(caught.value)
    assert float(caught.value.metadata["factor"]) == pytest.approx(
        0.7 * math.exp(CAUTION), rel=0.001
    )


@scenario
async def test_a_class_that_is_owed_an_admission_gets_it() -> None:
    """Of requests that low alone would be refused for, as many are served as it is owed."""
    rig = make_rig(tasks=UNTARGETED)
    deadline_s = 0.71 * await small_s(rig)
    decide = rig.core.dispatcher._decider.decide
    served = 0
    for _ in range(1_000):
        decide(rig.job(tier="small", deadline_s=deadline_s))
        try:
            job = rig.job(tier="small", deadline_s=deadline_s, priority=Priority.LOW)
            served += decide(job) is not None
        except ResourceExhaustedError:
            pass
    assert OWED * 1_000 <= served < 1_000
    # What is held against it has fallen, as its share did, to what just lets some of it pass.
    held = decide(rig.job(priority=Priority.LOW)).standing.log_caution
    assert held == pytest.approx(math.log(0.71 / 0.7), abs=0.005)


@scenario
async def test_device_time_costs_a_high_request_less() -> None:
    """Beside normal ones; a decision and its explanation tell by what factor."""
    rig = make_rig(policy="price")
    await rig.answer(rig.job(priority=Priority.HIGH, request_id="mine"))
    query = rig.core.explanations.find("mine")
    assert query is not None
    expected = PRICE * (-1.0 + 1.0 / MEMORY)
    assert query.inputs.asked.query.log_price == pytest.approx(expected)
    assert query.inputs.asked.query.pressure == query.held.pressure
    told = explained(rig, "mine")
    assert (told.priority, told.asked) == (common_pb2.PRIORITY_HIGH, common_pb2.PRIORITY_HIGH)
    assert told.price_factor == pytest.approx(math.exp(expected))
    assert 0.9 < told.admission_factor < 1.0
    assert not told.owed


@scenario
async def test_what_admission_was_not_asked_is_not_told() -> None:
    """A soft deadline is never refused, whatever the class."""
    rig = make_rig()
    await rig.answer(rig.job(task="soft", priority=Priority.LOW, request_id="mine"))
    told = explained(rig, "mine")
    assert told.admission_factor == 1.0
    assert told.price_factor > 1.5


@scenario
async def test_records_and_status_tell_classes() -> None:
    """The class that was decided for, and what became of each."""
    rig = make_rig()
    await rig.answer(rig.job(priority=Priority.LOW))
    await rig.answer(rig.job())
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(rig.job(priority=Priority.LOW, deadline_s=0.001))
    decisions = [e.decision for e in await rig.records() if e.HasField("decision")]
    assert [each.priority for each in decisions] == [
        common_pb2.PRIORITY_LOW, common_pb2.PRIORITY_NORMAL,
    ]  # fmt: skip
    high, normal, low = status_response(rig.core.status.read()).priorities
    assert (high.on_time_count, normal.on_time_count, low.on_time_count) == (0, 1, 1)
    assert (normal.refused_count, low.refused_count, low.missed_count) == (0, 1, 0)
    assert high.price_factor < normal.price_factor < low.price_factor
    metrics = {
        (s.labels["priority"], s.labels["outcome"]): s.value
        for metric in rig.core.accounts.collect()
        for s in metric.samples
        if s.name == "tiercel_priority_requests_total" and s.value
    }
    assert metrics == {("low", "on_time"): 1.0, ("normal", "on_time"): 1.0, ("low", "refused"): 1.0}


@scenario
async def test_normal_alone_is_as_without_classes() -> None:
    """Nothing is added to the price, nothing to the caution, by not one digit."""
    found = Priorities()
    rig = make_rig()
    for _ in range(300):
        standing = found.arrive(rig.job())
        assert standing == Standing()
        found.learn(standing, refused=True)
