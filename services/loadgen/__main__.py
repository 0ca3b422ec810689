"""Runs the load generator: ``python -m services.loadgen --spec FILE --out FILE``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import signal
import sys

import uvloop

from services.loadgen.records import MAX_LAG_SHARE, RunRecords, run_summary
from services.loadgen.run import LoadRun, LoadRunError, Progress
from services.loadgen.spec import LoadSpec, LoadSpecError, read_spec


def main(arguments: list[str] | None = None) -> int:
    """Runs a spec: progress as JSON lines on stdout, records to the output file.

    Returns:
        0 done (also when the run is marked invalid), 1 no router reached, 2 bad input.
    """
    parser = argparse.ArgumentParser(prog="python -m services.loadgen", description=__doc__)
    parser.add_argument("--spec", required=True, type=pathlib.Path, help="TOML or JSON load spec")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="records file (.npz)")
    options = parser.parse_args(arguments)
    try:
        spec = read_spec(options.spec)
    except LoadSpecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    raised = _take_priority(spec)
    try:
        records = uvloop.run(_run(spec))
    except LoadRunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    records = dataclasses.replace(records, meta={**records.meta, "priority_raised": raised})
    try:
        records.save(options.out)
    except OSError as error:
        print(f"error: {options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    _say({"event": "summary", **run_summary(records)})
    if not records.is_valid:
        print(
            f"warning: the generator lagged (p99 {records.lag_s(0.99) * 1e3:.1f} ms, more than"
            f" {MAX_LAG_SHARE:g} of the deadline); the run is marked invalid",
            file=sys.stderr,
        )
    return 0


async def _run(spec: LoadSpec) -> RunRecords:
    run = LoadRun(spec)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop)
    # A collection in the middle of a burst would show up as generator lag.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return await run.run(_report)
    finally:
        gc.enable()


def _report(progress: Progress) -> None:
    _say({"event": "progress", **dataclasses.asdict(progress)})


def _say(fields: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(fields), flush=True)


def _take_priority(spec: LoadSpec) -> bool:
    """Pins and prioritizes this process as the spec asks; returns whether it has the priority."""
    if spec.core is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {spec.core})
    try:
        os.setpriority(os.PRIO_PROCESS, 0, spec.nice)
    except PermissionError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
