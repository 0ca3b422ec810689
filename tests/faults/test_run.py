"""When service counts as being as before a fault."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.faults import jobs, page
from tests.faults.catalog import CASES
from tests.faults.jobs import run_jobs, shares
from tests.faults.run import not_calm, recovery

BEGAN_S, LIFTED_S = 2.0, 4.0
SENT_S = np.arange(0.0, 10.0, 0.05)


def recovered(bad_from_s: float, bad_to_s: float) -> float | None:
    """Returns the recovery where requests sent within a span are not answered in time."""
    good: NDArray[np.bool_] = ~((bad_from_s <= SENT_S) & (bad_to_s > SENT_S))
    return recovery(SENT_S, good, began_s=BEGAN_S, lifted_s=LIFTED_S)


def test_errors_before_the_end_of_the_fault_are_no_recovery_time() -> None:
    """What goes wrong while the fault lasts is not counted as time to recover."""
    assert recovered(2.0, 4.0) == 0.0


def test_the_last_bad_request_ends_the_recovery() -> None:
    """Time to recover reaches to the last request of the last bad second."""
    assert recovered(2.0, 6.0) == pytest.approx(1.95)


def test_service_that_is_bad_at_the_end_never_recovered() -> None:
    """Without a good second at the end nobody can say that service is as before."""
    assert recovered(2.0, 9.8) is None


def test_one_bad_request_in_a_second_is_within_the_band() -> None:
    """A share in time of 0.95 after 1.0 is as before."""
    assert recovered(6.0, 6.05) == 0.0


def test_too_few_requests_after_the_fault_say_nothing() -> None:
    """A run that ends with its fault shows no recovery."""
    short_s = SENT_S[SENT_S < LIFTED_S + 0.5]
    good: NDArray[np.bool_] = np.ones(len(short_s), bool)
    assert recovery(short_s, good, began_s=BEGAN_S, lifted_s=LIFTED_S) is None


def test_processes_get_shares_that_take_as_long() -> None:
    """The longest case is alone where the others together take as long; the order stays."""
    cases = [replace(CASES[0], name=name) for name in "abcd"]
    found = shares(cases, [10.0, 30.0, 10.0, 10.0], 2)
    assert [[case.name for case in share] for share in found] == [["b"], ["a", "c", "d"]]


@pytest.mark.parametrize(
    ("good", "found"),
    [
        ([True] + [False] * 9, []),
        ([False] * 10, ["none of 10 was in time before the fault"]),
        ([], ["none of 0 was in time before the fault"]),
    ],
)
def test_service_that_was_bad_before_the_fault_is_no_measure(
    good: list[bool], found: list[str]
) -> None:
    """To be as bad again takes no time."""
    assert not_calm(np.array(good, bool)) == found


def test_cases_of_a_mesh_stay_together_while_a_second_one_costs_more() -> None:
    """A start counts as part of what its first case takes."""
    own = replace(CASES[0].start, device_count=1)
    cases = [replace(CASES[0], name=name, start=CASES[0].start) for name in "ab"]
    cases += [replace(CASES[0], name=name, start=own) for name in "cd"]
    found = shares(cases, [30.0, 10.0, 25.0, 12.0], 2, start_s=20.0)
    assert [[case.name for case in share] for share in found] == [["a", "b"], ["c", "d"]]


GOOD_RUN = {
    "sent": 100, "on_time": 100, "late": 0, "errors": {}, "recovery_s": 0.0, "whole_s": 1.0,
    "complaints": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ({"runs": [GOOD_RUN]}, "as expected"),
        ({"runs": [GOOD_RUN], "broken": ""}, "as expected"),
        ({"runs": [GOOD_RUN], "broken": "a|b"}, "**a run broke off: a/b**"),
        ({"runs": [], "not_run": "", "broken": "gone"}, "**a run broke off: gone**"),
        ({"runs": [], "not_run": "no Envoy"}, "not run: no Envoy"),
    ],
)
def test_a_run_that_broke_off_stands_in_the_table(result: page.Result, verdict: str) -> None:
    """Those before it that ended well do not hide it."""
    made = {"date": "2026-01-01", "commit": "c", "machine": "m"}
    row = page.table(CASES[:1], {CASES[0].name: {**made, **result}}).splitlines()[2]
    assert row.endswith(f"| {verdict} |")


@pytest.mark.parametrize(("scripts", "code"), [(("true", "kill -9 $$"), 1), (("true", "true"), 0)])
async def test_a_process_that_was_killed_has_not_ended_as_expected(
    scripts: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit status is below zero, and the others' are zero."""
    left = iter(scripts)
    monkeypatch.setattr(jobs, "tied_command", lambda _: ["sh", "-c", next(left)])
    given = Namespace(folder=tmp_path, times=1, limit_s=1.0, record=False)
    assert await run_jobs([CASES[:1], CASES[1:2]], given) == code
