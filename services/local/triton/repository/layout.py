"""What every written model repository is: a folder per model, and the endpoints it makes.

A written repository is complete in itself (paced) or links to the sources (reference), and goes
with the `[[mesh.endpoints]]` entries that a mesh needs to use it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from services.local.triton.errors import TritonServerError
from trainer.shipped import shipped

_MARKER = "generated-by-tiercel"


class RepositoryError(TritonServerError):
    """A model repository cannot be written as asked; the text names the field."""


@dataclass(frozen=True, kw_only=True)
class DevicePlacement:
    """One device and the Triton model of each tier on it."""

    device: str
    models: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ServerRepository:
    """The repository of one Triton server.

    Attributes:
        name: Server name, unique in the fleet.
        path: Model repository for `TritonServerConfig.repository`.
        devices: What it carries.
    """

    name: str
    path: Path
    devices: tuple[DevicePlacement, ...]

    def endpoints(
        self, grpc_address: str, metrics_address: str = "", http_address: str = ""
    ) -> list[dict[str, Any]]:
        """Returns its `[[mesh.endpoints]]` entries, one per device."""
        single = len(self.devices) == 1
        entries: list[dict[str, Any]] = []
        for placement in self.devices:
            entry: dict[str, Any] = {
                "name": self.name if single else f"{self.name}-{placement.device}",
                "address": grpc_address,
                "device": placement.device,
                "tiers": list(placement.models),
                "models": {t: model for t, model in placement.models.items() if t != model},
            }
            if metrics_address:
                entry["metrics_address"] = metrics_address
            if http_address:
                entry["http_address"] = http_address
            entries.append(entry)
        return entries


def read_model_config(path: Path) -> Any:
    """Parses a `config.pbtxt` into Triton's own message, which knows every field.

    Raises:
        RepositoryError: The file is missing or is no model configuration.
    """
    try:
        return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    except (OSError, ValueError, RecursionError, text_format.ParseError) as error:
        raise RepositoryError(f"{path}: {error}") from error


def models_root() -> Path:
    """Returns the folder of the sources.

    Raises:
        RepositoryError: They are not there.
    """
    root = shipped("deploy", "triton")
    if not root.is_dir():
        raise RepositoryError(f"the model sources are missing: no directory {root}")
    return root


def is_written(directory: Path, fingerprint: str) -> bool:
    """Returns whether an earlier call wrote all of this here; see `note_written`."""
    try:
        return (directory / _MARKER).read_text(encoding="utf-8") == fingerprint
    except (OSError, UnicodeDecodeError):
        return False


def note_written(directory: Path, fingerprint: str) -> None:
    """Remembers what was written, once all of it is there."""
    (directory / _MARKER).write_text(fingerprint, encoding="utf-8")


def clear(directory: Path) -> None:
    """Makes an empty directory; deletes only what an earlier call wrote."""
    if directory.exists():
        if any(directory.iterdir()) and not (directory / _MARKER).exists():
            raise RepositoryError(f"{directory} is not empty and was not written by this command")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / _MARKER).touch()
