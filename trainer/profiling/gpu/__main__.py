"""Measures a latency profile on a CUDA card: ``python -m trainer.profiling.gpu``.

Needs torch, numpy and scipy alone, so that it runs on a bare machine with a card. Writes what
`profiles/*.toml` are, with the card, the date, versions and the error of the fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router.profile import LatencyProfile, format_profile
from trainer.profiling.gpu.decoder import OPT_SHAPES, TINY_SHAPES, DecoderShape
from trainer.profiling.gpu.machine import DeviceError, TorchMachine
from trainer.profiling.gpu.measure import Limits, Measurement, MeasurementError, measure

SHAPES: Mapping[str, Mapping[str, DecoderShape]] = {"opt": OPT_SHAPES, "tiny": TINY_SHAPES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes; returns 0, 1 where it cannot be done, 2 for a wrong option."""
    options = _parse(arguments)
    start_s = time.monotonic()
    try:
        machine = TorchMachine(options.device, point_s=options.point_s)
        shapes = {tier: SHAPES[options.shapes][tier] for tier in options.tiers}
        name = options.name or _slug(f"{options.shapes}-{machine.card_name()}")
        with _Progress() as progress:
            found = measure(
                machine,
                shapes,
                name=name,
                limits=Limits(options.max_batch, options.max_prompt_tokens),
                on_step=progress.show,
                on_note=progress.note,
            )
        profile = described(found, machine.describe())
        path = options.out or Path("build") / "profiles" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_profile(profile), encoding="utf-8")
        if options.points is not None:
            options.points.write_text(json.dumps(as_json(found), indent=1), encoding="utf-8")
    except (DeviceError, MeasurementError) as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.filename}: cannot be written: {error.strerror}")
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was written")
    _report(found, path, time.monotonic() - start_s)
    return 0


def described(found: Measurement, device: str) -> LatencyProfile:
    """Returns the profile with what a reader must know about it."""
    now = datetime.datetime.now(datetime.UTC)
    errors = ", ".join(
        f"{tier} {fit.median_error:.3f} / {fit.largest_error:.3f}"
        for tier, fit in found.fits.items()
    )
    beside = ", ".join(f"{'+'.join(each.tiers)} {each.ratio:.2f}" for each in found.together)
    text = (
        f"{device}; random weights, "
        f"time on the device alone; relative error of the fit, median / largest: {errors}; "
        f"iterations at once by the sum of their times: {beside or 'not measured'}"
    )
    return dataclasses.replace(
        found.profile,
        description=text,
        measured_s=float(round(now.timestamp())),
        method="python -m trainer.profiling.gpu",
    )


def as_json(found: Measurement) -> dict[str, Any]:
    """Returns every measured point with what the profile says of it."""
    document: dict[str, Any] = {"name": found.profile.name, "tiers": {}}
    for tier, points in found.points.items():
        costs = found.profile.tiers[tier]
        parameters = (
            costs.overhead_s,
            costs.step_s,
            costs.per_sequence_s,
            costs.per_prompt_token_s,
        )
        document["tiers"][tier] = [
            dataclasses.asdict(point.work)
            | {
                "taken_s": point.taken_s,
                "fitted_s": sum(a * b for a, b in zip(point.equation.row, parameters, strict=True)),
            }
            for point in points
        ]
    document["together"] = [dataclasses.asdict(each) for each in found.together]
    return document


class _Progress:
    """One line on standard error: rewritten on a terminal, once per tier elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._topic = ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, text: str, share: float) -> None:
        """Takes in what is measured now."""
        line = f"{share:4.0%}  {text}"
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
            return
        topic = text.partition(":")[0]
        if topic != self._topic:
            self._topic = topic
            print(line, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Takes in what was left out."""
        start = "\r\x1b[K" if self._is_terminal else ""
        print(f"{start}{text}", file=sys.stderr, flush=True)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.profiling.gpu",
        description="Measures OPT-shaped tiers on a CUDA card and writes a latency profile.",
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument(
        "--shapes", choices=SHAPES, default="opt", help="tiny checks the script, not a card"
    )
    parser.add_argument(
        "--tiers", type=_tiers, default=list(OPT_SHAPES), metavar="NAMES", help="small,medium,large"
    )
    parser.add_argument("--name", default="", help="name of the profile (default: by the card)")
    parser.add_argument("--out", type=Path, help="default: build/profiles/NAME.toml")
    parser.add_argument("--points", type=Path, help="write every measured point here, as JSON")
    parser.add_argument("--max-batch", type=_count, default=64, metavar="N")
    parser.add_argument("--max-prompt-tokens", type=_count, default=4096, metavar="N")
    parser.add_argument(
        "--point-s", type=_seconds, default=0.3, help="seconds per point (default: 0.3)"
    )
    return parser.parse_args(arguments)


def _tiers(text: str) -> list[str]:
    names = [name for name in OPT_SHAPES if name in text.split(",")]
    unknown = [name for name in text.split(",") if name not in OPT_SHAPES]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown tiers {', '.join(map(repr, unknown))}; known: {', '.join(OPT_SHAPES)}"
        )
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 2**20:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {2**20} (got {text!r})")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 60.0:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 60 (got {text!r})")
    return value


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("nvidia", "")).strip("-")


def _report(found: Measurement, path: Path, taken_s: float) -> None:
    for tier, fit in found.fits.items():
        costs = fit.profile
        print(
            f"{tier:8} step {1e3 * costs.step_s:8.3f} ms  "
            f"sequence {1e6 * costs.per_sequence_s:8.2f} us  "
            f"prompt token {1e6 * costs.per_prompt_token_s:8.3f} us  "
            f"error median {fit.median_error:.3f}, largest {fit.largest_error:.3f} "
            f"({fit.sample_count} points)"
        )
    for each in found.together:
        print(f"{' + '.join(each.tiers)}: {each.ratio:.2f} of the sum of their times alone")
    print(f"written: {path} (took {taken_s:.0f} s)")


def _complain(message: str) -> int:
    print(f"gpu_profile: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
