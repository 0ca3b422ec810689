"""How a target is held: what raises the pressure, and what lowers it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import pressure
from router.pressure import FLOOR, HIGHEST, Pressures

WINDOW_S = 0.4
TARGETS = np.array([0.9, 0.99, 0.0])
EVENTS = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.integers(0, 2), st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    max_size=200,
)


def at_rest() -> Pressures:
    """Returns pressures of three tasks; the third one has no target."""
    return Pressures(np.zeros(3), np.zeros(3), np.zeros(1))


def learn(p: Pressures, now_s: float, task: int, missed: float, ended: float = 1.0) -> None:
    """Teaches one end."""
    pressure.learn(p, now_s, WINDOW_S, TARGETS, task, ended, missed, HIGHEST)


def after(task: int, missed_share: float, deadlines: float = 400.0) -> float:
    """Returns the mean pressure over the last half of a steady stream with this share of misses."""
    p, seen = at_rest(), []
    rng = np.random.default_rng(1)
    for k in range(int(100 * deadlines)):
        learn(p, WINDOW_S * k / 100.0, task, float(rng.random() < missed_share))
        seen.append(pressure.total(p.pressure_K))
    return float(np.mean(seen[len(seen) // 2 :]))


@given(EVENTS)
def test_pressures_stay_in_their_range(events: list[tuple[float, int, float, float]]) -> None:
    """None is below 0, and all together press no more than HIGHEST; a task without target never."""
    p, now_s = at_rest(), 0.0
    for gap_s, task, missed, ended in events:
        now_s += gap_s
        learn(p, now_s, task, missed, ended)
        assert (p.pressure_K >= 0.0).all()
        assert pressure.total(p.pressure_K) <= HIGHEST + 1e-9
        assert p.pressure_K[2] == 0.0


@pytest.mark.parametrize(("task", "target"), [(0, 0.9), (1, 0.99)])
def test_the_share_missed_settles_at_the_target(task: int, target: float) -> None:
    """With half of the misses a target allows the pressure rests, with twice as many it is up."""
    assert after(task, 0.5 * (1.0 - target)) < 0.5
    assert after(task, 2.0 * (1.0 - target)) > FLOOR


def test_a_deadline_of_misses_floors_and_calm_brings_the_price_back() -> None:
    """Up in a deadline, down in some twenty at a target of 0.99."""
    p = at_rest()
    for k in range(100):
        learn(p, WINDOW_S * k / 100.0, 1, 1.0)
    assert pressure.is_floored(pressure.total(p.pressure_K))
    pressure.relax(p, 10.0 * WINDOW_S, WINDOW_S, TARGETS)
    assert pressure.total(p.pressure_K) > 1.0
    pressure.relax(p, 30.0 * WINDOW_S, WINDOW_S, TARGETS)
    assert pressure.total(p.pressure_K) == 0.0


def test_a_task_that_went_away_presses_no_longer() -> None:
    """Its pressure falls by a part of an even share, though it has no ends any more."""
    p = at_rest()
    for k in range(100):
        learn(p, WINDOW_S * k / 100.0, 0, 1.0)
    for k in range(200):
        learn(p, WINDOW_S * (2.0 + k), 1, 0.0)
    assert p.pressure_K[0] == 0.0


def test_a_target_holds_its_own_task_beside_another() -> None:
    """Misses of a rare strict task press, though all ends together would meet its target."""
    p = at_rest()
    for k in range(40_000):
        task = 1 if k % 20 == 0 else 0
        learn(p, WINDOW_S * k / 100.0, task, float(task == 1 and k % 400 == 0))
    assert p.pressure_K[0] == 0.0
    assert p.pressure_K[1] > 1.0


def test_a_clock_that_steps_back_changes_nothing() -> None:
    """Neither pressure nor ends."""
    p = at_rest()
    learn(p, 10.0, 0, 1.0)
    before = p.pressure_K.copy()
    pressure.relax(p, 5.0, WINDOW_S, TARGETS)
    assert (p.pressure_K == before).all()


def test_a_router_in_its_first_deadline_goes_small() -> None:
    """It knows nothing of the traffic yet; after that, pressure decides."""
    assert pressure.is_small(0.0, 0.1, WINDOW_S)
    assert not pressure.is_small(0.0, 0.5, WINDOW_S)
    assert pressure.is_small(FLOOR, 0.5, WINDOW_S)
    assert not pressure.is_small(0.0, pressure.LONGEST_COLD_S, 30.0)
