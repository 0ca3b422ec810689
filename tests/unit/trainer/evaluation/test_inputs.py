"""What is named for an evaluation becomes what is evaluated."""

from __future__ import annotations

import pathlib

import pytest

from trainer.evaluation.inputs import Asked, read_inputs

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_shipped_profiles_find_their_own_quality_table() -> None:
    """opt-a100 goes with opt, reference with reference."""
    assert read_inputs(Asked()).quality.name == "opt"
    assert "sort" in read_inputs(Asked(profile="reference")).quality.quality


def test_stand_in_for_a_trace_goes_by_a_name_that_says_so() -> None:
    """No table can take it for the published trace."""
    traces = read_inputs(Asked(traces=(pathlib.Path("azure-llm-code-like"),))).traces
    assert list(traces) == ["azure-llm-code-like (synthetic)"]


def test_every_policy_of_the_registry_takes_part() -> None:
    """Without --policy nobody who needs no snapshot is left out."""
    from router.policies.table import BY_HAND

    found = set(read_inputs(Asked()).contenders)
    assert found >= {*BY_HAND, "static-small", "static-medium", "static-large"}
