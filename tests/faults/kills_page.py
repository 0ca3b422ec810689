"""Keeps what random kills showed and writes their table into docs/reliability.md."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from collections.abc import Mapping
from typing import Any

from router.folders import checkout
from tests.faults.page import PAGE, commit

RESULTS = "docs/results/kills.json"
BEGIN, END = "<!-- kills:begin -->", "<!-- kills:end -->"
ROWS = (
    ("requests answered", "answered"),
    ("decisions known", "made"),
    ("taken in and saved", "settled"),
    ("transitions in the saved replay", "replayed"),
    ("in the stream, not acknowledged", "waiting"),
    ("kept aside as refused", "refused"),
    ("lost, told by their numbers", "missing"),
    ("lost with a killed router, told as such", "cut"),
    ("lost with a router that never reached Redis", "traceless"),
    ("too late to be learned from", "late"),
    ("**acknowledged and not saved**", "acked_unsaved"),
    ("**counted twice**", "twice"),
    ("**lost and told by nothing**", "untold"),
    ("**outcomes lost and told by nothing**", "untold_outcomes"),
)


def keep(found: Mapping[str, Any], given: argparse.Namespace) -> None:
    """Keeps a run in place of the last one of its kind, and writes the page."""
    root = checkout()
    assert root is not None
    path = root / RESULTS
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    results["simulated" if given.simulated else "processes"] = {
        **found,
        "seed": given.seed,
        "rate_rps": given.rate_rps,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, Linux {platform.release()}",
    }
    path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    page = root / PAGE
    head, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n{table(results)}\n{END}{tail}", encoding="utf-8")


def table(results: Mapping[str, Any]) -> str:
    """Returns the table of runs: a column each."""
    runs = [results[kind] for kind in sorted(results)]
    lines = ["| | " + " | ".join(_head(kind, results[kind]) for kind in sorted(results)) + " |"]
    lines.append("|---" * (len(runs) + 1) + "|")
    for title, name in ROWS:
        values = (str({**run["count"], "answered": run["answered"]}[name]) for run in runs)
        lines.append(f"| {title} | " + " | ".join(values) + " |")
    for kind in sorted(results):
        run = results[kind]
        lines += ["", f"- {kind}: {run['date']}, commit `{run['commit']}`, {run['machine']}"]
    return "\n".join(lines)


def _head(kind: str, run: Mapping[str, Any]) -> str:
    kills = ", ".join(f"{name} {number}" for name, number in sorted(run["kills"].items()))
    return f"{kind}: {kills}; seed {run['seed']}, {run['rate_rps']:g} requests per second"
