"""Keeps the results of a soak and writes its page, docs/soak.md, with a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from router.folders import checkout
from services.bench.page import fill
from tests.soak.crowd import KSERVE, OPENAI, OWN, Window
from tests.soak.crowds import Row
from tests.soak.hour import Run
from tests.soak.readings import NOT_JUDGED, grown
from tests.soak.verdict import p99_ms, verdicts
from trainer.evaluation import facts
from trainer.evaluation.report.style import STYLE

RESULTS, PLOT, PAGE = "docs/results/soak.json", "docs/images/soak.png", "docs/soak.md"
_PANELS = {
    "memory_mb": "memory beside its start",
    "descriptors": "descriptors",
    "tasks": "tasks of the loop",
}
_SIZE_IN = (11.0, 9.0)


def complaints(rows: Sequence[Row]) -> list[str]:
    """Returns what crowds of connections left behind or did to a normal client."""
    bad = []
    for row in rows:
        if row.calls_left or row.descriptors_left > 0:
            bad.append(
                f"{row.what}: {row.calls_left} calls and {row.descriptors_left} descriptors left"
            )
        if row.in_time < 1.0:
            bad.append(f"{row.what}: {row.in_time:.3f} of a normal client's requests in time")
    return bad


def keep(run: Run | None, rows: Sequence[Row], command: str) -> None:
    """Writes what was measured, in place of older results of the same part."""
    root = checkout()
    assert root is not None
    path = root / RESULTS
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    made = {
        "commit": facts.commit(root),
        "started": facts.now(),
        "machine": facts.machine(),
        "command": command,
    }
    if run is not None:
        known["hour"] = {**made, "verdicts": verdicts(run), "run": dataclasses.asdict(run)}
    if rows:
        known["crowds"] = {
            **made,
            "complaints": complaints(rows),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
    path.write_text(json.dumps(known) + "\n", encoding="utf-8")
    write(known)


def write(known: Mapping[str, Any]) -> None:
    """Writes tables and plot into the page."""
    root = checkout()
    assert root is not None
    tables = {}
    if "hour" in known:
        run = _run_of(known["hour"]["run"])
        tables["soak"] = f"{_hour_table(run, known['hour'])}\n\n{_held_table(run)}"
        _plot(run, str(root / PLOT))
    if "crowds" in known:
        tables["crowds"] = _crowds_table(known["crowds"])
    page = root / PAGE
    page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")


def _run_of(raw: Mapping[str, Any]) -> Run:
    return Run(**{**raw, "windows": [Window(**each) for each in raw["windows"]]})


def _hour_table(run: Run, made: Mapping[str, Any]) -> str:
    kinds = ("on_time", "late", "refused", "left", "failed")
    total = {kind: sum(getattr(each, kind) for each in run.windows) for kind in ("sent", *kinds)}
    first_ms, last_ms = p99_ms(run)
    capacity = f" (found to hold {run.capacity_rps:.0f})" if run.capacity_rps else ""
    rows = [
        ("length, s", f"{run.past_s or run.seconds:.0f}"),
        ("requests/s", f"{run.rate_rps:.0f}{capacity}"),
        ("requests", f"{total['sent']:,}"),
        (
            "in time, late, refused, given up by their client, failed",
            ", ".join(f"{total[kind]:,}" for kind in kinds),
        ),
        (
            "requests at the routers' own door, at KServe's, at the OpenAI-shaped one",
            ", ".join(f"{run.doors.get(door, 0):,}" for door in (OWN, KSERVE, OPENAI)),
        ),
        ("clients that came and went", f"{run.clients:,}"),
        ("endpoints that came and went", f"{run.endpoints:,}"),
        ("changes of policy", f"{run.policies:,}"),
        ("p99 in the first sixth, in the last, ms", f"{first_ms:.0f}, {last_ms:.0f}"),
        ("not as it should be", "; ".join(made["verdicts"]) or "nothing"),
    ]
    lines = ["| what | measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join([*lines, "", _made_by(made)])


def _held_table(run: Run) -> str:
    lines = [
        "| process | memory, MB | descriptors | threads | tasks | flat |",
        "|---|---|---|---|---|---|",
    ]
    found: dict[str, dict[str, str]] = {}
    flat: dict[str, bool] = {}
    for name, quantity, early, late, is_flat in grown(run.held):
        found.setdefault(name, {})[quantity] = f"{early:.0f} → {late:.0f}"
        flat[name] = flat.get(name, True) and is_flat
    for name, cells in found.items():
        judged = "not judged" if name in NOT_JUDGED else "yes" if flat[name] else "**no**"
        numbers = [cells.get(each, "-") for each in ("memory_mb", "descriptors", "threads")]
        lines.append(f"| {name} | {' | '.join(numbers)} | {cells.get('tasks', '-')} | {judged} |")
    return "\n".join(lines)


def _crowds_table(made: Mapping[str, Any]) -> str:
    heads = (
        "what is there",
        "how many",
        "memory of the router for each, kB",
        "a normal client's median answer before, meanwhile, ms",
        "its requests in time",
        "nothing left after, s",
        "calls, descriptors, MB left",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for raw in made["rows"]:
        row = Row(**raw)
        lines.append(
            f"| {row.what} | {row.count:,} | {row.kb_each:.0f} | {row.p50_before_ms:.1f},"
            f" {row.p50_ms:.1f} | {row.in_time:.3f} | {row.held_s:.0f} | {row.calls_left},"
            f" {max(0, row.descriptors_left)}, {max(0.0, row.mb_left):.0f} |"
        )
    bad = "; ".join(made["complaints"]) or "nothing"
    return "\n".join([*lines, "", f"Not as it should be: {bad}. {_made_by(made)}"])


def _made_by(made: Mapping[str, Any]) -> str:
    machine = made["machine"]
    return (
        f"`{made['command']}`, {made['started'][:10]}, commit `{made['commit']}`,"
        f" {machine['cores']} cores."
    )


def _plot(run: Run, path: str) -> None:
    # Results of earlier versions have windows of one length.
    even_s = [(number + 1) * run.window_s for number in range(len(run.windows))]
    minutes = [end_s / 60.0 for end_s in run.ends_s or even_s]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=_SIZE_IN, layout="constrained")
        panels: list[Axes] = list(figure.subplots(2, 2).flat)
        for panel, (quantity, title) in zip(panels, _PANELS.items(), strict=False):
            for name, held in run.held[0].items():
                if quantity in held:
                    values = [each[name][quantity] for each in run.held]
                    start = values[0] if quantity == "memory_mb" else 1.0
                    panel.plot(minutes, [value / start for value in values], label=name)
            panel.set_title(title)
            panel.set_ylim(bottom=0.0)
            panel.set_xlabel("minutes")
        panels[0].legend(fontsize="small")
        panels[3].plot(minutes, [window.p99_ms for window in run.windows], label="p99")
        panels[3].plot(minutes, [window.p50_ms for window in run.windows], label="median")
        panels[3].set_title("answers, ms")
        panels[3].set_ylim(bottom=0.0)
        panels[3].set_xlabel("minutes")
        panels[3].legend(fontsize="small")
        figure.savefig(path)
