"""How much of each part of the protocol is run."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.plan import LONGEST_FACTOR, PLANS, plan_for
from trainer.evaluation.suite import Subject, _Suite


def test_runs_are_longer_where_deadlines_are() -> None:
    """By the longest one; up to that of the plan itself nothing changes."""
    quick, setting = PLANS["quick"], subjects.setting(0.4)
    assert plan_for(quick, setting) == plan_for(quick, subjects.setting(0.1)) == quick
    easy, hard = setting.catalog.tasks
    tasks = (easy, replace(hard, default_deadline_s=4.0))
    mixed = replace(setting, catalog=replace(setting.catalog, tasks=tasks))
    found = plan_for(quick, mixed)
    assert (found.shortest_s, found.longest_s, found.hold_s) == (30.0, 150.0, 50.0)
    assert (found.requests, found.sweep_loads) == (quick.requests, quick.sweep_loads)
    longer = tuple(replace(task, default_deadline_s=60.0) for task in tasks)
    slow = replace(setting, catalog=replace(setting.catalog, tasks=longer))
    assert plan_for(quick, slow).hold_s == LONGEST_FACTOR * quick.hold_s


def test_the_protocol_runs_by_the_plan_for_its_setting() -> None:
    """Searches for the highest load and runs of the sweep alike."""
    suite = _Suite(Subject(subjects.setting(2.0), subjects.contenders()), subjects.PLAN, (1,))
    assert suite._plan.hold_s == 5.0 * subjects.PLAN.hold_s
