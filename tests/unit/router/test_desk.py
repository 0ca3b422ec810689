"""A request is put to policies, one after the other, on the same arrays."""

from __future__ import annotations

import numpy as np
import pytest

from router import features, kernels, safety
from router.bound import bind_plain
from router.decision import NOT_FINITE, NOTHING_ALLOWED, PREDICTED_S, RESCUE_S
from router.desk import Asked, Desk
from router.dqn.snapshot import Snapshot, zero_weights
from router.exploration import Exploration
from router.policies.table import DQN, make_policy
from router.policy import Policy
from tests.unit.router import fleets
from tests.unit.router.machine import compiled_bind

CATALOG = fleets.catalog()


def desk(seed: int = 0) -> Desk:
    """Returns a desk over an idle fleet of two devices, with an easy request on it."""
    arrays = fleets.fleet(2).arrays
    own_LC, others_LC, seen_LC = np.zeros((3, 3, 6))
    made = Desk(arrays, own_LC, others_LC, seen_LC, np.random.default_rng(seed))
    made.asked = Asked(fleets.QUERY, 0.0, -1, 0.5)
    return made


def learned(name: str = DQN) -> Policy:
    """Returns an untrained network."""
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(zero_weights(features.FEATURE_COUNT, 4), features.SCHEMA, names)
    return make_policy(name, CATALOG, snapshot=snapshot)


def test_two_policies_decide_on_the_same_request() -> None:
    """Each has its own answer, and the arrays of the one asked last are at hand."""
    at, large, small = desk(), *(make_policy(f"static-{t}", CATALOG) for t in ("large", "small"))
    assert at.ask(large) == 2
    assert at.ask(small) == 0
    assert at.bound.rule.params_P[0] == 0.0
    assert at.is_open(5)
    assert not at.is_open(6)


def test_a_policy_that_draws_gets_a_number_of_its_own() -> None:
    """Each time another one, and it is kept with what was asked."""
    at, policy = desk(), make_policy("random", CATALOG)
    draws = set()
    for _ in range(5):
        at.ask(policy)
        draws.add(at.asked.query.draw)
    assert len(draws) == 5


def test_a_memory_is_kept_as_it_was() -> None:
    """Whoever explains a turn of round robin needs the turn before."""
    at, policy = desk(), make_policy("round-robin", CATALOG)
    for row in range(3):
        assert at.ask(policy) == row
        assert at.rule.params_P[0] == row - 1


def test_an_unknown_policy_is_refused() -> None:
    """Only policies of the table can be asked."""

    class Other:
        name, version = "other", "1"

    with pytest.raises(TypeError, match="other"):
        desk().ask(Other())


def test_scores_that_are_not_finite_leave_the_best_that_is() -> None:
    """The code says so, and whoever has nobody else to ask takes the best finite one."""
    at, policy = desk(), make_policy("price", CATALOG)
    at.asked = at.asked._replace(query=fleets.QUERY._replace(rate_short_rps=float("nan")))
    assert at.ask(policy) == NOT_FINITE
    assert at.best_finite() == -1


EXPLORATION = Exploration(share=0.05, on_time=0.5)


@pytest.mark.parametrize("name", [DQN, f"{DQN}+round-robin", "price"])
def test_exploration_states_what_an_explored_candidate_predicts(name: str) -> None:
    """Prediction and rescue time are those of the row drawn, not of the best one."""
    at = desk(3)
    policy = make_policy("price", CATALOG) if name == "price" else learned(name)
    seen = set()
    for _ in range(300):
        drawn = at.draw(at.ask(policy), EXPLORATION)
        board, result_R = at.bound.board, at.bound.result_R
        seen.add((drawn.action, drawn.explored))
        assert at.is_open(drawn.action)
        assert result_R[PREDICTED_S] == board.decided.predicted_s_C[drawn.action]
        assert result_R[RESCUE_S] == safety.least_rescue_s(
            board.fleet, board.seen, board.allowed_C, drawn.action, 100.0, 8.0, np.zeros(6)
        )
    assert len({action for action, explored in seen if explored}) > 2
    assert {explored for _, explored in seen} == {False, True}


def test_the_share_that_explores_is_the_settings_and_states_its_probability() -> None:
    """Probabilities are those of the draw: they add up to one over what may be taken."""
    at, policy = desk(4), make_policy("static-large", CATALOG)
    drawn = [at.draw(at.ask(policy), EXPLORATION) for _ in range(4_000)]
    explored = [each for each in drawn if each.explored]
    assert 0.04 < len(explored) / len(drawn) < 0.06
    probability = {each.action: each.probability for each in drawn}
    own = at.ask(policy)
    assert own not in {each.action for each in explored}
    assert probability[own] == 0.95
    assert sum(probability.values()) == pytest.approx(1.0)
    assert {each.other_count for each in drawn} == {5}


def test_a_decision_closed_to_exploration_is_the_policys() -> None:
    """So is one of a share of nothing; nothing is left to chance."""
    at, policy = desk(), make_policy("static-large", CATALOG)
    for exploration in (None, Exploration()):
        assert at.draw(at.ask(policy), exploration) == (2, 1.0, False, 0)


def test_only_what_is_expected_in_time_is_explored() -> None:
    """8 tokens of the large tier need 80 ms: with 30 ms left only the small one may be drawn."""
    at, policy = desk(), make_policy("static-large", CATALOG)
    at.asked = at.asked._replace(query=fleets.QUERY._replace(slack_s=0.03))
    drawn = [at.draw(at.ask(policy), EXPLORATION) for _ in range(500)]
    assert {each.action for each in drawn if each.explored} == {0, 3}
    at.asked = at.asked._replace(query=fleets.QUERY._replace(slack_s=0.001))
    assert at.draw(at.ask(policy), EXPLORATION) == (2, 1.0, False, 0)


def test_a_policy_that_draws_evenly_needs_no_exploration() -> None:
    """Its probability is one in as many candidates as are allowed."""
    at, policy = desk(), make_policy("random", CATALOG)
    drawn = [at.draw(at.ask(policy), EXPLORATION) for _ in range(50)]
    assert {each.probability for each in drawn} == {1.0 / 6.0}
    assert not any(each.explored for each in drawn)


def test_the_desk_forgets_policies_of_long_ago() -> None:
    """A mesh that changes its policy often keeps no arrays of all of them."""
    at = desk()
    for margin in np.linspace(0.5, 0.9, 20):
        at.ask(make_policy("greedy", CATALOG, {"margin": float(margin)}))
    assert len(at._bound) <= 4


def test_a_look_leaves_what_was_asked_and_who_was_asked() -> None:
    """It shows mask, load and predicted times of another request."""
    at, policy = desk(), make_policy("price", CATALOG)
    at.ask(policy)
    asked, bound = at.asked, at.bound
    seen = at.look(Asked(fleets.QUERY, 0.0, 1, 0.5))
    assert seen.allowed_C.tolist() == [False, True, False] * 2
    predicted_s_C = np.zeros(6)
    kernels.predict_latency_s(seen.fleet, seen.seen, 100.0, 8.0, predicted_s_C)
    np.testing.assert_array_equal(seen.decided.predicted_s_C, predicted_s_C)
    assert (at.asked, at.bound) == (asked, bound)


@pytest.mark.timeout(300)  # the first run on a machine compiles
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_fleet_of_nothing_allows_nothing(is_compiled: bool) -> None:
    """Before the first endpoint is known every policy says so, and a look shows nothing."""
    bind = compiled_bind() if is_compiled else bind_plain
    own_LC, others_LC, seen_LC = np.zeros((3, 3, 0))
    rng = np.random.default_rng(0)
    at = Desk(fleets.fleet(0).arrays, own_LC, others_LC, seen_LC, rng, bind)
    at.asked = Asked(fleets.QUERY, 0.0, -1, 0.5)
    for policy in (make_policy("price", CATALOG), learned()):
        assert at.ask(policy) == NOTHING_ALLOWED
    assert len(at.look(at.asked).allowed_C) == 0
