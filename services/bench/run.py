"""Runs a suite, group by group, and makes the report that is shown and written as JSON."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from router.folders import checkout
from services.bench.bench import SUITES, Bench
from services.bench.budgets import BUDGETS, FIRST_TOKENS
from services.bench.readings import Reading
from services.local.errors import InputError
from trainer.evaluation import facts

GROUPS: Mapping[str, tuple[str, ...]] = {
    "decision": (
        "decision_dqn_12", "decision_dqn_12_p99", "decision_price_12", "decision_dqn_192",
        "decision_dqn_3072",
    ),
    "hop": (
        "route", "generate", "generate_added_p50", "generate_added_p99", "generate_dqn", "stream",
        "stream_coalesced", "kserve", "kserve_stream", "kserve_stream_coalesced",
    ),
    "doors": ("openai", "openai_stream"),
    "gateway": ("envoy", "envoy_stream_128"),
    "added": ("envoy_added_p50", "envoy_added_p99", *FIRST_TOKENS),
    "workers": ("workers_2",),
    "state": ("state_64x64", "state_64x64_monitor", "state_256x1024"),
}  # fmt: skip
"""Modules of this package with a ``measure(bench)``, and the metrics of each."""
NOT_QUICK = frozenset(GROUPS["added"])
"""Left out of the quick suite, unless asked for: it stays below three minutes."""
PACKAGES = ("tiercel", "grpcio", "protobuf", "numpy", "numba", "uvloop", "tritonclient")
Say = Callable[[str, float, str], None]


async def run_suite(suite: str, only: Sequence[str], *, command: str, say: Say) -> dict[str, Any]:
    """Measures and returns the report, JSON-ready.

    Args:
        suite: One of `SUITES`.
        only: Metrics or groups to measure; empty means all, of the quick suite all but `NOT_QUICK`.
        command: The command line, for the report.
        say: Takes group, how much of it is done (0 to 1) and a few words.

    Raises:
        InputError: A name that is not known.
        CommandError: A server did not start.
    """
    wanted = wanted_metrics(suite, only)
    started, start_s, commit = facts.now(), time.monotonic(), facts.commit(checkout())
    metrics: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for group, names in GROUPS.items():
        asked = wanted.intersection(names)
        if asked:
            readings = await _measure(group, asked, suite, say, missing)
            run = {"suite": suite, "commit": commit}
            metrics |= {each.name: each.judged() | run for each in readings if each.name in asked}
    return {
        "suite": suite,
        "command": command,
        "started": started,
        "took_s": round(time.monotonic() - start_s, 1),
        "commit": commit,
        "machine": facts.machine(),
        "versions": facts.package_versions(PACKAGES),
        "metrics": {name: metrics[name] for name in BUDGETS if name in metrics},
        "missing": missing,
    }


def wanted_metrics(suite: str, only: Sequence[str]) -> frozenset[str]:
    """Returns the names of the metrics to measure.

    Raises:
        InputError: A suite, metric or group that is not known.
    """
    if suite not in SUITES:
        raise InputError(f"--suite: unknown suite {suite!r}; known: {', '.join(SUITES)}")
    names = {name for group in GROUPS.values() for name in group}
    wanted: set[str] = set()
    for each in only:
        found = set(GROUPS.get(each, ())) or {each} & names
        if not found:
            known = ", ".join([*GROUPS, *(name for name in BUDGETS if name in names)])
            raise InputError(f"--only: unknown metric {each!r}; known: {known}")
        wanted |= found
    return frozenset(wanted or (names - NOT_QUICK if suite == "quick" else names))


async def _measure(
    group: str, wanted: frozenset[str], suite: str, say: Say, missing: dict[str, str]
) -> list[Reading]:
    measure = importlib.import_module(f"services.bench.{group}").measure
    with tempfile.TemporaryDirectory(prefix="tiercel-bench-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            bench = Bench(
                wanted=frozenset(wanted),
                suite=SUITES[suite],
                folder=pathlib.Path(folder),
                stack=stack,
                say=lambda share, text: say(group, share, text),
                missing=missing,
            )
            readings: list[Reading] = await measure(bench)
    say(group, 1.0, "")
    return readings
