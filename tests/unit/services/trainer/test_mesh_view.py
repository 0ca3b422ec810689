"""What is known of the mesh: its routers, its candidates, and for how long."""

from __future__ import annotations

import pytest

from router.quality import Rating
from services.common.channels import open_channel
from services.common.log import get_logger
from services.trainer.mesh_view import _MOST_REMEMBERED, MeshView
from tests.fakes.clock import FakeClock
from tests.fakes.noise_server import noise_server
from tests.unit.services.trainer.entries import seen_state

E0 = ("small", "e0")
WALL_S = 1_700_000_000.0


def view() -> MeshView:
    """Returns a view that has seen router `r0` and endpoint `e0`."""
    found = MeshView(channel=None, candidates=(), clock=FakeClock(), log=get_logger("test"))
    found.take(seen_state(("r0", 7)))
    return found


def test_routers_and_candidates_of_the_mesh_are_no_problem() -> None:
    """Nor are they once they are gone: their records may still come."""
    mesh = view()
    mesh.take(seen_state(("r1", 9)))
    for router in (("r0", 7), ("r1", 9)):
        assert mesh.problem(router, WALL_S + 1.0, [E0]) == ""


def test_strangers_are_named() -> None:
    """Another router, another epoch of a known one, another candidate."""
    mesh = view()
    assert "'odd'" in mesh.problem(("odd", 7), WALL_S + 1.0, [E0])
    assert "epoch 8" in mesh.problem(("r0", 8), WALL_S + 1.0, [E0])
    assert "'e9'" in mesh.problem(("r0", 7), WALL_S + 1.0, [("small", "e9")])


def test_more_candidates_than_the_mesh_has_are_a_problem_at_any_time() -> None:
    """One wide record would widen everything that is kept."""
    wide = [("small", str(number)) for number in range(65)]
    assert "65 candidates" in view().problem(("r0", 7), 1.0, wide)
    unwatched = MeshView(channel=None, candidates=wide, clock=FakeClock(), log=get_logger("test"))
    assert unwatched.problem(("r0", 7), 1.0, wide) == ""


def test_what_is_remembered_is_bounded() -> None:
    """The routers longest unseen are forgotten."""
    mesh = view()
    for number in range(_MOST_REMEMBERED):
        mesh.take(seen_state((f"n{number}", 1)))
    assert mesh.problem(("r0", 7), WALL_S + 1.0, [E0])
    assert not mesh.problem(("n1", 1), WALL_S + 1.0, [E0])


def test_what_clients_said_is_as_the_newest_state_tells() -> None:
    """Until no router goes by it any more."""
    mesh, state = view(), seen_state(("r0", 7))
    assert mesh.ratings == {}
    state.routers[0].learns_quality = True
    tiers = state.task_ratings.add(task="hard").tiers
    tiers.add(tier="small", rating_count=3, mean=0.5, mean_square=0.25)
    mesh.take(state)
    assert mesh.ratings == {("hard", "small"): Rating(3, 0.5, 0.25)}
    mesh.take(seen_state(("r0", 7)))
    assert mesh.ratings == {}


async def test_without_a_monitor_nothing_is_known() -> None:
    """Then a record is taken for what it says."""
    mesh = MeshView(channel=None, candidates=(), clock=FakeClock(), log=get_logger("test"))
    assert not await mesh.refresh()
    assert mesh.problem(("anybody", 1), WALL_S, [E0]) == ""
    assert not mesh.is_fresh


def test_a_refusal_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Whenever it comes: with a promotion, or when a router starts."""
    state = seen_state(("r0", 7))
    state.routers[0].activation, state.routers[0].policy_refusal = 4, "POLICY_UNKNOWN"
    mesh = view()
    for _ in range(3):
        mesh.take(state)
    assert [record.message for record in caplog.records] == ["router_refused"]


async def test_an_answer_that_cannot_be_read_is_none() -> None:
    """The view stays as it was, and says that the monitor is not reached."""
    async with noise_server() as address, open_channel(address) as channel:
        mesh = MeshView(channel=channel, candidates=(), clock=FakeClock(), log=get_logger("test"))
        assert not await mesh.refresh()
    assert not mesh.is_reachable
