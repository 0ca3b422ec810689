"""Parameters and versions of the policies that have a score kernel."""

from __future__ import annotations

import math

import pytest

from router.policies import greedy, table
from router.policies.base import PolicyParameterError, ScorePolicy, parameter_vector


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
