"""The file that says where a mesh is: ``run/NAME/mesh.json`` of the state folder."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import pydantic

from router.documents import LARGEST_DOCUMENT_BYTES
from router.folders import state_folder
from services.common.files import read_bytes, write_whole
from services.local.errors import CommandError, InputError

FILE_NAME = "mesh.json"
DEFAULT_NAME = "default"
CONFIG_VARIABLE = "TIERCEL_CONFIG"
"""Names the settings file of a mesh started by hand, where ``--config`` does not."""
_NAME = re.compile(r"^[a-z0-9_-]{1,64}$")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A running mesh.

    Attributes:
        name: Its name.
        pid: Process id of its supervisor.
        started_ticks: When the supervisor started, see ``started_ticks``.
        kind: ``reference`` or ``paced``.
        config: Settings file of its services.
        routers: gRPC addresses of the routers.
        addresses: Other addresses by what listens there (``load_monitor``, ``trainer``, ``redis``,
            ``triton_grpc``, ...); a service that was not started is missing.
        metrics: Prometheus addresses by process name.
        processes: Per child its ``pid``, ``log`` and ``start_count``.
        cores: ``service`` and ``device`` processors.
    """

    name: str
    pid: int
    started_ticks: int
    kind: str
    config: str
    routers: tuple[str, ...]
    addresses: Mapping[str, str]
    metrics: Mapping[str, str]
    processes: Mapping[str, Mapping[str, Any]]
    cores: Mapping[str, list[int]]

    def write(self, folder: pathlib.Path) -> None:
        """Writes the file; a reader never sees half of it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_whole(folder / FILE_NAME, text.encode())

    @property
    def is_alive(self) -> bool:
        """Whether the supervisor that wrote it still runs."""
        return started_ticks(self.pid) == self.started_ticks


def started_ticks(pid: int) -> int:
    """Returns when a process started, in ticks since the machine did; -1 if there is no such one.

    Unlike a time of day it stays the same when the clock is set.
    """
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return -1
    # The program's name stands before, in brackets, and may hold anything.
    return int(stat.rpartition(b")")[2].split()[19])


def run_folder(name: str) -> pathlib.Path:
    """Folder of a mesh's files.

    Raises:
        InputError: No possible name of a mesh.
    """
    if not _NAME.match(name):
        raise InputError(f"mesh name: expected 1 to 64 characters of [a-z0-9_-], got {name!r}")
    return state_folder("run", name)


def find_mesh(name: str) -> Manifest:
    """Reads a running mesh's file.

    Raises:
        CommandError: No mesh of that name runs here.
    """
    path = run_folder(name) / FILE_NAME
    hint = "start one with: tiercel up" + ("" if name == DEFAULT_NAME else f" --name {name}")
    if not path.exists():
        raise CommandError(f"no mesh {name!r} runs here ({path} is missing); {hint}")
    manifest = read_manifest(path)
    if not manifest.is_alive:
        raise CommandError(f"mesh {name!r} is not running any more; {hint}")
    return manifest


def read_manifest(path: pathlib.Path) -> Manifest:
    """Reads the file of a mesh; raises CommandError if it is none."""
    try:
        return pydantic.TypeAdapter(Manifest).validate_json(
            read_bytes(path, LARGEST_DOCUMENT_BYTES)
        )
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from None
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = "".join(f"{part}: " for part in first["loc"])
        raise CommandError(f"{path}: is no file of a mesh: {field}{first['msg']}") from None


def running_names() -> list[str]:
    """Names of the meshes that run here, in order of name."""
    names = []
    for path in sorted(run_folder(DEFAULT_NAME).parent.glob(f"*/{FILE_NAME}")):
        try:
            names.append(find_mesh(path.parent.name).name)
        except CommandError:
            continue
    return names
