"""How near the bound a plan made with the requests in hand comes."""

from __future__ import annotations

import pytest

from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.bound.performance import performance_bound
from trainer.research import tightness
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import (
    simulate,
)

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


ROOM = 1e-9


"""For sums of rewards in another order."""


def test_plan_made_with_the_requests_in_hand_is_between_a_single_tier_and_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The witness of tightness beats every static policy and stays below the bound."""
    monkeypatch.setattr(tightness, "TRIALS", 12)
    catalog = fleets.catalog()
    setup = config(2, safety=True)
    setting = Setting("test", catalog, setup.fleet, setup.profiles)
    offered = traffic(300.0, 2.0)
    planned = tightness.planned_performance(setting, offered, 0.0)
    statics = [simulate(setup, offered, spec(f"static-{t}")).performance() for t in fleets.TIERS]
    assert max(statics) < planned <= performance_bound(setup, offered) + ROOM
