"""What a live proof runs, and what it says of a command line that is wrong."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from services.bench import live_proof
from services.bench.live_proof import Plan, main, prove
from services.local.errors import CommandError
from tests.unit.services.bench.test_live_report import run_of

PLAN = Plan((0.5, 4.0), ("price", "dqn", "static-small"), 3, 25.0, 178.0)


def test_time_is_stretched_until_the_machine_carries_the_load() -> None:
    """Never less than tenfold; a run lasts some deadlines however long they have become."""
    assert PLAN.scale(0.5) == 10.0
    assert PLAN.scale(4.0) == 40.0
    assert PLAN.run_s(0.5) == 25.0
    assert PLAN.run_s(4.0) == 40.0


def test_no_policy_always_comes_first() -> None:
    """Each turn starts with the next policy."""
    orders = [PLAN.order(turn) for turn in range(3)]
    assert {order[0] for order in orders} == set(PLAN.policies)
    assert all(set(order) == set(PLAN.policies) for order in orders)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--loads", "many"], "--loads: expected numbers"),
        (["--loads", "0"], "--loads"),
        (["--loads", "9000"], "--loads: 9000: live proof: phases.0.duration_s"),
        (["--loads", "0.001"], "--loads: 0.001: a run has "),
        (["--policies", "dqn"], "price must be among them"),
        (["--turns", "0"], "--turns: must be above 0"),
        (["--json", "nowhere/x.json"], "--json: no folder nowhere"),
    ],
)
def test_a_wrong_command_line_starts_nothing(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, with the option and what it takes."""
    monkeypatch.setattr(sys, "argv", ["live_proof", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err.splitlines()[-1]


async def test_what_was_measured_outlives_a_failure_of_what_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report is handed over after each load."""

    async def at_load(plan: Plan, load: float) -> list[dict[str, Any]]:
        if load > 1.0:
            raise CommandError("a process of the mesh has ended")
        return [{**run_of(policy, 0, 0.9), "load": load} for policy in plan.policies]

    monkeypatch.setattr(live_proof, "_at_load", at_load)
    kept: list[dict[str, Any]] = []

    async def keep(report: dict[str, Any]) -> None:
        kept.append(report)

    with pytest.raises(CommandError):
        await prove(PLAN, keep)
    (report,) = kept
    assert [load["load"] for load in report["loads"]] == [0.5]
    assert len(report["runs"]) == len(PLAN.policies)
