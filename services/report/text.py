"""The report for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 80
MISSED, FIRST_TOKEN = "!", "'"
"""Behind a share below its target, and behind a deadline of the first token."""
_WORDS = (
    "Quality: mean over requests, 0 for those late, refused or failed. Given up: against a largest"
    " tier that is always in time. Missed: minutes below target. Smooth: late answers count"
    " exp(-lateness / 0.2 s)."
)
_NAME_CELLS = 18
_TOTAL = "all"


def render(facts: dict[str, Any]) -> RenderableType:
    """Draws `report_facts`."""
    lines: list[RenderableType] = [
        Text(f"{facts['start_time']} to {facts['end_time']} UTC", style="bold"),
        Text(textwrap.fill(facts["verdict"], WIDTH)),
    ]
    if facts["total"]["offered"]:
        rows = facts["tasks"] | ({_TOTAL: facts["total"]} if len(facts["tasks"]) > 1 else {})
        lines += [Text(), _requests(rows), Text(), _quality(rows)]
        if facts["tiers"]:
            lines += [Text(), _mix(rows, facts["tiers"])]
        lines += [Text(), _goodput(rows)]
        lines.append(_remarks(facts))
    if facts["rows"]:
        lines += [Text(), _over_time(facts)]
    return Group(*lines)


def _requests(rows: dict[str, dict[str, Any]]) -> Table:
    table = _table("task", "offered", "in time", "late", "refused", "failed", "target", "missed")
    for name, each in rows.items():
        missed, told = each["minutes_below_target"], each["minutes_with_target"]
        table.add_row(
            _short(name),
            f"{each['offered']:,}",
            _share(each["in_time"], 4) + (MISSED if each["target_is_missed"] else " "),
            *(f"{each[end]:,}" for end in ("late", "refused", "failed")),
            "-" if each["target"] is None else f"{each['target']:g}",
            f"{missed}/{told}" if told else "-",
        )
    return table


def _quality(rows: dict[str, dict[str, Any]]) -> Table:
    table = _table("task", "quality", "given up", "regret", "p50", "p99 ms", "deadline")
    for name, each in rows.items():
        deadline_s = each["deadline_s"]
        sign = FIRST_TOKEN if each["deadline_is_of_first_token"] else " "
        table.add_row(
            _short(name),
            *(_share(each[key], 3) for key in ("quality", "given_up", "regret")),
            *(
                "cut off" if each[f"{p}_is_cut_off"] else _ms(each[f"{p}_s"])
                for p in ("p50", "p99")
            ),
            "-" if deadline_s is None else _ms(deadline_s) + sign,
        )
    return table


def _goodput(rows: dict[str, dict[str, Any]]) -> Table:
    table = _table("answers per second", "in time", "smooth")
    for name, each in rows.items():
        told = (each[key] for key in ("goodput_rps", "smooth_goodput_rps"))
        table.add_row(_short(name), *(_share(value, 2) for value in told))
    return table


def _mix(rows: dict[str, dict[str, Any]], tiers: Sequence[str]) -> Table:
    table = _table("answers by", *(_short(tier) for tier in tiers))
    for name, each in rows.items():
        table.add_row(_short(name), *(_share(each["mix"][tier], 3) for tier in tiers))
    return table


def _over_time(facts: dict[str, Any]) -> Table:
    table = _table(
        f"{facts['by']} (UTC)", "requests", "in time", "quality", "given up", "regret", "devices"
    )
    for row in facts["rows"]:
        devices = row["static_large_devices"]
        table.add_row(
            row["start_time"],
            f"{row['ended']:,}",
            _share(row["in_time"], 4),
            *(_share(row[key], 3) for key in ("quality", "given_up", "regret")),
            "-" if devices is None else str(devices),
        )
    return table


def _remarks(facts: dict[str, Any]) -> Text:
    """What the words in the tables mean, and what is not known."""
    said = [_WORDS]
    hindsight = facts["hindsight"]
    found, busy = hindsight["minutes"], hindsight["of_minutes_with_requests"]
    if found:
        said.append(
            f"Regret: against the bound in hindsight, over {found} of {busy} minutes with requests."
        )
    else:
        said.append(
            "Regret is not known: no trainer has looked at these minutes, or requests left no"
            " records."
        )
    for problem, count in hindsight["problems"].items():
        said.append(f"No bound for {count} of them: {problem}.")
    if facts["rows"]:
        said.append("Devices: those the largest tier alone would have needed.")
    if any(each["target_is_missed"] for each in facts["tasks"].values()):
        said.append(f"{MISSED} below target.")
    if any(each["deadline_is_of_first_token"] for each in facts["tasks"].values()):
        said.append(f"{FIRST_TOKEN} of the first token.")
    return Text(textwrap.fill(" ".join(said), WIDTH), style="dim")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CELLS else f"{name[: _NAME_CELLS - 1]}…"


def _share(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ms(value_s: float | None) -> str:
    return "-" if value_s is None else f"{value_s * 1e3:.0f}"
