"""Parameters and versions of the policies that have a score kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.policies import greedy, table
from router.policies.base import PolicyParameterError, ScorePolicy, parameter_vector, query_of
from router.policy import observe
from router.types import Request, RewardKind, Signals
from tests.unit.router import fleets


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"margn": 0.5}, "no parameter 'margn'; known: margin"),
        ({"margin": 9.0}, "from 0.05 to 2"),
        ({"margin": math.nan}, "got nan"),
    ],
)
def test_bad_parameter_is_named(params: dict[str, float], message: str) -> None:
    """A wrong name or value is refused with the names and limits."""
    with pytest.raises(PolicyParameterError, match=message):
        parameter_vector("greedy", greedy.PARAMETERS, params)


def test_a_policy_without_parameters_takes_none() -> None:
    """The message says that there are none to know."""
    with pytest.raises(PolicyParameterError, match="known: none"):
        parameter_vector("random", (), {"margin": 1.0})


def test_what_is_left_out_keeps_its_default() -> None:
    """Every parameter has a value, in the table's order."""
    expected = [parameter.default for parameter in greedy.PARAMETERS]
    assert parameter_vector("greedy", greedy.PARAMETERS, None).tolist() == expected


def test_version_changes_with_parameters() -> None:
    """Two sets of parameters have two versions, one set always the same."""
    entry = table.BY_NAME["greedy"]
    versions = [ScorePolicy("greedy", entry, {"margin": m}).version for m in (0.5, 0.6, 0.5)]
    assert versions[0] == versions[2] != versions[1]


def test_memory_follows_the_parameters() -> None:
    """The kernel finds its memory behind its parameters, and the policy hands out a copy."""
    policy = ScorePolicy("greedy", table.BY_NAME["greedy"], {"margin": 0.5}, memory=(7.0,))
    assert policy.params_P.tolist()[-2:] == [0.5, 7.0]
    policy.params_P[-1] = 0.0
    assert policy.params_P[-1] == 7.0


def test_a_query_has_the_request_and_the_traffic() -> None:
    """Nothing of what a kernel may ask for is left at its default."""
    fleet = fleets.fleet(1)
    request = Request(
        task=1, slack_s=0.3, prompt_tokens=50.0, output_tokens=6.0, reward_kind=RewardKind.SOFT
    )
    signals = Signals(
        rate_short_rps=11.0,
        rate_long_rps=12.0,
        state_age_s=0.1,
        mean_prompt_tokens=80.0,
        own_share=0.5,
        own_rate_rps=6.0,
        burstiness=4.0,
        slowdown=1.5,
    )
    load = fleets.listed(fleets.random_load(np.random.default_rng(1), 3, 5.0))
    query = query_of(observe(fleet, load, request, signals, np.random.default_rng(2)), 0.25)
    assert query._asdict() == {
        "task": 1,
        "slack_s": 0.3,
        "prompt_tokens": 50.0,
        "output_tokens": 6.0,
        "event_tokens": request.event_tokens,
        "soft_decay_s": 0.2,
        "mean_prompt_tokens": 80.0,
        "rate_short_rps": 11.0,
        "rate_long_rps": 12.0,
        "state_age_s": 0.1,
        "draw": 0.25,
        "own_share": 0.5,
        "own_rate_rps": 6.0,
        "burstiness": 4.0,
        "slowdown": 1.5,
    }
