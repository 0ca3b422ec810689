"""The demo's report and page."""

from __future__ import annotations

import json
import pathlib

from services.demo.plan import PHASES
from services.demo.report import PHASE_KEYS, write_report
from tests.browser import clipped
from tests.unit.services.demo.runs import TIERS, facts, records, run_of


def test_the_report_has_the_keys_others_rely_on(tmp_path: pathlib.Path) -> None:
    """Every phase of every policy has exactly the named keys, all tiers, and a sum that holds."""
    runs = [run_of("static-large", records(1)), run_of("dqn", records(2))]
    write_report(tmp_path, facts(), runs, tiers=TIERS)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["policies"]) == ["static-large", "dqn"]
    for policy in report["policies"].values():
        assert tuple(policy["phases"]) == PHASES
        for phase in policy["phases"].values():
            assert set(phase) == set(PHASE_KEYS)
            assert tuple(phase["mix"]) == TIERS
            ends = ("on_time", "late", "refused", "cancelled", "failed")
            assert sum(phase[end] for end in ends) == phase["offered"] > 0
    named = ("quality", "machine", "versions", "deadline_s", "static_large_capacity_rps")
    assert all(key in report for key in (*named, "burst_rps", "seed", "trace_id"))
    assert (tmp_path / "burst.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "burst.svg").read_text()


def test_the_page_stands_alone_and_escapes_what_it_shows(tmp_path: pathlib.Path) -> None:
    """Nothing is loaded from elsewhere, and no fact becomes markup."""
    lagging = run_of("price", records(3, lag_s=0.2))
    write_report(tmp_path, facts(), [run_of("greedy", records(2)), lagging], tiers=TIERS)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "src=" not in page
    assert "&lt;a &amp; b&gt;" in page
    assert "&lt;b&gt;a note&lt;/b&gt;" in page
    assert "generator lagged" in page


def test_the_verdict_comes_first_and_nothing_is_cut_off(tmp_path: pathlib.Path) -> None:
    """Sentence and bars of all policies stand before any table; 1,300 pixels hold it all."""
    runs = [run_of(name, records(2)) for name in ("static-large", "greedy", "price", "dqn")]
    report = write_report(tmp_path, facts(), runs, tiers=TIERS)
    page = (tmp_path / "report.html").read_text()
    order = [page.index(part) for part in (report["verdict"], "<svg", "such devices", "<table")]
    assert order == sorted(order)
    assert clipped(page, tmp_path, width=1_300) == ""


def test_an_empty_phase_is_reported_as_such(tmp_path: pathlib.Path) -> None:
    """A phase without requests has no shares instead of a division by zero."""
    made = records(1)
    calm_only = made.select(made.columns["phase"] == 0)
    report = write_report(tmp_path, facts(), [run_of("dqn", calm_only)], tiers=TIERS)
    burst = report["policies"]["dqn"]["phases"]["burst"]
    assert burst["offered"] == 0
    assert burst["availability"] is None
    assert "dqn" in (tmp_path / "report.html").read_text()
