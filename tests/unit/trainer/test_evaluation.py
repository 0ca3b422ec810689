"""Evaluation: the fluid reference on cases with known answers, intervals, sweeps."""

from __future__ import annotations

import numpy as np
import pytest

from router.catalog import parse_quality
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import spec
from trainer import evaluation
from trainer.simulation.workload import Lengths

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

QUALITY = parse_quality(
    'name = "test"\n[quality.easy]\nsmall = 0.8\nmedium = 0.95\nlarge = 1.0\n'
    "[quality.hard]\nsmall = 0.4\nmedium = 0.8\nlarge = 1.0\n",
    "test",
)
SETTING = evaluation.shared_fleet_setting(
    "test", fleets.profile(), QUALITY, device_count=2, lengths=Lengths(prompt_sigma=0.0)
)


def test_reference_is_peak_when_large_can_carry_all() -> None:
    """At a low rate the best mix is the large tier alone."""
    assert evaluation.fluid_reference(SETTING, 20.0) == pytest.approx(1.0)


def test_reference_falls_with_the_rate_to_nothing() -> None:
    """More traffic never raises it; far beyond capacity hardly anything is served."""
    values = [evaluation.fluid_reference(SETTING, rate) for rate in (50, 150, 400, 1500, 1e5)]
    assert (np.diff(values) <= 1e-9).all()
    assert values[-1] < 0.05


def test_reference_of_one_full_device_is_worked_out_by_hand() -> None:
    """With one tier the optimum serves the share its best cycle can carry."""
    setting = evaluation.shared_fleet_setting(
        "one",
        fleets.profile(),
        parse_quality('name = "t"\n[quality.easy]\nlarge = 1.0\n', "t"),
        tiers=("large",),
        device_count=1,
        lengths=Lengths(prompt_median=100.0, prompt_sigma=0.0),
    )
    tier = fleets.profile().tiers["large"]
    cycle_s = (0.4 - 100 * tier.per_prompt_token_s) / 8
    each_s = 100 * tier.per_prompt_token_s + 8 * tier.per_sequence_s
    capacity = (cycle_s - tier.step_s) / cycle_s / each_s
    assert evaluation.fluid_reference(setting, 4 * capacity) == pytest.approx(0.25, rel=1e-3)


def test_interval_is_students() -> None:
    """Three values: half width is 4.303 standard errors; one value has none."""
    result = evaluation.interval([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert result.half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert evaluation.interval([5.0]).half == 0.0


def test_sweep_shows_static_large_break_and_price_hold() -> None:
    """Beyond large's capacity the static policy loses its availability, price does not."""
    policies = {name: spec(name) for name in ("static-large", "static-small", "price")}
    rows = evaluation.sweep(SETTING, policies, [400.0], [1, 2], duration_s=4.0)
    by_name = {row.policy: row for row in rows}
    assert by_name["static-large"].availability.mean < 0.6
    assert by_name["static-small"].availability.mean > 0.99
    assert by_name["price"].availability.mean > 0.97
    assert by_name["price"].performance.mean > by_name["static-small"].performance.mean
    assert by_name["price"].share < 1.05
    assert sum(by_name["price"].tier_share) == pytest.approx(
        by_name["price"].availability.mean, abs=0.02
    )


def test_highest_held_rate_is_between_holding_and_not() -> None:
    """Static-large holds the rate found, and no longer 1.3 times it."""
    policy = spec("static-large")
    held = evaluation.highest_held_rps(
        SETTING, policy, low_rps=20.0, high_rps=400.0, seeds=[1], duration_s=6.0, safety=False
    )
    rows = evaluation.sweep(
        SETTING, {"p": policy}, [0.8 * held, 1.3 * held], [2], duration_s=6.0, safety=False
    )
    assert rows[0].availability.mean > 0.99 > rows[1].availability.mean
