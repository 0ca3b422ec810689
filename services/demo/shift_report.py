"""The page of the shift story: each policy over time, and by phase."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from services.demo.series import make_series
from services.loadgen.records import RunRecords, run_summary
from trainer.evaluation.report import style
from trainer.evaluation.report.html import render
from trainer.evaluation.report.style import BAND, BLUE, FAINT, INK, SOFT, STYLE, VIOLET

TITLES = {
    "frozen": "frozen: the learned policy as it was trained",
    "price": "price: a rule without training",
    "online": "online: the learned policy, which goes on learning",
}
_LOOKS = {"frozen": (VIOLET, "--"), "price": (INK, ":"), "online": (BLUE, "-")}
"""Colour and line of each; none needs its colour to be told from the others."""
BIN_S = 5.0
"""What one point of a curve is the mean of."""
_DIGITS = 5


@dataclasses.dataclass(frozen=True)
class ShiftRun:
    """One policy's run.

    Attributes:
        name: A key of `TITLES`.
        records: Every offered request.
        swaps_s: When snapshots that it learned came into use, seconds from the start.
        notes: What a reader must know of it.
        machine_busy: Share of the machine's CPU time that was used meanwhile, whoever used it.
    """

    name: str
    records: RunRecords
    swaps_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    machine_busy: float = 0.0

    @property
    def summary(self) -> dict[str, Any]:
        """As `run_summary` has it."""
        return run_summary(self.records)


def write_shift_report(
    folder: pathlib.Path, facts: Mapping[str, Any], runs: Sequence[ShiftRun]
) -> dict[str, Any]:
    """Writes ``shift.json``, ``shift.html``, ``shift.png`` and ``shift.svg``.

    Args:
        folder: Where to.
        facts: Everything but the policies, JSON-ready.
        runs: One of each policy.

    Returns:
        The report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {
        "policies": {run.name: _entry(run) for run in runs},
        **facts,
        "notes": [note for run in runs for note in run.notes],
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    report["verdict"] = verdict(report["policies"])
    text = json.dumps(report, indent=2, allow_nan=False)
    (folder / "shift.json").write_text(text + "\n", encoding="utf-8")
    figure = shift_figure(runs)
    style.save(figure, folder / "shift")
    page = render(
        __package__,
        "shift.html.jinja",
        filters={"share": lambda value: "-" if value is None else f"{value:.3f}"},
        report=report,
        picture=style.inline_svg(figure),
        titles=TITLES,
        bin_s=BIN_S,
    )
    (folder / "shift.html").write_text(page, encoding="utf-8")
    return report


def _entry(run: ShiftRun) -> dict[str, Any]:
    """Returns a policy's part of the report: each phase, and the whole."""
    summary = run.summary
    return {
        "valid": not run.notes,
        "swaps_s": [round(each, 1) for each in run.swaps_s],
        "machine_busy": round(run.machine_busy, 3),
        "versions": summary["policy_versions"],
        "phases": {
            name: _scores(found)
            for name, found in {**summary["phases"], "all": summary["total"]}.items()
        },
    }


def _scores(found: Mapping[str, Any]) -> dict[str, Any]:
    scores = {
        name: None if found[name] is None else round(found[name], _DIGITS)
        for name in ("availability", "performance")
    }
    mix = {tier: round(share, _DIGITS) for tier, share in found["mix"].items()}
    return {"offered": found["offered"], **scores, "mix": mix}


def verdict(policies: Mapping[str, Any]) -> str:
    """Returns what the story says in one sentence: the last phase, best first."""
    last = {
        name: [phase for key, phase in each["phases"].items() if key != "all"][-1]
        for name, each in policies.items()
    }
    known = [name for name, phase in last.items() if phase["performance"] is not None]
    if not known:
        return "Nothing was asked in the last phase."
    known.sort(key=lambda name: -last[name]["performance"])
    said = []
    for name in known:
        share = f"{100.0 * last[name]['availability']:.1f} % in time"
        said.append(f"{name} {last[name]['performance']:.3f}, {share}")
    told = "; ".join(said)
    return f"With other tasks and a device at half its speed, performance was: {told}."


def shift_figure(runs: Sequence[ShiftRun]) -> Figure:
    """Draws performance and the share in time of every policy over time.

    What a snapshot that was learned meanwhile came into use with is a mark at the foot.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for run in runs:
            one = make_series(run.records, (), BIN_S)
            color, line = _LOOKS[run.name]
            looks: Any = {"color": color, "ls": line, "lw": 1.9}
            upper.plot(one.time_s, one.performance, label=TITLES[run.name], **looks)
            in_time = one.on_time_rps / one.offered_rps.clip(min=1e-9)
            lower.plot(one.time_s, in_time, **looks)
            if run.swaps_s:
                feet = [0.02] * len(run.swaps_s)
                upper.plot(
                    run.swaps_s, feet, ls="", marker="|", color=color,
                    transform=upper.get_xaxis_transform(), label=f"{run.name}: another snapshot",
                )  # fmt: skip
        _phases(upper, runs[0].records, named=True)
        _phases(lower, runs[0].records, named=False)
        upper.set_ylabel("performance: quality if in time")
        lower.set_ylabel("share in time")
        lower.set_xlabel("seconds")
        upper.legend(loc="lower left", fontsize=8.5)
    return figure


def _phases(axes: Any, records: RunRecords, *, named: bool) -> None:
    """Marks where each phase begins, by the requests that are of it."""
    end_s = float(records.meta["duration_s"])
    index, intended = records.columns["phase"], records.columns["intended_s"]
    begins = [
        float(intended[index == place].min()) if (index == place).any() else end_s
        for place in range(len(records.names["phase"]))
    ]
    for place, name in enumerate(records.names["phase"]):
        begin_s, until_s = begins[place], [*begins, end_s][place + 1]
        if place % 2:
            axes.axvspan(begin_s, until_s, color=BAND, zorder=0, lw=0)
        if place:
            axes.axvline(begin_s, color=FAINT, lw=1.0)
        if named:
            axes.text(
                (begin_s + until_s) / 2, 1.02, name, transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize=9, color=SOFT,
            )  # fmt: skip
    axes.set_xlim(0.0, end_s)
