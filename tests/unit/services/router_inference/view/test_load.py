"""Own load at once, others' from the state, nothing counted twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from services.router_inference.view.load import LoadView
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import SharedSiblings
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


@scenario
async def test_load_is_own_plus_others() -> None:
    """The ledger's requests add to those of the state."""
    rig = make_rig()
    view = rig.core.view
    view.load.ledger.dispatch(1, ("small", "e0"), 10.0, 8.0)
    view.apply(state(endpoint(0)), rig.clock.monotonic_s())
    assert view.load.current().in_flight_C.tolist() == [4.0, 0.0, 0.0]
    assert view.load.current().remaining_output_tokens_C.tolist() == [32.0, 0.0, 0.0]
    assert view.load.own().in_flight_C.tolist() == [1.0, 0.0, 0.0]
    assert [view.load.other_in_flight(row) for row in range(3)] == [3.0, 0.0, 0.0]


@scenario
async def test_own_load_is_in_the_arrays_at_once_and_others_after_each_state() -> None:
    """The same arrays hold what is dispatched, without a new look, until the fleet changes."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.apply(replace(state(endpoint(0)), others_LC=np.zeros((3, 3))), now_s)
    own_LC, others_LC, heard_LC = view.load.own_LC, view.load.others_LC, view.load.heard_LC
    view.load.ledger.dispatch(1, ("large", "e0"), 10.0, 8.0)
    assert own_LC[:, 2].tolist() == [1.0, 10.0, 8.0]
    view.apply(state(endpoint(0)), now_s)
    assert view.load.own_LC is own_LC
    assert others_LC[:, 0].tolist() == [3.0, 30.0, 24.0]
    assert not heard_LC.any()
    view.apply(state(endpoint(1), endpoint(0)), now_s)
    assert view.load.own_LC[:, 5].tolist() == [1.0, 10.0, 8.0]
    assert view.load.current().in_flight_C.tolist() == [0.0, 0.0, 0.0, 3.0, 0.0, 1.0]


@scenario
async def test_lists_that_shrink_grow_and_reorder_lose_no_request() -> None:
    """What is under way on an endpoint that left is reported, and counts when it comes back."""
    rig = make_rig(endpoint_count=2)
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    view.load.ledger.dispatch(1, ("small", "e1"), 10.0, 8.0)
    view.load.ledger.dispatch(2, ("large", "e0"), 20.0, 4.0)
    for numbers in ((0,), (1, 0), (2, 0), (3, 2, 1, 0), (0,)):
        view.apply(state(*map(endpoint, numbers), topology=len(numbers)), now_s)
        in_flight = dict(zip(view.fleet.candidates, view.load.own().in_flight_C, strict=True))
        assert in_flight.get(("small", "e1"), 0.0) == (1.0 if 1 in numbers else 0.0)
        assert in_flight["large", "e0"] == 1.0
        totals = view.load.ledger.totals()
        assert totals == {("small", "e1"): (1, 10, 8), ("large", "e0"): (1, 20, 4)}
        await rig.answer(rig.job())
    view.load.ledger.finish(1)
    assert view.load.ledger.totals() == {("large", "e0"): (1, 20, 4)}


@scenario
async def test_workers_count_as_one_router() -> None:
    """What a sibling dispatches is own load at once, in decisions and in reports, until it ends."""
    view = make_rig(endpoint_count=2).core.view
    fleet, smaller = view.fleet.latest, make_rig().core.view.fleet.latest
    memory = Memory(worker_count=2, counts_width=1)
    first = LoadView(fleet, SharedSiblings(memory, 1))
    second = LoadView(fleet, SharedSiblings(memory, 2))
    first.ledger.dispatch(1, ("small", "e1"), 10.0, 8.0)
    second.ledger.dispatch(1, ("small", "e1"), 20.0, 4.0)
    second.ledger.dispatch(2, ("large", "e0"), 20.0, 4.0)
    together = {("small", "e1"): (2.0, 30.0, 12.0), ("large", "e0"): (1.0, 20.0, 4.0)}
    assert first.totals() == second.totals() == together
    assert list(first.current().in_flight_C) == list(second.own().in_flight_C)
    # One of them hears of a shorter list first; what it has under way there is still reported.
    first.forget(smaller)
    assert first.totals() == {("small", "e1"): (1.0, 10.0, 8.0), ("large", "e0"): (1.0, 20.0, 4.0)}
    assert second.totals() == {("small", "e1"): (1.0, 20.0, 4.0), ("large", "e0"): (1.0, 20.0, 4.0)}
    second.forget(smaller)
    first.apply((("large", "e0"),), np.array([[5.0], [1.0], [1.0]]), fleet)
    assert first.current().in_flight_C.sum() == 7.0
    memory.retire(2, lambda counts: counts)
    assert first.totals() == {("small", "e1"): (1.0, 10.0, 8.0)}
