"""The last decisions are kept, within a bound of memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router.explanation import Explainer
from services.router_inference.records.explanations import CHOICE_BYTES, Explanations
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


def kept(rig: Rig) -> Explanations:
    """Returns the decisions that a router keeps."""
    return rig.core.explanations


@scenario
async def test_a_good_request_is_explained_on_demand() -> None:
    """What is found is what was found, bit by bit, on another fleet under another load."""
    rig = make_rig(endpoint_count=2, policy="price")
    view = rig.core.view
    view.apply(state(endpoint(0), endpoint(1)), rig.clock.monotonic_s())
    view.load.ledger.dispatch(1, ("large", "e1"), 50.0, 9.0)
    await rig.answer(rig.job(request_id="mine"))
    board = view.desk(rig.clock.monotonic_s()).bound.board
    computed = [
        array.copy()
        for array in (board.decided.score_C, board.decided.predicted_s_C, board.seen.in_flight_C)
    ]
    view.load.ledger.finish(1)
    for numbers in ((1, 0), (2,), (0, 1, 2)):
        view.apply(state(*map(endpoint, numbers)), rig.clock.monotonic_s())
        await rig.answer(rig.job())
    choice = kept(rig).find("mine")
    assert choice is not None
    found = Explainer().explain(choice.inputs)
    for one, two in zip(
        computed, (found.score_C, found.predicted_s_C, found.in_flight_C), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    assert choice.candidates[choice.action] == choice.target.candidate


@scenario
async def test_the_oldest_give_way() -> None:
    """The bound is one of memory, and holds whatever the fleet is like."""
    rig = make_rig(explanation_memory_bytes=20 * CHOICE_BYTES)
    for number in range(60):
        await rig.answer(rig.job(request_id=f"r{number}"))
    ring = kept(rig)
    assert 10 < len(ring) < 20
    assert ring.used_bytes <= 20 * CHOICE_BYTES
    assert ring.find("r59") is not None
    assert ring.find("r0") is None


@scenario
async def test_the_newest_are_read_back() -> None:
    """Newest first, down to what was read before, and no more than asked for."""
    rig = make_rig()
    for number in range(6):
        await rig.answer(rig.job(request_id=f"r{number}"))
    ring = kept(rig)
    assert [choice.request_id for choice in ring.newest(3, 10)] == ["r5", "r4", "r3"]
    assert [choice.request_id for choice in ring.newest(0, 2)] == ["r5", "r4"]


@scenario
async def test_nothing_is_kept_without_room() -> None:
    """Memory of nothing switches it off."""
    rig = make_rig(explanation_memory_bytes=0)
    await rig.answer(rig.job(request_id="mine"))
    assert kept(rig).find("mine") is None
    assert len(kept(rig)) == 0


@scenario
async def test_an_id_used_twice_takes_one_place() -> None:
    """The later decision is the one that is found, and its room is counted once."""
    rig = make_rig()
    job = rig.job(request_id="mine")
    await rig.answer(job)
    ring, first = Explanations(10**6), choice_of(job)
    ring.keep(first)
    used_bytes = ring.used_bytes
    second = replace(first, sequence=2)
    for _ in range(5):
        ring.keep(second)
    assert ring.find("mine") is second
    assert len(ring) == 1
    assert ring.used_bytes <= used_bytes
