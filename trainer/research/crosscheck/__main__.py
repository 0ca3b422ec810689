"""Cross-check of the learner by a library: ``python -m trainer.research.crosscheck``.

Trains DQN and PPO of stable-baselines3 and this repository's Double DQN on the same Gymnasium
environment with the same budget of steps, and scores them on the same requests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from router.catalog import parse_quality
from router.policies.table import make_policy
from router.profile import parse_profile
from router.types import InvalidFileError
from trainer.evaluation.rows import Row
from trainer.evaluation.seeds import evaluation_seeds
from trainer.research.crosscheck.arena import Arena, held_rps
from trainer.research.crosscheck.library import LibraryMissingError
from trainer.research.crosscheck.own import TrainingPlan
from trainer.research.crosscheck.run import LEARNERS, crosscheck, overall
from trainer.simulation.setting import shared_fleet_setting
from trainer.simulation.simulate import PolicySpec

LOADS = (0.5, 2.0, 8.0, 16.0, 22.0)
"""Tested rates in multiples of what the largest tier alone holds."""
TEST_SEED_COUNT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares and prints; returns 0, 1 where it cannot be done, 2 for a wrong option."""
    options = _parse(arguments)
    # Networks this small lose by being spread over cores, above all beside another process.
    torch.set_num_threads(1)
    start_s = time.monotonic()
    try:
        profile = parse_profile(options.profile.read_text(encoding="utf-8"), str(options.profile))
        quality = parse_quality(options.quality.read_text(encoding="utf-8"), str(options.quality))
        tiers = tuple(profile.tiers)
        setting = shared_fleet_setting(
            "crosscheck", profile, quality, tiers=tiers, device_count=options.devices
        )
        test_seeds = evaluation_seeds(TEST_SEED_COUNT)
        largest = PolicySpec.of(make_policy(f"static-{tiers[-1]}", setting.catalog))
        held = held_rps(setting, largest, test_seeds)
        rates = [load * held for load in LOADS]
        rows = crosscheck(
            Arena(setting, low_rps=rates[0], high_rps=rates[-1]),
            rates_rps=rates,
            seeds=range(1, options.seeds + 1),
            plan=TrainingPlan(options.steps),
            test_seeds=test_seeds,
            learners=options.learners,
            large_held_rps=held,
            on_progress=_show,
        )
        if options.json is not None:
            options.json.write_text(json.dumps({"crosscheck": rows}, indent=1), encoding="utf-8")
    except (InvalidFileError, LibraryMissingError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was written")
    _print(rows, options.devices, time.monotonic() - start_s)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.crosscheck",
        description="Compares a library's DQN and PPO with this repository's Double DQN.",
    )
    parser.add_argument("--profile", type=Path, default=Path("profiles/opt-a100.toml"))
    parser.add_argument("--quality", type=Path, default=Path("quality/opt.toml"))
    parser.add_argument("--devices", type=_count, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--steps", type=_count, default=60_000, metavar="N", help="budget per run (default: 60000)"
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        default=3,
        metavar="N",
        help="training runs per learner (default: 3)",
    )
    parser.add_argument(
        "--learners",
        type=_learners,
        default=list(LEARNERS),
        metavar="NAMES",
        help=",".join(LEARNERS),
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**8:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from 1 to 100000000 (got {text!r})"
        )
    return int(text)


def _learners(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in LEARNERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown learners {', '.join(map(repr, unknown))}; known: {', '.join(LEARNERS)}"
        )
    return names


def _show(text: str, share: float) -> None:
    """Rewrites one line on a terminal; elsewhere says when a run is over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{share:4.0%}  {text}", end="", file=sys.stderr, flush=True)
    elif text.endswith("testing"):
        print(f"{share:4.0%}  {text}", file=sys.stderr, flush=True)


def _print(rows: Sequence[Row], devices: int, taken_s: float) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    steps = max(row["steps"] for row in rows)
    print(f"{devices} devices, {steps} steps per run; performance (availability) by load")
    mean = overall(rows)
    for name, value in mean.items():
        own = [row for row in rows if row["learner"] == name]
        cells = "  ".join(f"{row['performance']:.3f} ({row['availability']:.3f})" for row in own)
        print(f"{name:20} {value:.3f}  {cells}  {own[0]['seconds']:6.0f} s")
    loads = "  ".join(f"{row['load']:g}x" for row in rows if row["learner"] == rows[0]["learner"])
    print(f"columns: mean over loads, {loads}, processor seconds of a run; took {taken_s:.0f} s")


def _complain(message: str) -> int:
    print(f"crosscheck: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
