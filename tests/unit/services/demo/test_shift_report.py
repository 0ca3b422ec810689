"""The page of the shift story."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from services.demo.shift_report import TITLES, ShiftRun, verdict, write_shift_report
from tests.browser import clipped
from tests.unit.services.demo.runs import records

FACTS: dict[str, Any] = {
    "machine": {"cpu": "<a & b>", "cores": 2},
    "versions": {"tiercel": "0.1.0"},
    "snapshot": "v",
    "rate_rps": 95.0,
    "plan": {
        "devices": 4, "shape": ("opt-a100", "opt", "opt-a100"), "time_scale": 10.0, "load": 5.0,
        "slow_down": 2.0, "seed": 1,
    },
    "deadline_s": 4.0,
    "took_s": 400.0,
}  # fmt: skip


def runs() -> list[ShiftRun]:
    """One made-up run of each policy; one of them has a note."""
    notes = {"price": ("<b>a note</b>",)}
    swaps = {"online": (2.5, 4.0)}
    return [
        ShiftRun(name, records(seed), swaps.get(name, ()), notes.get(name, ()))
        for seed, name in enumerate(TITLES)
    ]


def test_every_policy_has_every_phase_and_the_whole(tmp_path: pathlib.Path) -> None:
    """What was offered adds up, and a run with a note is not valid."""
    write_shift_report(tmp_path, FACTS, runs())
    report = json.loads((tmp_path / "shift.json").read_text())
    assert set(report["policies"]) == set(TITLES)
    for each in report["policies"].values():
        *phases, whole = each["phases"].values()
        assert sum(phase["offered"] for phase in phases) == whole["offered"] > 0
    assert {name for name, each in report["policies"].items() if not each["valid"]} == {"price"}
    assert report["policies"]["online"]["swaps_s"] == [2.5, 4.0]
    assert (tmp_path / "shift.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone_and_nothing_is_cut_off(tmp_path: pathlib.Path) -> None:
    """Nothing is loaded from elsewhere, and no fact becomes markup."""
    report = write_shift_report(tmp_path, FACTS, runs())
    page = (tmp_path / "shift.html").read_text()
    assert "<script" not in page
    assert "src=" not in page
    assert "&lt;a &amp; b&gt;" in page
    assert "&lt;b&gt;a note&lt;/b&gt;" in page
    assert page.index(report["verdict"]) < page.index("<svg") < page.index("<table")
    assert clipped(page, tmp_path, width=1_300) == ""


def test_the_sentence_names_the_best_first() -> None:
    """By what each earned in the last phase."""

    def policy(performance: float | None) -> dict[str, Any]:
        first = {"performance": 1.0, "availability": 1.0}
        last = {"performance": performance, "availability": 0.99}
        return {"phases": {"a": first, "b": last, "all": first}}

    said = verdict({"frozen": policy(0.5), "online": policy(0.625), "price": policy(0.6)})
    order = [said.index(name) for name in ("online 0.625", "price 0.600", "frozen 0.500")]
    assert order == sorted(order)
    assert verdict({"price": policy(None)}) == "Nothing was asked in the last phase."
