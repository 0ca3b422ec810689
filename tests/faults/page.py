"""Keeps the results of the fault matrix and writes its page."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import platform
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from router.folders import checkout, work_folder
from tests.faults.case import Case

RESULTS = "docs/results/faults.json"
PAGE = "docs/reliability.md"
BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
HEAD = (
    "what is done",
    "how it ends",
    "runs",
    "requests",
    "in time",
    "late",
    "errors, by reason",
    "as before after, s: median, worst",
    "whole after, s: median, worst",
    "expected",
    "verdict",
)

Result = Mapping[str, Any]


def read() -> dict[str, Any]:
    """Reads the results, by case."""
    path = _root() / RESULTS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def keep(
    case: Case, runs: Sequence[Result], seconds: float, *, not_run: str = "", broken: str = ""
) -> None:
    """Keeps the runs of a case in place of older ones.

    Args:
        case: The case.
        runs: Its runs.
        seconds: What one took, about.
        not_run: Why there are none.
        broken: Why one broke off that is not among them; empty if none did.
    """
    entry = {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, Linux {platform.release()}",
        "seconds": round(seconds, 1),
        "not_run": not_run,
        "broken": broken,
        "runs": [_rounded(run) for run in runs],
    }
    with _alone():
        results = {**read(), case.name: entry}
        text = json.dumps(results, indent=1, sort_keys=True) + "\n"
        (_root() / RESULTS).write_text(text, encoding="utf-8")


def write(cases: Sequence[Case]) -> None:
    """Writes the table of all results into the page."""
    path = _root() / PAGE
    with _alone():
        head, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, tail = rest.split(END)
        text = f"{head}{BEGIN}\n{table(cases, read())}\n{END}{tail}"
        path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keeps other processes of the command from the files."""
    with work_folder("faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def table(cases: Sequence[Case], results: Mapping[str, Result]) -> str:
    """Returns the table, one row per case."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for case in cases:
        cells = _cells(case, results.get(case.name))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_made_by(cases, results)])


def _cells(case: Case, result: Result | None) -> list[str]:
    what = [f"{case.done} (`{case.name}`)", case.ends]
    why = result.get("broken", "").replace("|", "/") if result else ""
    broken = f"a run broke off: {why}" if why else ""
    if result is None or not result["runs"]:
        reason = f": {result['not_run']}" if result else ""
        verdict = f"**{broken}**" if broken else f"not run{reason}"
        return [*what, *["-"] * 6, _expected(case), verdict]
    runs = result["runs"]
    errors: Counter[str] = Counter()
    for run in runs:
        errors.update(run["errors"])
    sent = sum(run["sent"] for run in runs)
    complaints = list(dict.fromkeys(text for run in runs for text in run["complaints"]))
    complaints += [broken] if broken else []
    return [
        *what,
        str(len(runs)),
        str(sent),
        f"{sum(run['on_time'] for run in runs) / max(1, sent):.3f}",
        str(sum(run["late"] for run in runs)),
        ", ".join(f"{name} {count}" for name, count in errors.most_common()) or "none",
        _times([run["recovery_s"] for run in runs]),
        _times([run["whole_s"] for run in runs]),
        _expected(case),
        f"**{'; '.join(complaints)}**" if complaints else "as expected",
    ]


def _expected(case: Case) -> str:
    expect = case.expect
    parts = [
        f"in time ≥ {expect.on_time_share:g}" if expect.on_time_share else "",
        f"as before ≤ {expect.recovery_s:g} s",
        f"whole ≤ {expect.whole_s:g} s",
        "errors: " + (", ".join(sorted(expect.reasons)) or "none"),
        f"may lose {', '.join(sorted(expect.may_lose))}" if expect.may_lose else "",
    ]
    return "; ".join(part for part in parts if part)


def _times(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"never in {len(values) - len(known)} of {len(values)}"
    return f"{statistics.median(known):.1f}, {max(known):.1f}"


def _made_by(cases: Sequence[Case], results: Mapping[str, Result]) -> list[str]:
    made: dict[tuple[str, str, str], list[str]] = {}
    for case in cases:
        if case.name in results:
            each = results[case.name]
            made.setdefault((each["date"], each["commit"], each["machine"]), []).append(case.name)
    lines = []
    for (date, commit, machine), names in made.items():
        which = "all" if len(made) == 1 else ", ".join(f"`{name}`" for name in names)
        lines.append(f"- {date}, commit `{commit}`, {machine}: {which}")
    return lines


def _rounded(run: Result) -> dict[str, Any]:
    return {k: round(v, 2) if isinstance(v, float) else v for k, v in run.items()}


def commit() -> str:
    """The commit, marked where anything but the results is not committed."""
    head = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", f":!{RESULTS}", f":!{PAGE}")
    return f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, cwd=_root(), capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _root() -> Path:
    root = checkout()
    assert root is not None
    return root
