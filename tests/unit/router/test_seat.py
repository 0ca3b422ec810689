"""A conversation's seat: what is cached there, and whether a request stays."""

from __future__ import annotations

import numpy as np
import pytest

from router import seat
from router.bound import BoundDecision, Rule
from router.decision import ACTION, PREDICTED_S, STAY
from router.fleet import Fleet, build_fleet
from router.home import Layout, equal_share
from router.policies.scores import Query
from router.policies.table import BY_HAND, make_policy
from router.profile import LatencyProfile, TierProfile
from router.seat import MARGIN, NO_SEAT, Seat, Stay
from tests.unit.router import fleets

COUNT = 6
SMALL, MEDIUM, LARGE = range(3)
PROMPT = 400.0
QUERY = fleets.QUERY._replace(prompt_tokens=PROMPT)


class Router:
    """A policy's decision on two devices with all tiers each."""

    def __init__(self, policy: str = "price", fleet: Fleet | None = None) -> None:
        self.fleet = fleet or fleets.fleet(2)
        self.own_LC, self.others_LC, self.seen_LC = np.zeros((3, 3, COUNT))
        rule = Rule.of(make_policy(policy, fleets.catalog()))
        load = (self.own_LC, self.others_LC, self.seen_LC)
        self.bound = BoundDecision(rule, self.fleet.arrays, *load)

    def decide(self, found: Seat = NO_SEAT, query: Query = QUERY, pin: int = -1) -> int:
        """Returns the choice; nothing is refused."""
        return self.bound.decide(query, 0.0, pin, 0.5, 0.5, query.slack_s, 0.0, found)

    @property
    def stay(self) -> float:
        """What became of the conversation."""
        return float(self.bound.result_R[STAY])

    def fill(self, row: int, in_flight: float) -> None:
        """Puts requests of eight more tokens each on a candidate."""
        self.own_LC[:, row] = in_flight, 0.0, 8.0 * in_flight


def test_a_conversation_without_a_seat_changes_nothing() -> None:
    """The choice is the policy's, and nothing is said of a stay."""
    router = Router()
    assert router.decide() == router.decide(Seat(-1, 100.0, MARGIN))
    assert router.stay == np.inf


@pytest.mark.parametrize("policy", sorted(set(BY_HAND) - {"random", "round-robin"}))
def test_a_calm_mesh_keeps_a_conversation_where_all_is_even(policy: str) -> None:
    """The other device is worth as much, so whoever is there stays."""
    router = Router(policy)
    tier = router.fleet.arrays.tier_C[router.decide()]
    for row in np.flatnonzero(router.fleet.arrays.tier_C == tier):
        assert router.decide(Seat(int(row), 0.0, MARGIN)) == row
        assert router.stay == Stay.KEPT
        assert router.bound.result_R[ACTION] == row


def test_a_conversation_moves_for_more_than_the_margin() -> None:
    """In calm traffic a larger tier is worth more than the small one, which has .8 quality."""
    router = Router()
    choice = router.decide(Seat(SMALL, 0.0, MARGIN))
    assert router.fleet.arrays.tier_C[choice] > SMALL
    assert router.stay == Stay.WORTH
    assert router.decide(Seat(SMALL, 0.0, 0.5)) == SMALL
    assert router.stay == Stay.KEPT


def test_a_policy_without_a_price_is_judged_by_quality_in_time() -> None:
    """Greedy takes the largest tier in time; medium is worth .05 less of it on this task."""
    router = Router("greedy")
    assert router.fleet.arrays.tier_C[router.decide()] == LARGE
    assert router.decide(Seat(MEDIUM, 0.0, 0.06)) == MEDIUM
    assert router.fleet.arrays.tier_C[router.decide(Seat(MEDIUM, 0.0, 0.03))] == LARGE


def test_the_deadline_forbids_a_seat_that_is_not_expected_in_time() -> None:
    """However large the margin is."""
    router = Router()
    router.fill(LARGE, 200.0)
    choice = router.decide(Seat(LARGE, 0.0, 1.0))
    assert choice != LARGE
    assert router.stay == Stay.DEADLINE


def test_a_seat_that_is_late_is_kept_where_the_choice_is_later() -> None:
    """To move would bring nothing."""
    router = Router("static-large")
    for row in (LARGE, LARGE + 3):
        router.fill(row, 200.0)
    router.own_LC[2, LARGE + 3] *= 2.0
    assert router.decide(Seat(LARGE, 0.0, MARGIN)) == LARGE
    assert router.stay == Stay.KEPT


def test_the_target_forbids_all_but_the_smallest_tier() -> None:
    """While it is held by the smallest tier alone."""
    router = Router()
    small = QUERY._replace(pressure=3.5, is_small=1.0)
    assert router.fleet.arrays.tier_C[router.decide(Seat(LARGE, 0.0, 1.0), small)] == SMALL
    assert router.stay == Stay.TARGET
    assert router.decide(Seat(SMALL + 3, 0.0, MARGIN), small) == SMALL + 3
    assert router.stay == Stay.KEPT


def test_a_seat_that_is_closed_is_left() -> None:
    """Its endpoint is gone, or the request is pinned to another tier."""
    router = Router()
    assert router.decide(Seat(LARGE, 0.0, 1.0), pin=SMALL) in (SMALL, SMALL + 3)
    assert router.stay == Stay.CLOSED
    router.fleet.arrays.availability_C[LARGE] = 0.0
    assert router.decide(Seat(LARGE, 0.0, 1.0)) != LARGE
    assert router.stay == Stay.CLOSED


def test_a_seat_away_from_home_stays_open() -> None:
    """Home is for requests that may go anywhere; one that stays has no choice to herd by."""
    router = Router()
    layout = Layout(router.fleet)
    router.fleet.arrays.home_C[:] = layout.home_C(layout.stretches(equal_share(0, 2)))
    assert router.decide() < 3
    assert router.decide(Seat(LARGE + 3, 0.0, MARGIN)) == LARGE + 3
    assert router.stay == Stay.KEPT


def test_what_is_cached_shortens_the_prediction_there_alone() -> None:
    """By the time of as many prompt tokens; the fleet is left as it was."""
    router = Router("static-large")
    router.decide()
    before_C = router.bound.board.decided.predicted_s_C.copy()
    router.decide(Seat(LARGE, 320.0, MARGIN))
    after_C = router.bound.board.decided.predicted_s_C
    saved_s = 320.0 * router.fleet.arrays.per_prompt_token_s_C[LARGE]
    expected_C = before_C - saved_s * (np.arange(COUNT) == LARGE)
    np.testing.assert_allclose(after_C, expected_C, rtol=1e-12)
    assert router.bound.result_R[PREDICTED_S] == after_C[LARGE]
    assert not router.fleet.arrays.cached_C.any()


def test_what_is_cached_makes_a_seat_worth_more() -> None:
    """A price charges device time, of which the seat takes less."""
    router = Router()
    for row in range(COUNT):
        router.fill(row, 20.0)
    busy = QUERY._replace(rate_short_rps=300.0, rate_long_rps=300.0, slack_s=1.0)
    router.decide(Seat(LARGE, 0.0, 0.0), busy)
    plain = float(router.bound.board.decided.score_C[LARGE])
    router.decide(Seat(LARGE, 320.0, 0.0), busy)
    assert router.bound.board.decided.score_C[LARGE] > plain + 0.01


@pytest.mark.parametrize(
    ("kept", "prompt", "passed", "room", "cached"),
    [
        (100.0, 400.0, 0.0, 1_000.0, 96.0),  # whole blocks of 16
        (400.0, 321.0, 0.0, 1_000.0, 320.0),
        (400.0, 320.0, 0.0, 1_000.0, 304.0),  # the last token is always computed
        (100.0, 400.0, 900.0, 1_000.0, 96.0),
        (100.0, 400.0, 901.0, 1_000.0, 0.0),  # others have filled the cache since
        (100.0, 400.0, 0.0, 0.0, 0.0),  # there is none
        (15.0, 400.0, 0.0, 1_000.0, 0.0),
        (100.0, 1.0, 0.0, 1_000.0, 0.0),
    ],
)
def test_what_is_cached_is_estimated(
    kept: float, prompt: float, passed: float, room: float, cached: float
) -> None:
    """By what was served there, and what came after."""
    assert seat.cached_tokens(kept, prompt, passed, room) == cached


def test_a_fleet_has_the_room_of_its_profile() -> None:
    """None unless a profile says so."""
    assert not fleets.fleet(1).arrays.prefix_room_C.any()
    tiers = {tier: TierProfile(0.01, 0.0, 0.0) for tier in fleets.TIERS}
    tiers["medium"] = TierProfile(0.01, 0.0, 0.0, prefix_cache_tokens=5_000)
    profile = LatencyProfile("test", "assumed", tiers)
    built = build_fleet(fleets.catalog(), fleets.fleet(1).endpoints, {"": profile})
    assert built.arrays.prefix_room_C.tolist() == [0.0, 5_000.0, 0.0]
