"""Which tiers an embedded mesh serves: the reference tiers, or paced ones."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Protocol

import tomli_w

from router.documents import parse_toml
from services.local.triton.repository.layout import ServerRepository
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from services.local.triton.repository.reference import write_reference_repository
from trainer.simulation.workload import OPT_LENGTHS

REFERENCE_TIERS = ("small", "medium", "large")


class Fleet(Protocol):
    """Tiers to serve.

    Attributes:
        kind: ``reference`` or ``paced``.
        tiers: Their names, lowest quality first.
    """

    @property
    def kind(self) -> str:
        """``reference`` or ``paced``."""
        ...

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names, lowest quality first."""
        ...

    def write(self, folder: pathlib.Path) -> ServerRepository:
        """Writes the model repository; raises RepositoryError."""
        ...

    def kept_profile(self, profile: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
        """Returns the file of a profile as these tiers keep it; raises OSError."""
        ...


@dataclasses.dataclass(frozen=True)
class ReferenceFleet:
    """The three small models of this project, all on one device."""

    kind: str = "reference"
    tiers: tuple[str, ...] = REFERENCE_TIERS

    def write(self, folder: pathlib.Path) -> ServerRepository:
        """Writes the model repository; raises RepositoryError."""
        return write_reference_repository(folder, self.tiers)

    def kept_profile(self, profile: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
        """Returns the profile's own file."""
        return profile


@dataclasses.dataclass(frozen=True)
class PacedFleetOptions:
    """Tiers timed by a latency profile instead of computed.

    Attributes:
        profile: Latency profile file.
        tiers: Names, lowest quality first, all in the profile.
        device_count: Devices, each with every tier.
        time_scale: Factor on every time.
        kind: ``paced``.
    """

    profile: pathlib.Path
    tiers: tuple[str, ...]
    device_count: int = 1
    time_scale: float = 1.0
    kind: str = "paced"

    def write(self, folder: pathlib.Path) -> ServerRepository:
        """Writes the model repository; raises RepositoryError."""
        fleet = PacedFleet(
            profile=self.profile,
            tiers=self.tiers,
            device_count=self.device_count,
            time_scale=self.time_scale,
            output_tokens_mean=OPT_LENGTHS.output_mean,
            output_tokens_variation=OPT_LENGTHS.output_variation,
        )
        return write_paced_repository(folder, fleet).servers[0]

    def kept_profile(self, profile: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
        """Writes the profile with every time stretched; returns the file."""
        document = parse_toml(profile.read_text(encoding="utf-8"), str(profile))
        for tier in document["tiers"].values():
            for key in tier:
                if key.endswith("_s"):
                    tier[key] *= self.time_scale
        stretched = folder / "profile.toml"
        stretched.write_text(tomli_w.dumps(document), encoding="utf-8")
        return stretched
