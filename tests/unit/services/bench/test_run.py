"""Which metrics a suite measures."""

from __future__ import annotations

import pytest

from services.bench.budgets import BUDGETS
from services.bench.run import GROUPS, NOT_QUICK, wanted_metrics
from services.local.errors import InputError


def test_every_metric_of_a_group_has_a_budget_and_no_two_groups_share_one() -> None:
    """Names in the table of groups and in that of budgets are the same."""
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    assert set(names) <= set(BUDGETS)


def test_only_takes_metrics_and_groups() -> None:
    """A group's name stands for its metrics; nothing means everything."""
    assert wanted_metrics("quick", ["route"]) == {"route"}
    assert wanted_metrics("quick", ["decision", "route"]) == {*GROUPS["decision"], "route"}
    assert wanted_metrics("full", []) == {name for group in GROUPS.values() for name in group}


def test_the_quick_suite_leaves_out_what_takes_long() -> None:
    """Unless it is asked for."""
    assert wanted_metrics("quick", []) == wanted_metrics("full", []) - NOT_QUICK
    assert wanted_metrics("quick", ["added"]) == NOT_QUICK


@pytest.mark.parametrize(("suite", "only"), [("huge", []), ("quick", ["rout"])])
def test_unknown_names_are_refused_with_those_there_are(suite: str, only: list[str]) -> None:
    """The message lists what is known."""
    with pytest.raises(InputError, match="known: "):
        wanted_metrics(suite, only)
