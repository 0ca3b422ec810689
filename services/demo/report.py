"""The demo's report: ``report.json`` for machines, ``report.html`` for people."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from matplotlib.figure import Figure

from services.demo import figures
from services.demo.plan import LEARNED_POLICY, PHASES
from services.demo.replay import PolicyRun
from services.demo.series import Series, make_series
from services.demo.verdict import REFERENCE_POLICY, devices_sentence, title, verdict
from trainer.evaluation.facts import cpu_model
from trainer.evaluation.report import style
from trainer.evaluation.report.html import render

PHASE_KEYS = (
    "offered",
    "on_time",
    "late",
    "refused",
    "cancelled",
    "failed",
    "availability",
    "performance",
    "p50_ms",
    "p99_ms",
    "mix",
)
"""Keys of a phase in ``report.json``; readers rely on them."""
PACKAGES = ("tiercel", "grpcio", "numpy", "torch", "protobuf")
ROUND_DIGITS = 5


def policy_entry(run: PolicyRun, tiers: Sequence[str]) -> dict[str, Any]:
    """A policy's part of ``report.json``."""
    total = _phase(run.summary["total"], tiers)
    return {
        "policy_version": run.policy_version,
        "valid": run.is_valid,
        "repeated": run.repeated,
        "generator_lag_p99_ms": run.summary["generator_lag_p99_ms"],
        "exact_performance": _round(run.summary["total"]["exact_performance"]),
        "rescued": run.summary["total"]["rescued"],
        "reasons": run.summary["total"]["reasons"],
        "total": total,
        "phases": {name: _phase(run.summary["phases"][name], tiers) for name in PHASES},
    }


def _phase(summary: Mapping[str, Any], tiers: Sequence[str]) -> dict[str, Any]:
    """A phase with exactly ``PHASE_KEYS``, every tier in its mix, and the sum checked."""
    phase = {key: _round(summary[key]) for key in PHASE_KEYS}
    phase["mix"] = {tier: round(summary["mix"].get(tier, 0.0), ROUND_DIGITS) for tier in tiers}
    ends = ("on_time", "late", "refused", "cancelled", "failed")
    assert sum(phase[end] for end in ends) == phase["offered"], f"requests unaccounted: {phase}"
    return phase


def _round(value: Any) -> Any:
    return round(value, ROUND_DIGITS) if isinstance(value, float) else value


def machine_facts(service_cores: Sequence[int], device_cores: Sequence[int]) -> dict[str, Any]:
    """What the demo ran on."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "service_cores": list(service_cores),
        "device_cores": list(device_cores),
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def write_report(
    folder: pathlib.Path,
    facts: Mapping[str, Any],
    runs: Sequence[PolicyRun],
    *,
    tiers: Sequence[str],
) -> dict[str, Any]:
    """Writes ``report.json``, ``report.html``, ``burst.png`` and ``burst.svg``.

    Args:
        folder: Where to.
        facts: Everything but the policies, JSON-ready; ``phases`` and ``deadline_s`` among it.
        runs: The replays, in the order of the report.
        tiers: Tier names, lowest quality first.

    Returns:
        The report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = {
        "policies": {run.policy: policy_entry(run, tiers) for run in runs},
        **facts,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    report["verdict"] = verdict(report)
    (folder / "report.json").write_text(
        json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8"
    )
    series = {run.policy: make_series(run.records, tiers) for run in runs}
    shown = [p for p in (REFERENCE_POLICY, LEARNED_POLICY) if p in series] or list(series)[:2]
    picture, others = _over_time(report, series, shown, tiers)
    style.save(picture, folder / "burst")
    page = render(
        __package__,
        "demo.html.jinja",
        filters={
            "share": lambda value: "-" if value is None else f"{value:.3f}",
            "ms": lambda value: "-" if value is None else f"{value:.0f}",
        },
        report=report,
        bars=style.inline_svg(_bars(report)),
        picture=style.inline_svg(picture),
        pictures={policy: style.inline_svg(figure) for policy, figure in others.items()},
        shown=shown,
        devices=devices_sentence(report["static_large_devices"]),
        tiers=tiers,
        title=title,
        phase_names=PHASES,
    )
    (folder / "report.html").write_text(page, encoding="utf-8")
    return report


def _bars(report: Mapping[str, Any]) -> Figure:
    """Every policy in the burst; one without a request in it has no bar."""
    scores = {}
    for name, policy in report["policies"].items():
        burst = policy["phases"]["burst"]
        label = title(name) + ("" if policy["valid"] else "\n(not valid)")
        scores[label] = (burst["availability"] or 0.0, burst["performance"] or 0.0)
    return figures.policy_bars(scores, about=f"The burst of {report['burst_rps']:.0f} requests/s")


def _over_time(
    report: Mapping[str, Any],
    series: Mapping[str, Series],
    shown: Sequence[str],
    tiers: Sequence[str],
) -> tuple[Figure, dict[str, Figure]]:
    """The policies shown side by side, and a figure of each other one; all by the same axes."""
    shape: dict[str, Any] = {
        "tiers": tiers,
        "phases": [(str(p["name"]), float(p["duration_s"])) for p in report["phases"]],
        "deadline_s": report["deadline_s"],
        "highest": figures.highest_rates(series),
    }
    side_by_side = figures.burst_figure(
        {policy: series[policy] for policy in shown}, {p: title(p) for p in shown}, **shape
    )
    others = {
        policy: figures.burst_figure({policy: one}, {policy: title(policy)}, **shape)
        for policy, one in series.items()
        if policy not in shown
    }
    return side_by_side, others
