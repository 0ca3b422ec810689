"""``tiercel up``: the whole mesh on this machine, in one command."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
from typing import Annotated, Any

import pydantic
import typer

from router.documents import parse_toml
from router.types import InvalidFileError
from services.cli.files import shipped_file
from services.cli.output import console, note, table
from services.common.files import read_text
from services.common.mesh_settings import TaskSettings
from services.local import reference
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import InputError
from services.local.fleets import PacedFleetOptions, ReferenceFleet
from services.local.manifest import DEFAULT_NAME, Manifest, run_folder
from services.local.run import run_owning_children
from trainer.shipped import PROFILES, QUALITY, shipped

PACED_TASK_DEADLINE_S = 0.4
PACED_OUTPUT_TOKENS = 8


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up")(up)


def up(
    name: Annotated[str, typer.Option(help="Name of the mesh.")] = DEFAULT_NAME,
    routers: Annotated[int, typer.Option(min=1, max=16, help="Router processes.")] = 1,
    paced: Annotated[
        str, typer.Option(help="Serve paced tiers timed by this latency profile (file or name).")
    ] = "",
    devices: Annotated[int, typer.Option(min=1, max=64, help="Paced devices.")] = 1,
    time_scale: Annotated[float, typer.Option(help="Factor on every time of paced tiers.")] = 1.0,
    profile: Annotated[
        pathlib.Path | None, typer.Option(help="Latency profile the services start with.")
    ] = None,
    quality: Annotated[
        pathlib.Path | None, typer.Option(help="Quality table the services start with.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Policy the routers start with.")] = "price",
    trainer: Annotated[bool, typer.Option(help="Start a trainer.")] = True,
    fresh: Annotated[bool, typer.Option(help="Forget an earlier mesh of this name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print mesh.json once ready.")] = False,
) -> None:
    """Start Redis, Triton, load monitor, trainer and router here; Ctrl-C stops them all."""
    run_folder(name)
    try:
        if paced:
            options = _paced_options(name, paced, devices, time_scale, quality)
        else:
            options = _reference_options(name, profile, quality)
    except pydantic.ValidationError as error:
        found = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        raise InputError("; ".join(found)) from None
    options = dataclasses.replace(
        options, router_count=routers, policy=policy, trainer=trainer, fresh=fresh
    )
    mesh = EmbeddedMesh(options, say=note)
    raise typer.Exit(run_owning_children(_serve(mesh, as_json), note))


async def _serve(mesh: EmbeddedMesh, as_json: bool) -> int:
    async with mesh:
        note("starting Redis and Triton")
        await mesh.start_backends()
        note("starting load monitor, trainer and router")
        await mesh.start_services()
        _announce(mesh.manifest(), as_json)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 0
    return 0


def _announce(manifest: Manifest, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(manifest), indent=2), flush=True)
        return
    rows = [("router", ", ".join(manifest.routers))]
    rows += [(name.replace("_", " "), address) for name, address in manifest.addresses.items()]
    rows += [(f"{name} /metrics", address) for name, address in manifest.metrics.items()]
    console().print(table(f"mesh {manifest.name!r} ({manifest.kind})", ("part", "address"), rows))
    suffix = "" if manifest.name == DEFAULT_NAME else f" --mesh {manifest.name}"
    note(f"ready. Next: tiercel generate 'rev:tiercel='{suffix}   Ctrl-C stops everything.")


def _reference_options(
    name: str, profile: pathlib.Path | None, quality: pathlib.Path | None
) -> MeshOptions:
    return MeshOptions(
        name=name,
        fleet=ReferenceFleet(),
        profile=_existing(profile or reference.shipped_profile(), "--profile"),
        quality=_existing(quality or reference.shipped_quality(), "--quality"),
        tasks=reference.task_entries(),
    )


def _paced_options(
    name: str, paced: str, devices: int, time_scale: float, quality: pathlib.Path | None
) -> MeshOptions:
    if not time_scale > 0:
        raise InputError(f"--time-scale: must be above 0, got {time_scale:g}")
    profile = shipped_file(PROFILES, paced, "--paced")
    tiers = _tiers_of(profile)
    table_path = _existing(quality or shipped(QUALITY, "opt.toml"), "--quality")
    tasks = tuple(
        TaskSettings(
            name=task,
            default_deadline_s=PACED_TASK_DEADLINE_S * time_scale,
            default_max_output_tokens=PACED_OUTPUT_TOKENS * 2,
            expected_output_tokens=PACED_OUTPUT_TOKENS,
        )
        for task in _tasks_of(table_path)
    )
    return MeshOptions(
        name=name,
        fleet=PacedFleetOptions(profile, tiers, devices, time_scale),
        profile=profile,
        quality=table_path,
        tasks=tasks,
    )


def _existing(path: pathlib.Path, option: str) -> pathlib.Path:
    if not path.is_file():
        raise InputError(f"{option}: no file {path}")
    return path


def _tiers_of(profile: pathlib.Path) -> tuple[str, ...]:
    """Tiers of a profile, fastest (lowest quality) first."""
    tiers = _read(profile).get("tiers", {})
    if not isinstance(tiers, dict) or not tiers:
        raise InputError(f"{profile}: has no [tiers.NAME] table")
    return tuple(sorted(tiers, key=lambda tier: float(tiers[tier].get("step_s", 0.0))))


def _tasks_of(quality: pathlib.Path) -> tuple[str, ...]:
    tasks = _read(quality).get("quality", {})
    if not isinstance(tasks, dict) or not tasks:
        raise InputError(f"{quality}: has no [quality.TASK] table")
    return tuple(tasks)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path), str(path))
    except (OSError, UnicodeDecodeError, InvalidFileError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
