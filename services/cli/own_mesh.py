"""The mesh that `tiercel train` and `tiercel evaluate` simulate, from its own settings file."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from router.types import Task
from services.calibrate.questions import Question, read_questions
from services.cli.measured_mesh import limits_of, read_mesh
from services.cli.output import note
from services.common.mesh_settings import MeshSettings, load_mesh_files, placement
from services.common.settings import SettingsError
from services.local.errors import InputError
from services.local.manifest import CONFIG_VARIABLE

if TYPE_CHECKING:
    from trainer.simulation.setting import OwnMesh
    from trainer.simulation.workload import Lengths

MeshConfigOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--config",
        help="Settings file of your mesh: its tasks, deadlines, tiers, devices, profile, quality.",
    ),
]
PromptsOption = Annotated[
    pathlib.Path | None,
    typer.Option(
        "--prompts",
        help="JSON lines with a prompt each, for lengths and the mix of tasks; with --config.",
    ),
]


DeadlineOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=3600,
        help="Deadline of every task, seconds [default: 0.4]; not with --config.",
    ),
]
DevicesOption = Annotated[
    int | None,
    typer.Option(min=1, max=256, help="Devices with every tier [default: 4]; not with --config."),
]
OutputTokensOption = Annotated[
    float | None,
    typer.Option(
        min=1,
        max=4096,
        help="Mean output tokens, for profiles but opt-* [default: 8]; not with --config.",
    ),
]


def config_in_force(config: pathlib.Path | None, **described: Any) -> pathlib.Path | None:
    """Returns the settings file that is meant: the option's, else that of the environment.

    Args:
        config: The option.
        described: Options that describe a mesh without a settings file; one of them is enough for
            the environment not to count.
    """
    found = os.environ.get(CONFIG_VARIABLE, "")
    if config is not None or not found or _given(described):
        return config
    note(f"the mesh of ${CONFIG_VARIABLE}: {found}")
    return pathlib.Path(found)


def _given(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if value not in (None, "")}


def asked_mesh(
    config: pathlib.Path | None, prompts: pathlib.Path | None, **described: Any
) -> dict[str, Any]:
    """Returns what describes the mesh, as arguments of `trainer.evaluation.inputs.Asked`.

    Args:
        config: Settings file; None: the options describe it.
        prompts: Prompts of its traffic.
        described: Options that describe a mesh without a settings file, by name.

    Raises:
        InputError: A file is missing or wrong, or something is said twice.
    """
    given = _given(described)
    if config is None:
        if prompts is not None:
            raise InputError("--prompts: needs --config, whose bytes per token count them")
        return given
    for name in given:
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option}: the settings file says this; leave it or --config out")
    return {"own": read_own_mesh(config, prompts)}


def read_own_mesh(config: pathlib.Path, prompts: pathlib.Path | None) -> OwnMesh:
    """Reads a mesh with its files.

    Args:
        config: Settings file.
        prompts: Prompts of its traffic; None: their lengths are assumed, and all tasks are as
            likely.

    Raises:
        InputError: A file is missing or wrong; every mistake is named.
    """
    # The simulator is needed here only; help and mistakes come faster without it.
    from trainer.simulation.scenarios import expecting
    from trainer.simulation.setting import OwnMesh

    mesh = read_mesh(config)
    try:
        files = load_mesh_files(mesh)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None
    found = own_lengths(files.catalog.tasks)
    share: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    if prompts is None:
        about = f"about {found.prompt_mean:.0f} tokens"
        notes = (f"lengths of prompts are assumed ({about}), all tasks as likely: give --prompts",)
    else:
        asked = read_questions(prompts, limits_of(mesh), scored=False)
        found = with_prompts(found, asked, mesh)
        counts = Counter(each.task for each in asked)
        if not counts[""]:
            share = tuple(float(counts[task.name]) for task in files.catalog.tasks)
    # In the order of quality, whatever the order of the file.
    costs = {tier: files.profile.tiers[tier] for tier in mesh.tiers}
    profile = dataclasses.replace(files.profile, tiers=costs)
    tasks = tuple(expecting(files.catalog.tasks, found))
    catalog = dataclasses.replace(files.catalog, tasks=tasks)
    return OwnMesh(mesh.name, catalog, files.quality, profile, placement(mesh), found, share, notes)


def own_lengths(tasks: Sequence[Task]) -> Lengths:
    """Returns lengths of answers as the tasks expect them, of prompts as nobody knows them."""
    from trainer.simulation.workload import OPT_LENGTHS

    return dataclasses.replace(
        OPT_LENGTHS,
        output_mean=float(np.mean([task.expected_output_tokens for task in tasks])),
        output_max=max(task.default_max_output_tokens for task in tasks),
    )


def with_prompts(lengths: Lengths, asked: Sequence[Question], mesh: MeshSettings) -> Lengths:
    """Returns lengths with those of prompts: stated, else by the mesh's bytes per token."""
    tokens = [
        each.token_count or max(1.0, len(each.prompt.encode()) / mesh.bytes_per_token)
        for each in asked
    ]
    logarithm = np.log(tokens)
    return dataclasses.replace(
        lengths,
        prompt_median=float(np.exp(logarithm.mean())),
        prompt_sigma=float(logarithm.std()),
        prompt_max=int(np.ceil(max(tokens))),
    )
