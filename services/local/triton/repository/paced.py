"""Writes model repositories of a fleet of paced devices."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from google.protobuf import text_format

from router import iteration_spread
from router.profile import LatencyProfile, parse_profile
from router.types import InvalidFileError
from services.common.files import read_text
from services.local.triton.repository.layout import (
    DevicePlacement,
    RepositoryError,
    ServerRepository,
    clear,
    is_written,
    models_root,
    note_written,
    read_model_config,
)

# What every paced model directory gets of `deploy/triton/common`.
_SHARED_MODULES = ("device_clock.py", "paced_engine.py")
STATES = ("ok", "lost", "hung")


@dataclass(frozen=True, kw_only=True)
class PacedFleet:
    """A fleet of paced devices.

    Attributes:
        profile: Latency profile file (`profiles/*.toml`).
        tiers: Tier names, all of them in the profile.
        device_count: Number of devices. With `sharing="own"`, devices per tier.
        time_scale: Factor on every time, 1.0: as in the profile.
        sharing: `shared`: every device carries all tiers, which take turns on it. `own`: every
            device carries one tier.
        servers: `one`: one Triton carries all devices. `per_device`: each device has its own.
        output_tokens_mean: Mean length of an answer, drawn per request; 0: always the limit.
        output_tokens_variation: Coefficient of variation of that length.
        max_queue_count: Most requests that may wait per model.
    """

    profile: Path
    tiers: tuple[str, ...]
    device_count: int = 1
    time_scale: float = 1.0
    sharing: Literal["shared", "own"] = "shared"
    servers: Literal["one", "per_device"] = "one"
    output_tokens_mean: float = 0.0
    output_tokens_variation: float = 0.5
    max_queue_count: int = 1024


@dataclass(frozen=True, kw_only=True)
class PacedRepository:
    """A written paced fleet.

    Attributes:
        servers: One entry per Triton server to start.
        state_directory: Clock and control files of the devices.
    """

    servers: tuple[ServerRepository, ...]
    state_directory: Path

    @classmethod
    def at(cls, directory: Path) -> PacedRepository:
        """Returns the devices of a fleet that is written under `directory`, without its servers."""
        return cls(servers=(), state_directory=directory / "state")

    def set_device(self, device: str, *, slow_down: float = 1.0, state: str = "ok") -> None:
        """Injects a fault into a device, or with the defaults heals it, from now on.

        Args:
            device: Device name, for example `gpu0`.
            slow_down: Factor on the device's times, > 0.
            state: `ok`, `lost` (requests fail at once) or `hung` (nothing moves).
        """
        if state not in STATES or not slow_down > 0.0:
            raise RepositoryError(f"state must be one of {', '.join(STATES)}, slow_down above 0")
        target = self.state_directory / f"{device}.control.json"
        draft = target.with_suffix(".tmp")
        draft.write_text(json.dumps({"slow_down": slow_down, "state": state}), encoding="utf-8")
        draft.replace(target)


def write_paced_repository(
    directory: Path, fleet: PacedFleet, *, keeps_same: bool = False
) -> PacedRepository:
    """Writes a paced fleet's repositories under `directory`, replacing an earlier one there.

    Models are named `<device>_<tier>`, for example `gpu0_small`.

    Args:
        directory: Where to.
        fleet: The fleet.
        keeps_same: True leaves one as it is that would not become another: a Triton may serve it,
            by the clocks of its devices.

    Raises:
        RepositoryError: A field of the fleet is out of range, or the directory holds other files.
    """
    template = read_model_config(models_root() / "paced" / "config.pbtxt")
    profile = _check_fleet(fleet, int(template.parameters["tiercel_slot_count"].string_value))
    costs = profile.tiers
    fingerprint = _fingerprint(directory, fleet)
    is_kept = keeps_same and is_written(directory, fingerprint)
    state_directory = PacedRepository.at(directory).state_directory
    if not is_kept:
        clear(directory)
        state_directory.mkdir(parents=True)
    placements = _place(fleet)
    if fleet.servers == "one":
        groups = [("triton-0", placements)]
    else:
        groups = [(f"triton-{index}", (place,)) for index, place in enumerate(placements)]
    servers = []
    for name, devices in groups:
        path = directory / name
        for placement in () if is_kept else devices:
            for slot, (tier, model) in enumerate(placement.models.items()):
                parameters = {
                    "tiercel_kind": "paced",
                    "tiercel_tier": tier,
                    "tiercel_device": placement.device,
                    "tiercel_profile": profile.name,
                    "tiercel_profile_source": profile.source,
                    "tiercel_time_scale": repr(fleet.time_scale),
                    # Plain letters: the interpreter in Triton may know ASCII only.
                    "tiercel_state_directory": quote(str(state_directory.absolute())),
                    "tiercel_slot": str(slot),
                    "tiercel_output_tokens_mean": repr(fleet.output_tokens_mean),
                    "tiercel_output_tokens_variation": repr(fleet.output_tokens_variation),
                    "tiercel_max_queue": str(fleet.max_queue_count),
                    "tiercel_max_batch": str(costs[tier].max_batch),
                    "tiercel_max_prompt_tokens_per_step": str(
                        costs[tier].max_prompt_tokens_per_step
                    ),
                }
                _write_paced_model(path / model, template, parameters, fleet.profile)
        servers.append(ServerRepository(name=name, path=path, devices=devices))
    if not is_kept:
        note_written(directory, fingerprint)
    return PacedRepository(servers=tuple(servers), state_directory=state_directory)


def _sources(profile: Path) -> dict[str, Path]:
    """Returns the files of every model's version, by name."""
    root, law = models_root(), Path(iteration_spread.__file__)
    return {
        "model.py": root / "paced" / "1" / "model.py",
        "profile.toml": profile,
        **{name: root / "common" / name for name in _SHARED_MODULES},
        law.name: law,  # what the simulator draws by, too
    }


def _fingerprint(directory: Path, fleet: PacedFleet) -> str:
    """Returns a digest of all that a repository is made from."""
    template = models_root() / "paced" / "config.pbtxt"
    found = hashlib.sha256(repr((directory.absolute(), fleet)).encode())
    for source in (Path(__file__), template, *_sources(fleet.profile).values()):
        found.update(hashlib.sha256(source.read_bytes()).digest())
    return found.hexdigest()


def _check_fleet(fleet: PacedFleet, most_tiers: int) -> LatencyProfile:
    """Checks every field, all problems in one error; returns the profile."""
    try:
        profile = parse_profile(read_text(fleet.profile), str(fleet.profile))
    except (OSError, UnicodeDecodeError, InvalidFileError) as error:
        raise RepositoryError(f"profile {fleet.profile}: {error}") from error
    problems = [
        f"tiers: {tier!r} is not in the profile, which has {', '.join(profile.tiers)}"
        for tier in fleet.tiers
        if tier not in profile.tiers
    ]
    if not fleet.tiers or len(set(fleet.tiers)) != len(fleet.tiers):
        problems.append("tiers: needs at least one, each once")
    if len(fleet.tiers) > most_tiers:
        problems.append(f"tiers: at most {most_tiers} share a device")
    for field, value, lowest in (
        ("device_count", fleet.device_count, 1),
        ("max_queue_count", fleet.max_queue_count, 1),
        ("output_tokens_mean", fleet.output_tokens_mean, 0),
        ("output_tokens_variation", fleet.output_tokens_variation, 0),
    ):
        if not value >= lowest:
            problems.append(f"{field}: must be at least {lowest} (got {value})")
    if not 0.0 < fleet.time_scale < float("inf"):
        problems.append(f"time_scale: must be above 0 (got {fleet.time_scale})")
    if problems:
        raise RepositoryError("; ".join(problems))
    return profile


def _place(fleet: PacedFleet) -> tuple[DevicePlacement, ...]:
    """Names devices and models."""
    if fleet.sharing == "shared":
        tiers_of_device = [fleet.tiers] * fleet.device_count
    else:
        tiers_of_device = [(tier,) for tier in fleet.tiers for _ in range(fleet.device_count)]
    return tuple(
        DevicePlacement(device=f"gpu{index}", models={tier: f"gpu{index}_{tier}" for tier in tiers})
        for index, tiers in enumerate(tiers_of_device)
    )


def _write_paced_model(
    directory: Path, template: Any, parameters: Mapping[str, str], profile: Path
) -> None:
    """Writes one model directory, named like the model."""
    config = type(template)()
    config.CopyFrom(template)
    config.name = directory.name
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    version = directory / "1"
    version.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    for name, source in _sources(profile).items():
        shutil.copy2(source, version / name)
