"""``tiercel up``: the whole mesh on this machine, in one command."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pathlib
from typing import Annotated

import pydantic
import typer

from services.cli.files import shipped_file
from services.cli.output import console, note, table
from services.local import reference
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import InputError
from services.local.fleets import ReferenceFleet
from services.local.manifest import DEFAULT_NAME, Manifest, run_folder
from services.local.paced_mesh import paced_options
from services.local.run import run_owning_children
from trainer.shipped import PROFILES, QUALITY, shipped


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up")(up)


def up(
    name: Annotated[str, typer.Option(help="Name of the mesh.")] = DEFAULT_NAME,
    routers: Annotated[int, typer.Option(min=1, max=16, help="Router processes.")] = 1,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Worker processes of each router.")
    ] = 1,
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
            options = paced_options(
                name,
                shipped_file(PROFILES, paced, "--paced"),
                quality=_existing(quality or shipped(QUALITY, "opt.toml"), "--quality"),
                device_count=devices,
                time_scale=time_scale,
            )
        else:
            options = _reference_options(name, profile, quality)
    except pydantic.ValidationError as error:
        found = [f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()]
        raise InputError("; ".join(found)) from None
    options = dataclasses.replace(
        options,
        router_count=routers,
        policy=policy,
        trainer=trainer,
        fresh=fresh,
        sections={"router_inference": {"workers": workers}},
    )
    mesh = EmbeddedMesh(options, say=note)
    raise typer.Exit(run_owning_children(_serve(mesh, as_json), note))


async def _serve(mesh: EmbeddedMesh, as_json: bool) -> int:
    async with mesh:
        note("starting Redis and Triton")
        await mesh.start_backends()
        note("starting load monitor, trainer and router (compiled once, in about half a minute)")
        await mesh.start_services()
        _announce(mesh.manifest(), as_json)
        await asyncio.Event().wait()
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


def _existing(path: pathlib.Path, option: str) -> pathlib.Path:
    if not path.is_file():
        raise InputError(f"{option}: no file {path}")
    return path
