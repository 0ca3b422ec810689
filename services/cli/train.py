"""``tiercel train``: a policy for one mesh, trained offline in the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.dqn.snapshot import SnapshotError, load_snapshot
from router.folders import state_folder
from router.types import InvalidFileError
from services.cli.files import check_writable, read_bytes
from services.cli.options import JsonOption, MeshOption, TrainerOption
from services.cli.output import console, print_json, table
from services.cli.own_mesh import (
    DeadlineOption,
    DevicesOption,
    MeshConfigOption,
    OutputTokensOption,
    PromptsOption,
    asked_mesh,
    config_in_force,
)
from services.cli.policy import publish_snapshot
from services.cli.progress import ProgressLines, StageProgress
from services.local.errors import CommandError, InputError
from services.local.learned import TRAINED
from services.local.target import resolve

if TYPE_CHECKING:
    from trainer.evaluation.inputs import Asked


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("train")(train)


def train(
    config: MeshConfigOption = None,
    prompts: PromptsOption = None,
    profile: Annotated[
        str, typer.Option(help="Without --config: latency profile, a file or a shipped name.")
    ] = "",
    quality: Annotated[
        str, typer.Option(help="Without --config: quality table, a file or a shipped name.")
    ] = "",
    deadline_s: DeadlineOption = None,
    devices: DevicesOption = None,
    output_tokens: OutputTokensOption = None,
    max_rate_rps: Annotated[
        float,
        typer.Option(min=0, max=10_000_000, help="Highest rate to train for; 0 = by the profile."),
    ] = 0.0,
    budget_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds to train and validate.")
    ] = 480.0,
    rounds: Annotated[
        int,
        typer.Option(min=0, help="Rounds instead of --budget-s: reproducible; 0 = by the time."),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything drawn.")] = 1,
    out: Annotated[
        pathlib.Path | None,
        typer.Option(help="Snapshot to write [default: train/policy.safetensors in the state]."),
    ] = None,
    initial: Annotated[
        pathlib.Path | None, typer.Option(help="Snapshot to start from; none = afresh.")
    ] = None,
    answer: Annotated[
        bool,
        typer.Option(help="Say afterwards what to use, up to which load, and how many GPUs saved."),
    ] = True,
    tensorboard: Annotated[
        pathlib.Path | None, typer.Option(help="Folder of a TensorBoard log; none = no log.")
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Put it into the registry of the mesh's trainer.")
    ] = False,
    mesh: MeshOption = "",
    trainer: TrainerOption = "",
    as_json: JsonOption = False,
) -> None:
    """Train a policy in the simulator and write its snapshot; a killed run goes on where it was.

    With --config the mesh simulated is yours, else that of a profile and a quality table.
    """
    from trainer.evaluation.inputs import Asked, EvaluationInputError, described_mesh
    from trainer.learning.checkpoint import CheckpointError, write_atomically
    from trainer.learning.offline.config import Budget
    from trainer.learning.offline.training import train_policy
    from trainer.simulation.scenarios import Mesh, ScenarioError

    described = {
        "profile": profile,
        "quality": quality,
        "deadline_s": deadline_s,
        "devices": devices,
        "output_tokens": output_tokens,
    }
    config = config_in_force(config, **described)
    if config is None and not (profile and quality):
        raise InputError("--config: give your mesh's settings file, or --profile and --quality")
    # Before minutes of training, not after them.
    registry = resolve(mesh, trainer=trainer, config=config).need("trainer") if publish else ""
    asked = Asked(**asked_mesh(config, prompts, **described))
    path = out or state_folder(*TRAINED)
    check_writable(path, "--out")
    start = read_bytes(initial) if initial is not None else None
    checkpoint = path.with_name(path.name + ".checkpoint")
    with _Display(quiet=as_json, folder=tensorboard) as display:
        try:
            own = described_mesh(asked)
            setting = Mesh.build(
                profile=own.profile,
                quality=own.quality,
                tasks=own.catalog.tasks,
                devices=own.devices,
                max_rate_rps=max_rate_rps or None,
                lengths=own.lengths,
            )
            blob = train_policy(
                setting,
                seed=seed,
                budget=Budget(seconds=budget_s, rounds=rounds or None),
                initial=start,
                checkpoint=checkpoint,
                progress=display.show,
            )
            write_atomically(path, blob)
            # Not before: a disk that is full must not cost the training.
            with contextlib.suppress(OSError):
                checkpoint.unlink()
        except (EvaluationInputError, ScenarioError, SnapshotError, InvalidFileError) as error:
            raise InputError(str(error)) from None
        except CheckpointError as error:
            raise CommandError(str(error)) from None
    if registry:
        try:
            publish_snapshot(registry, blob, f"trained with seed {seed}")
        except CommandError as error:
            raise type(error)(f"{path} is written, but not published: {error}") from None
    found = _answer(dataclasses.replace(asked, own=own), path) if answer else None
    _print_result(path, blob, found, own.notes, as_json)


def _answer(asked: Asked, path: pathlib.Path) -> dict[str, Any]:
    """Evaluates the snapshot briefly; writes the plot beside it and returns the answer."""
    from trainer.evaluation.facts import usable_cores
    from trainer.evaluation.inputs import EvaluationInputError, read_inputs
    from trainer.evaluation.plan import BRIEF
    from trainer.evaluation.rates import EvaluationError
    from trainer.evaluation.report.figures import answer_figure
    from trainer.evaluation.report.page import palette
    from trainer.evaluation.report.style import save
    from trainer.evaluation.run import run_evaluation

    try:
        with StageProgress() as display:
            report = run_evaluation(
                read_inputs(dataclasses.replace(asked, policies=(str(path),))),
                BRIEF,
                seed_count=0,
                workers=usable_cores(),
                command="",
                progress=display.show_requests,
            )
    except (EvaluationInputError, EvaluationError) as error:
        raise CommandError(f"{path} is written, but not evaluated: {error}") from None
    found: dict[str, Any] = report["answer"]
    small = report["always_small"][0]["policy"]
    save(answer_figure(found, report["sweep"], small, palette(report)), path.with_suffix(""))
    return found


class _Display:
    """Progress on the terminal and, if asked for, in TensorBoard."""

    def __init__(self, *, quiet: bool, folder: pathlib.Path | None) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        terminal = console()
        self._lines = None if quiet or terminal.is_terminal else ProgressLines()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
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


def _print_result(
    out: pathlib.Path,
    blob: bytes,
    found: dict[str, Any] | None,
    notes: Sequence[str],
    as_json: bool,
) -> None:
    snapshot = load_snapshot(blob)
    evaluation = dict(snapshot.evaluation)
    if as_json:
        print_json(
            {
                "snapshot": str(out),
                "version": snapshot.version,
                "answer": found,
                "training": dict(snapshot.training),
                "evaluation": evaluation,
            }
        )
        return
    terminal = console()
    if found is not None:
        terminal.print(found["sentence"], markup=False, soft_wrap=True, style="bold")
        terminal.print(f"plot: {out.with_suffix('.png')}", markup=False, soft_wrap=True)
    for each in notes:
        terminal.print(each, markup=False, soft_wrap=True)
    rows = {"dqn": evaluation, **evaluation["baselines"]}
    columns = ("policy", "performance", "availability", "lowest availability")
    terminal.print(
        table(
            "on validation scenarios: bursts, costs that are off, stale views, a device lost",
            columns,
            [
                (
                    name,
                    *(
                        f"{scores[key]:.4f}"
                        for key in ("performance", "availability", "availability_min")
                    ),
                )
                for name, scores in rows.items()
            ],
        )
    )
    terminal.print(f"{out}  version {snapshot.version}", markup=False, soft_wrap=True)
