"""The page of performance is what its reports say."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

from services.bench.budgets import BUDGETS, FIRST_TOKENS
from services.bench.page import (
    PAGES,
    budget_table,
    fill,
    first_token_table,
    fit_table,
    fleet_table,
    growth_figure,
    merge,
    part_table,
    tables,
)
from services.bench.readings import Reading
from tests.unit.deploy.manifests import ROOT

RUN = {"suite": "quick", "commit": "abc"}
MACHINE = {"cpu": "x86", "cores": 2, "memory_gib": 8.0, "system": "Linux 6", "python": "3.11.7"}


def report_of(*readings: Reading) -> dict[str, Any]:
    """A report of some readings."""
    return {
        "command": "tiercel bench",
        "commit": "abc",
        "suite": "quick",
        "started": "2026-01-01",
        "machine": MACHINE,
        "metrics": {each.name: each.judged() | RUN for each in readings},
    }


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date_with_its_reports(name: str) -> None:
    """What docs/results holds is what the page shows."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    fresh = fill(text, PAGES[name](ROOT / "docs" / "results"))
    assert fresh == text, "run: python -m services.bench.page"


def test_every_failure_has_a_test_that_runs_it() -> None:
    """The tests that the page names after each file are in that file."""
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = text.partition("| run by |")[2].partition("## ")[0].splitlines()[2:]
    named = [
        (path, name)
        for row in rows
        for path, names in re.findall(r"`(tests/[\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", row)
        for name in re.findall(r"test_\w+", names)
    ]
    assert len(named) > 10
    for path, name in named:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"def {name}\(", source), f"{path}::{name}"


def test_a_metric_over_its_budget_is_told() -> None:
    """Each row has measured, reference, ratio, budget, and whether it is kept."""
    kept, missed = Reading("route", [80.0], [100.0]), Reading("generate", [50.0], [100.0])
    table = budget_table(report_of(kept, missed))
    route, generate = table.splitlines()[2:4]
    assert "| 0.8 | ≥ 0.7x | yes |" in route
    assert "| 0.5 | ≥ 0.8x | **no** |" in generate
    assert "`abc`" in table


def test_reports_become_tables_between_the_markers(tmp_path: pathlib.Path) -> None:
    """Text around them stays; a report that is missing leaves its table; no markers, no page."""
    report = report_of(Reading("route", [80.0], [100.0], {"CPU us": 3.0}, note="mind"))
    (tmp_path / "bench.json").write_text(json.dumps(report))
    made = tables(tmp_path)
    assert set(made) == {"bench", "parts", "fit", "first-token", "fleet"}
    parts = "<!-- parts:begin --><!-- parts:end -->"
    fleet = "<!-- fit:begin --><!-- fit:end --><!-- fleet:begin --><!-- fleet:end -->"
    fleet += "<!-- first-token:begin --><!-- first-token:end -->"
    page = f"a\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nb\n{parts}{fleet}"
    text = fill(page, made)
    assert text.startswith("a\n<!-- bench:begin -->\n| metric |")
    assert "old" not in text
    assert "CPU us: 3; mind" in text
    assert fill(text, made) == text
    with pytest.raises(ValueError, match="bench:begin"):
        fill("nothing", made)


def test_first_tokens_have_a_table_of_their_own() -> None:
    """A row for each door and load that was measured, with what it costs each process."""
    parts = {"requests/s": 50.0, "CPU us of door": 400.0, "CPU us of router": 1_200.0}
    report = report_of(
        Reading("route", [80.0], [100.0]),
        *(
            Reading(name, [1_500.0, 2_500.0], [1_000.0, 1_000.0], parts)
            for name in FIRST_TOKENS
            if name.startswith("first_token_openai")
        ),
    )
    _, _, low, half, _, made = first_token_table(report).splitlines()
    assert low == (
        "| OpenAI-shaped, with its router | low | 50 | 1 | 2 ± 0.5 | 1 | 2 ± 0.5 "
        "| door 400, router 1,200 |"
    )
    assert "| half |" in half
    assert made.startswith("`tiercel bench`, commit `abc`")
    assert "first_token" not in budget_table(report) + part_table(report)
    assert first_token_table(report_of(Reading("route", [1.0], [1.0]))) == ""


def test_what_could_not_be_measured_is_named(tmp_path: pathlib.Path) -> None:
    """With its reason, until a later run has it."""
    path, newer = tmp_path / "bench.json", tmp_path / "newer.json"
    path.write_text(json.dumps(report_of(Reading("route", [80.0], [100.0]))))
    later = report_of() | {"missing": {"route": "no", "envoy_added_p50": "needs Envoy"}}
    newer.write_text(json.dumps(later))
    merge(path, newer)
    table = budget_table(json.loads(path.read_text()))
    assert "`envoy_added_p50` is left out: needs Envoy" in table
    assert "`route` is left out" not in table


def test_metrics_of_a_later_run_are_merged_and_say_so(tmp_path: pathlib.Path) -> None:
    """A long run of one metric goes into the report of all; commit, day and machine are told."""
    path, newer = tmp_path / "bench.json", tmp_path / "newer.json"
    old = report_of(
        *(Reading(name, [80.0], [100.0]) for name in ("route", "generate", "workers_2"))
    )
    later = report_of(Reading("workers_2", [101.0], [100.0]))
    later |= {"commit": "def", "started": "2026-02-02", "machine": MACHINE | {"cpu": "arm"}}
    later["metrics"]["workers_2"] |= {"suite": "full", "commit": "def"}
    path.write_text(json.dumps(old))
    newer.write_text(json.dumps(later))
    merge(path, newer)
    report = json.loads(path.read_text())
    assert [each["value"] for each in report["metrics"].values()] == [80.0, 80.0, 101.0]
    lines = budget_table(report).splitlines()
    own, _, others = lines[-3:]
    assert own.startswith("`workers_2`: `tiercel bench`, commit `def`, 2026-02-02, 2 cores of arm")
    assert others.startswith(
        "All others: `tiercel bench`, commit `abc`, 2026-01-01, 2 cores of x86"
    )


def test_a_run_of_which_nothing_is_left_is_not_named(tmp_path: pathlib.Path) -> None:
    """All of its metrics were replaced since, so neither its machine nor its day says anything."""
    path, newer = tmp_path / "bench.json", tmp_path / "newer.json"
    path.write_text(json.dumps(report_of(Reading("route", [80.0], [100.0]))))
    later = report_of(Reading("route", [81.0], [100.0])) | {"commit": "def"}
    newer.write_text(json.dumps(later))
    merge(path, newer)
    assert "abc" not in budget_table(json.loads(path.read_text()))


def test_growth_is_drawn() -> None:
    """A line per policy, and one per line of the shared picture."""
    line = [(3.0, 10.0), (12.0, 20.0)]
    report = report_of(
        Reading("decision_dqn_3072", [1.0], [1.0], series={"dqn": line, "price": line}),
        Reading("state_64x64", [0.01], series={"router": line}),
    )
    decision, state = growth_figure(report).axes
    assert sorted(str(each.get_label()) for each in decision.lines) == ["dqn", "price"]
    assert [each.get_label() for each in state.lines] == ["router"]
    assert state.get_title() == "Router, share of a core"


def test_a_line_through_sizes_is_held_against_a_larger_one() -> None:
    """Start and slope by least squares, the farthest point, and what was measured beyond."""
    report = report_of(
        Reading(
            "state_64x64",
            [0.02],
            series={
                "router": [(100.0, 0.02), (200.0, 0.03), (400.0, 0.05)],
                "bytes": [(100.0, 1_000.0), (200.0, 2_400.0), (300.0, 3_000.0)],
                "monitor": [(16.0, 0.1), (64.0, 0.2)],
            },
        ),
        Reading("state_256x1024", [0.5], parts={"bytes per state": 40_000.0}),
    )
    router, size = fit_table(report).splitlines()[2:]
    assert "| 0.01 + 0.0001 per candidate | 100 to 400 candidates, 3 points | 0 % |" in router
    assert router.endswith("| 3,072: 0.317, 0.5 |")
    # By hand: slope 10, start 2133 - 10 x 200; 267 of 2,400 is the farthest.
    assert "| 133 + 10 per candidate | 100 to 300 candidates, 3 points | 13 % |" in size
    assert size.endswith("| 3,072: 30,853, 40,000 |")
    assert fit_table(report_of(Reading("route", [1.0], [1.0]))) == ""


def test_a_fleet_is_reckoned_from_what_was_measured() -> None:
    """Cores are rate times CPU time, the decision among more candidates and the picture added."""
    report = report_of(
        Reading("generate_dqn", [1000.0], [1000.0]),
        Reading("decision_dqn_12", [20.0], [15.0]),
        Reading("decision_dqn_3072", [220.0], [20.0]),
        Reading("state_256x1024", [0.05], parts={"bytes per state": 40_000.0}),
    )
    row = fleet_table(report).splitlines()[3]
    # 10,000 requests/s at 1,200 us: 12 cores, 18 routers at 70 %, 0.9 cores and 9 MB/s of states.
    assert row == "| 10 | 10,000 | 1,200 | 13 | 0.9 | 9 |"
    assert fleet_table(report_of(Reading("route", [1.0], [1.0]))) == ""


def test_every_budget_has_words_for_a_stranger() -> None:
    """A ratio says what it stands beside."""
    for name, budget in BUDGETS.items():
        assert budget.what, name
        assert bool(budget.beside) is (budget.of == "ratio"), name
