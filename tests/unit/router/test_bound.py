"""One call per request: mask, admission, policy, choice, and what is known afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router import decision, safety
from router.bound import BoundDecision, Rule
from router.fleet import FleetArrays
from router.ledger import LoadArrays
from router.policies.scores import Query
from router.policies.table import make_policy
from tests.unit.router import fleets

CATALOG = fleets.catalog()
QUERY = Query(1, 0.4, 100.0, 8.0, 8.0, 0.0, 110.0, 50.0, 50.0, 0.0, 0.5)


class Bench:
    """A bound decision beside the arrays it is bound to."""

    def __init__(self, policy: str = "price", devices: int = 2) -> None:
        """Binds an idle fleet."""
        arrays = fleets.fleet(devices).arrays
        self.fleet = FleetArrays(*(array.copy() for array in arrays))  # type: ignore[arg-type]
        self.own_LC, self.others_LC, self.seen_LC = np.zeros((3, 3, len(arrays.tier_C)))
        self.bound = BoundDecision(
            Rule.of(make_policy(policy, CATALOG)),
            self.fleet,
            self.own_LC,
            self.others_LC,
            self.seen_LC,
        )

    def decide(
        self, query: Query = QUERY, floor: float = 0.0, pin: int = -1, factor: float = 0.0
    ) -> int:
        """Returns what the bound decision does."""
        return self.bound.decide(query, floor, pin, 0.5, 0.5, query.slack_s, factor)

    def result(self, place: int) -> float:
        """Returns one of the results."""
        return float(self.bound.result_R[place])


def test_an_idle_fleet_gives_the_largest_tier() -> None:
    """Without load the best quality is chosen, and all candidates were allowed."""
    bench = Bench()
    action = bench.decide()
    assert bench.fleet.tier_C[action] == 2
    assert bench.result(decision.ACTION) == action
    assert bench.result(decision.ALLOWED_COUNT) == 6
    assert bench.result(decision.LARGEST_TIER) == 2
    assert bench.result(decision.PREDICTED_S) == bench.bound.board.decided.predicted_s_C[action]


def test_what_changes_in_place_counts_at_once() -> None:
    """A device that becomes busy, then unusable, is left by the next decision."""
    bench = Bench("greedy")
    first = bench.decide()
    bench.own_LC[0, first], bench.others_LC[0, first] = 30.0, 30.0
    bench.own_LC[2, first] = 240.0
    second = bench.decide()
    assert bench.seen_LC[0, first] == 60.0
    assert bench.fleet.device_C[second] != bench.fleet.device_C[first]
    bench.fleet.availability_C[second] = 0.0
    assert bench.decide() not in (first, second)


def test_a_pin_and_a_floor_close_candidates() -> None:
    """Only the pinned tier is open; a floor nobody reaches leaves nothing."""
    bench = Bench()
    assert bench.fleet.tier_C[bench.decide(pin=0)] == 0
    assert bench.result(decision.LARGEST_TIER) == 0
    assert bench.result(decision.RESCUE_S) == math.inf
    assert bench.decide(floor=1.5) == decision.NOTHING_ALLOWED
    assert bench.result(decision.ACTION) == -1


def test_excluded_candidates_are_closed() -> None:
    """A retry leaves out what failed."""
    bench = Bench()
    first = bench.decide()
    bench.bound.board.excluded_C[first] = True
    assert bench.decide() != first
    assert bench.result(decision.ALLOWED_COUNT) == 5


def test_what_would_be_late_everywhere_is_refused_where_admission_is_asked() -> None:
    """The refusal says the least latency; factor 0 asks nobody."""
    bench = Bench()
    late = QUERY._replace(slack_s=1e-3)
    assert bench.decide(late, factor=0.7) == decision.REFUSED
    assert bench.result(decision.LEAST_S) == min(bench.bound.board.decided.predicted_s_C)
    assert bench.decide(late) >= 0


def test_a_refusal_says_what_an_idle_fleet_would_take() -> None:
    """The same under any load, and what is predicted where there is none."""
    bench = Bench()
    late = QUERY._replace(slack_s=1e-3)
    assert bench.decide(late, factor=0.7) == decision.REFUSED
    idle_s = bench.result(decision.IDLE_S)
    assert idle_s == bench.result(decision.LEAST_S) > 0.0
    bench.own_LC[:] = 30.0
    assert bench.decide(late, factor=0.7) == decision.REFUSED
    assert bench.result(decision.IDLE_S) == idle_s < bench.result(decision.LEAST_S)


def test_the_least_rescue_is_that_of_the_safety_net() -> None:
    """Over smaller tiers than the chosen one's."""
    bench = Bench()
    action = bench.decide()
    board, count = bench.bound.board, len(bench.fleet.tier_C)
    assert bench.result(decision.RESCUE_S) == safety.least_rescue_s(
        bench.fleet,
        LoadArrays(*bench.seen_LC),
        board.allowed_C,
        action,
        100.0,
        8.0,
        np.zeros(count),
    )


def test_a_score_that_is_not_finite_is_told() -> None:
    """The best finite candidate is still named, for who wants it."""
    bench = Bench()
    bench.fleet.quality_KC[1, 5] = math.nan
    assert bench.decide() == decision.NOT_FINITE
    assert bench.result(decision.ACTION) == 2


def test_memory_is_kept_between_decisions() -> None:
    """Round robin takes one candidate after the other."""
    bench = Bench("round-robin")
    assert [bench.decide() for _ in range(7)] == [0, 1, 2, 3, 4, 5, 0]


def test_a_picker_chooses_inside_the_tier() -> None:
    """The endpoint with fewer requests in flight is taken where the policy took the other."""
    bench = Bench("static-large+join-shortest-queue")
    bench.own_LC[0, 2], bench.own_LC[2, 2] = 1.0, 8.0
    bench.own_LC[0, 3], bench.own_LC[2, 3] = 9.0, 90.0
    assert bench.decide() == 5


def test_only_policies_of_the_table_have_a_rule() -> None:
    """Another kind of policy is refused by name."""

    class Foreign:
        """Has a name and nothing else."""

        name = "foreign"

    with pytest.raises(TypeError, match="foreign"):
        Rule.of(Foreign())  # type: ignore[arg-type]
