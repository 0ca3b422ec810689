"""What studies of many runs have in common: their options, their runs, and where results go."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.evaluation.facts import usable_cores
from trainer.evaluation.jobs import Context, Job, Runner

_ELSEWHERE = ("--json", "--record", "--workers")
"""Options that say where results go and who computes them."""


def add_study_options(found: argparse.ArgumentParser, policies: str, help_text: str = "") -> None:
    """Adds what they have in common: how many, of what, and where to."""
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--requests", type=int, default=20_000, help="of one run, about")
    found.add_argument("--policies", default=policies, help=help_text or None)
    found.add_argument("--workers", type=int, default=0, help="processes; 0 = one per core")
    found.add_argument("--json", type=Path, help="write the rows here")
    found.add_argument("--record", type=Path, help="write the document here")


def run_jobs(asked: argparse.Namespace, context: Context, jobs: Sequence[Job]) -> list[Any]:
    """Returns the jobs' results in their order; says how far it is to who looks on."""

    def say(_text: str, done: float, total: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{100.0 * done / total:3.0f} %", end="", file=sys.stderr)

    with Runner(context, asked.workers or usable_cores(), say) as runner:
        return runner.run("cases", jobs)


def command_of(study: str, given: Sequence[str]) -> str:
    """Returns the command that gives the same results, by a study's name and its arguments."""
    kept: list[str] = []
    rest = iter(given)
    for each in rest:
        if each in _ELSEWHERE:
            next(rest, None)
        elif each.partition("=")[0] not in _ELSEWHERE:
            kept.append(each)
    return shlex.join(["python", "-m", f"trainer.research.{study}", *kept])


def keep(asked: argparse.Namespace, rows: Sequence[Mapping[Any, Any]], text: str) -> None:
    """Prints the document, and writes it and the rows where that was asked for."""
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if asked.record:
        asked.record.write_text(text, encoding="utf-8")
    print(text)


def numbers(text: str) -> tuple[float, ...]:
    """Returns numbers that commas part."""
    return tuple(float(word) for word in text.split(","))
