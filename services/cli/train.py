"""``tiercel train``: a policy for one mesh, trained offline in the simulator."""

from __future__ import annotations

import json
import pathlib
import time
from typing import Annotated, Any

import typer

from router.catalog import QualityTable, parse_quality
from router.dqn.snapshot import SnapshotError, load_snapshot
from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError, Task
from services.cli.files import read_bytes, shipped_file
from services.cli.output import console
from services.cli.progress import ProgressLines
from services.local.errors import CommandError, InputError
from trainer.shipped import PROFILES, QUALITY

DEFAULT_OUT = pathlib.Path("build") / "train" / "policy.safetensors"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("train")(train)


def train(
    profile: Annotated[
        str, typer.Option(help="Latency profile: a file, or the name of a shipped one.")
    ],
    quality: Annotated[
        str, typer.Option(help="Quality table: a file, or the name of a shipped one.")
    ],
    deadline_s: Annotated[float, typer.Option(help="Deadline of every task, seconds.")] = 0.4,
    devices: Annotated[int, typer.Option(min=1, max=256, help="Devices with every tier.")] = 4,
    output_tokens: Annotated[
        float, typer.Option(min=1, max=4096, help="Mean output tokens, for profiles but opt-*.")
    ] = 8.0,
    max_rate_rps: Annotated[
        float, typer.Option(min=0, help="Highest rate to train for; 0 = by the profile.")
    ] = 0.0,
    budget_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds to train and evaluate.")
    ] = 480.0,
    rounds: Annotated[
        int,
        typer.Option(min=0, help="Rounds instead of --budget-s: reproducible; 0 = by the time."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 1,
    out: Annotated[pathlib.Path, typer.Option(help="Snapshot to write.")] = DEFAULT_OUT,
    initial: Annotated[
        pathlib.Path | None, typer.Option(help="Snapshot to start from; none = afresh.")
    ] = None,
    tensorboard: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of a TensorBoard log; none = no log.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a policy in the simulator and write its snapshot; a killed run goes on where it was."""
    from trainer.learning.checkpoint import CheckpointError, write_atomically
    from trainer.learning.offline.config import Budget
    from trainer.learning.offline.training import train_policy
    from trainer.simulation.scenarios import Mesh, ScenarioError

    costs = _profile(shipped_file(PROFILES, profile, "--profile"))
    table = _quality(shipped_file(QUALITY, quality, "--quality"))
    tasks = [Task(name, deadline_s, expected_output_tokens=output_tokens) for name in table.quality]
    start = read_bytes(initial) if initial is not None else None
    with _Display(quiet=as_json, folder=tensorboard) as display:
        try:
            mesh = Mesh.build(
                profile=costs,
                quality=table,
                tasks=tasks,
                deadline_s=deadline_s,
                devices=devices,
                max_rate_rps=max_rate_rps or None,
            )
            blob = train_policy(
                mesh,
                seed=seed,
                budget=Budget(seconds=budget_s, rounds=rounds or None),
                initial=start,
                checkpoint=out.with_name(out.name + ".checkpoint"),
                progress=display.show,
            )
            write_atomically(out, blob)
        except (ScenarioError, SnapshotError, InvalidFileError) as error:
            raise InputError(str(error)) from None
        except CheckpointError as error:
            raise CommandError(str(error)) from None
    _print_result(out, blob, as_json)


def _profile(path: pathlib.Path) -> LatencyProfile:
    try:
        return parse_profile(read_bytes(path).decode("utf-8", "replace"), str(path))
    except InvalidFileError as error:
        raise InputError(str(error)) from None


def _quality(path: pathlib.Path) -> QualityTable:
    try:
        return parse_quality(read_bytes(path).decode("utf-8", "replace"), str(path))
    except InvalidFileError as error:
        raise InputError(str(error)) from None


class _Display:
    """Progress on the terminal and, if asked for, in TensorBoard."""

    def __init__(self, *, quiet: bool, folder: pathlib.Path | None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        terminal = console()
        self._lines = None if quiet or terminal.is_terminal else ProgressLines()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=terminal,
            disable=quiet or self._lines is not None,
        )
        self._task = self._progress.add_task("compiling", total=1.0, facts="")
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))
        self._start_s = time.monotonic()

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def show(self, share: float, facts: dict[str, Any]) -> None:
        """Takes in what the training reports."""
        phase = facts.get("phase", "train")
        text = ""
        if "step_count" in facts:
            score = facts.get("score")
            text = (
                f"score {'-' if score is None else f'{score:.4f}'} "
                f"(price {facts['price_score']:.4f})  epsilon {facts['epsilon']:.2f}  "
                f"{facts['steps_per_second']:.0f} steps/s"
            )
        words = {"compile": "compiling", "search": "searching", "train": "training", "done": "done"}
        word = words.get(phase, phase)
        self._progress.update(self._task, completed=share, description=word, facts=text)
        if self._lines is not None:
            self._lines.show(word, share, text)
        if self._writer is not None and "step_count" in facts:
            for name in ("score", "loss", "transition_count", "performance", "availability"):
                if facts.get(name) is not None:
                    self._writer.add_scalar(name, facts[name], facts["step_count"])


def _print_result(out: pathlib.Path, blob: bytes, as_json: bool) -> None:
    snapshot = load_snapshot(blob)
    evaluation = dict(snapshot.evaluation)
    if as_json:
        document = {
            "snapshot": str(out),
            "version": snapshot.version,
            "training": dict(snapshot.training),
            "evaluation": evaluation,
        }
        typer.echo(json.dumps(document))
        return
    terminal = console()
    terminal.print(f"{out}  version {snapshot.version}", markup=False)
    rows = {"dqn": evaluation, **evaluation["baselines"]}
    for name, scores in rows.items():
        terminal.print(
            f"  {name:14} performance {scores['performance']:.4f}  "
            f"availability {scores['availability']:.4f} (worst {scores['availability_min']:.4f})",
            markup=False,
        )
