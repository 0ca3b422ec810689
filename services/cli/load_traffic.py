"""What a load run asks for: tasks, their deadlines and shares, prompts of a file, lengths."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from services.calibrate.questions import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    Question,
    read_questions,
)
from services.cli.measured_mesh import limits_of, mesh_of
from services.common.mesh_settings import HIGHEST_LIMIT_TOKENS, MeshFiles, load_mesh_files
from services.common.settings import SettingsError, load_settings
from services.common.times import seconds_of
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target
from services.router_inference.settings import Settings
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from trainer.simulation.scenarios import default_lengths


def traffic(
    target: Target, mix: dict[str, float] | None, deadline_s: float | None
) -> tuple[dict[str, float], float | dict[str, float]]:
    """Returns the share of each task, even unless given, and the deadline of all, or of each.

    Raises:
        InputError: The mix names a task that the mesh does not have.
        CommandError: The mesh's tasks are needed and cannot be had.
    """
    if mix is not None and deadline_s is not None:
        return mix, deadline_s
    known = _tasks(target)
    shares = mix or dict.fromkeys(known, 1.0)
    for task in shares:
        if task not in known:
            raise InputError(
                f"--mix, --prompts: the mesh has no task {task!r}; it has {', '.join(known)}"
            )
    return shares, {task: known[task] for task in shares} if deadline_s is None else deadline_s


def check_tier(target: Target, tier: str) -> None:
    """Checks that a tier is served, as far as a router says; nothing where none does.

    Raises:
        InputError: No endpoint of the mesh serves it, or a certificate cannot be used.
    """
    for address in target.routers:
        try:
            reply = call("router", address, "GetRouterStatus", pb.GetRouterStatusRequest())
        except InputError:
            raise
        except CommandError:
            continue
        served = dict.fromkeys(each.candidate.tier for each in reply.candidates)
        if served and tier not in served:
            raise InputError(
                f"--tier: no endpoint of the mesh serves {tier!r}; there are {', '.join(served)}"
            )
        return


def _tasks(target: Target) -> dict[str, float]:
    """Returns the deadline of each task of a mesh in seconds, as a router says, or the settings.

    Raises:
        CommandError: Neither does.
        InputError: A certificate cannot be used, or the key not with a router.
    """
    failure: CommandError | None = None
    for address in target.routers:
        try:
            reply = call("router", address, "GetRouterStatus", pb.GetRouterStatusRequest())
        except InputError:  # a certificate that cannot be used here: no other router helps
            raise
        except CommandError as error:
            failure = failure or error
            continue
        if reply.tasks:
            return {each.task: seconds_of(each.default_deadline) for each in reply.tasks}
        failure = failure or CommandError(f"the router at {address} does not say its tasks")
    if not target.config:
        raise CommandError(f"{failure}; without its tasks, give --mix and --deadline")
    return {task.name: task.default_deadline_s for task in _files_of(target).catalog.tasks}


def lengths(target: Target) -> dict[str, Any]:
    """Returns lengths that suit the mesh's profile; nothing where its settings are unknown."""
    if not target.config:
        return {}
    files = _files_of(target)
    found = default_lengths(files.profile, files.catalog.tasks)
    # Some times what is expected, which no limit of an answer may exceed.
    found = dataclasses.replace(found, output_max=min(found.output_max, HIGHEST_LIMIT_TOKENS))
    return dataclasses.asdict(found)


def _files_of(target: Target) -> MeshFiles:
    """Reads what the mesh's settings name.

    Raises:
        CommandError: Something cannot be read.
    """
    try:
        path = pathlib.Path(target.config)
        return load_mesh_files(load_settings(Settings, path=path, environ=os.environ).mesh)
    except SettingsError as error:
        raise CommandError("; ".join(error.problems)) from None


def parse_mix(text: str, option: str = "--mix", known: Collection[str] = ()) -> dict[str, float]:
    """Parses ``sort=2,reverse=1`` (a name without a number counts once).

    Args:
        text: What was given.
        option: The option that gave it.
        known: Names there are; empty for any.

    Raises:
        InputError: Not of that form, or a share that is no number from 0 up.
    """
    mix: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        name, separator, share = part.partition("=")
        try:
            value = float(share) if separator else 1.0
        except ValueError:
            raise InputError(f"{option}: {share!r} is no number") from None
        if not name or not 0 <= value < float("inf"):
            raise InputError(f"{option}: expected NAME=SHARE with a share from 0 up, got {part!r}")
        if known and name not in known:
            raise InputError(f"{option}: {name!r} is none of {', '.join(known)}")
        mix[name] = value
    if not mix:
        example = "sort=2,reverse=1" if not known else "high=1,low=2"
        raise InputError(f"{option}: name at least one, for instance {example}")
    return mix


def read_prompts(path: pathlib.Path | None, target: Target) -> OwnPrompts | None:
    """Reads a file of prompts, as `calibrate`, `quality` and `train` do; None without one.

    Raises:
        InputError: The file or a line is wrong, also a task that the mesh's settings do not have;
            every mistake has its line.
    """
    if path is None:
        return None
    limits = limits_of(mesh_of(target))
    return OwnPrompts(read_questions(path, limits, scored=False), limits)


@dataclasses.dataclass(frozen=True)
class OwnPrompts:
    """Prompts of a file.

    Attributes:
        asked: The lines.
        limits: Limit of output tokens by task; empty where the mesh's settings are unknown.
    """

    asked: Sequence[Question]
    limits: Mapping[str, int]

    def mix(self) -> dict[str, float] | None:
        """Returns the share of each task as the file has them; None if a line names none."""
        counts = Counter(each.task for each in self.asked)
        return None if counts[""] else {task: float(count) for task, count in counts.items()}

    def pools(self, tasks: Collection[str]) -> dict[str, list[dict[str, Any]]]:
        """Returns each task's prompts as a load spec takes them; lines without one are anybody's.

        Raises:
            InputError: A task has no line.
        """
        return {task: self._pool(task) for task in tasks}

    def _pool(self, task: str) -> list[dict[str, Any]]:
        usual = self.limits.get(task, DEFAULT_MAX_OUTPUT_TOKENS)
        pool: list[dict[str, Any]] = []
        for each in self.asked:
            if each.task in ("", task):
                # What a line does not state is the run's or the router's to say.
                stated = each.max_output_tokens if each.max_output_tokens != usual else None
                pool.append({"text": each.prompt, "max_output_tokens": stated})
        if not pool:
            raise InputError(
                f"--prompts: no line is of task {task}; add some, or leave it out of --mix"
            )
        return pool
