"""What retraining for each shift would gain: ``python -m trainer.research.retrained``.

python -m trainer.research.retrained policies/opt-a100.safetensors --json build/retrained.json
tiercel evaluate --retrained build/retrained.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from router.dqn.snapshot import SnapshotError
from trainer.evaluation.plan import PLANS
from trainer.evaluation.rates import EvaluationError
from trainer.evaluation.report.tables import with_interval
from trainer.research.retrained.study import RETRAINED, Task, run_study
from trainer.research.tuning import (
    TuningError,
    add_setting_options,
    profile_of,
    run_command,
    setting_of,
)

ROUNDS = 45
"""Rounds per shift: 1.5 to 2 minutes of one core, a fifth of what the policy itself was given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Retrains, compares, writes; returns 0, 2 for bad input."""
    options = _parse(arguments)

    def work() -> None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        if options.rounds < 1 or options.workers < 0 or options.seeds < 0 or options.seed < 0:
            raise TuningError("--rounds must be at least 1; --workers, --seeds, --seed at least 0")
        start_s = time.monotonic()
        task = Task(
            snapshot=options.snapshot.read_bytes(),
            setting=setting_of(options),
            quality=profile_of(options)[1],
            plan=PLANS[options.suite],
            rounds=options.rounds,
            seed=options.seed,
            seed_count=options.seeds,
            shifts=tuple(options.shift or ()),
        )
        workers = options.workers or len(os.sched_getaffinity(0))
        try:
            found = run_study(task, workers=workers, progress=_Bar().show)
        except (SnapshotError, EvaluationError, LookupError) as error:
            raise TuningError(str(error)) from None
        cpu_s = found.pop("cpu_s")
        run = {"took_s": round(time.monotonic() - start_s, 1), "workers": workers, "cpu_s": cpu_s}
        _write(options, {RETRAINED: found, "run": run})

    try:
        return run_command(work)
    except KeyboardInterrupt:
        print("retrained: interrupted; nothing was written", file=sys.stderr)
        return 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.retrained",
        description="Compares a policy with one retrained for each shift of the evaluation.",
    )
    parser.add_argument("snapshot", type=Path, help="snapshot of the policy")
    add_setting_options(parser)
    parser.add_argument("--suite", choices=tuple(PLANS), default="full", help="loads and seeds")
    parser.add_argument("--seeds", type=int, default=0, help="evaluation seeds; 0: the suite's")
    parser.add_argument("--shift", action="append", metavar="NAME", help="only this; repeatable")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of training, per shift")
    parser.add_argument("--seed", type=int, default=1, help="of the training")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables here")
    return parser.parse_args(arguments)


class _Bar:
    """A line with a bar, rewritten on a terminal; elsewhere one line per tenth."""

    def __init__(self) -> None:
        self._text, self._start_s, self._tenth = "", 0.0, -1

    def show(self, text: str, done: float, total: float) -> None:
        """Takes in how much of a stage is done."""
        now_s = time.monotonic()
        if text != self._text:
            self._text, self._start_s, self._tenth = text, now_s, -1
        share = done / total if total > 0.0 else 1.0
        spent_s = now_s - self._start_s
        left = f"{spent_s * max(0.0, 1.0 - share) / share:5.0f} s left" if share > 0.0 else ""
        width = 30
        filled = int(width * share)
        bar = f"{text:10} [{'#' * filled}{'.' * (width - filled)}] {share:4.0%} {left}"
        if sys.stderr.isatty():
            print(f"\r\x1b[K{bar}", end="\n" if share >= 1.0 else "", file=sys.stderr, flush=True)
        elif int(10 * share) > self._tenth:
            print(bar, file=sys.stderr, flush=True)
        self._tenth = max(self._tenth, int(10 * share))


def _write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    text = markdown(document[RETRAINED])
    print(text, end="")
    for path, content in (
        (options.json, json.dumps(document, indent=1, allow_nan=False) + "\n"),
        (options.markdown, text),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")


def markdown(found: dict[str, Any]) -> str:
    """Returns the comparison, safety net on, and the training as tables."""
    title = (
        f"Version `{found['snapshot_version']}` on {found['setting']['profile']}, beside itself "
        f"trained on for {found['rounds']} rounds on each shift alone (seed {found['seed']}); "
        f"{len(found['seeds'])} evaluation seeds, safety net on, 95 % intervals of paired ratios."
    )
    columns = ("shift", "of always-small", "load", "performance", "retrained", "ratio",
               "availability", "retrained")  # fmt: skip
    lines = [title, "", f"| {' | '.join(columns)} |", "|---" + "|---:" * 7 + "|"]
    for row in found["rows"]:
        if row["safety_net"]:
            ratio = "-"
            if row["ratio"] is not None:
                ratio = with_interval(row, "ratio", 4)
            lines.append(
                f"| {row['shift']} | {row['share_of_always_small']:.2f} | {row['load']:.2f}x "
                f"| {row['performance']:.4f} | {row['retrained_performance']:.4f} "
                f"| {ratio} | {row['availability']:.4f} | {row['retrained_availability']:.4f} |"
            )
    lines += [
        "",
        "| shift | samples | validation, original | validation, trained on | kept |",
        "|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['shift']} | {row['samples']} | {row['validation_original']:.4f} "
        f"| {row['validation_trained']:.4f} | {row['kept']} |"
        for row in found["training"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
