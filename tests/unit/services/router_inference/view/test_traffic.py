"""Own traffic, the others' and how answers keep to predictions."""

from __future__ import annotations

import pytest

from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


@scenario
async def test_answers_slower_than_predicted_reach_the_signals() -> None:
    """What ends late beside its prediction is in the next decision's signals."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    assert view.traffic.signals(now_s, 0.4).slowdown == 1.0
    for k in range(100):
        view.traffic.on_compared(now_s + 0.001 * k, 0.4, 0.13, 0.1, finished=True)
    assert view.traffic.signals(now_s + 0.1).slowdown == pytest.approx(1.19, abs=0.03)
    view.apply(state(endpoint(0)), now_s + 0.1)
    assert view.traffic.signals(now_s + 0.1).slowdown == view.traffic.latency_slowdown(now_s + 0.1)
