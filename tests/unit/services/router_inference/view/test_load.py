"""Own load at once, others' from the state, nothing counted twice."""

from __future__ import annotations

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
    assert view.load.current().in_flight_C == [4.0, 0.0, 0.0]
    assert view.load.current().remaining_output_tokens_C == [32.0, 0.0, 0.0]
    assert [view.load.other_in_flight(row) for row in range(3)] == [3.0, 0.0, 0.0]
