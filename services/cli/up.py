"""``tiercel up``: the whole mesh on this machine, in one command."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Annotated

import typer

from router.policies.table import known_policies
from services.cli.files import shipped_file
from services.cli.output import console, note, table
from services.cli.policy_names import check_policy
from services.cli.progress import waiting
from services.common.mesh_settings import MeshSettings, load_mesh_files
from services.common.settings import SettingsError
from services.local import reference
from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.envoy import envoy_program
from services.local.errors import InputError
from services.local.fleets import ReferenceFleet
from services.local.learned import start_policy
from services.local.manifest import DEFAULT_NAME, run_folder
from services.local.paced_mesh import paced_options
from services.local.run import run_owning_children
from trainer.shipped import PROFILES, QUALITY


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
    devices: Annotated[
        int | None, typer.Option(min=1, max=64, help="Paced devices [default: 1].")
    ] = None,
    time_scale: Annotated[
        float | None, typer.Option(help="Factor on every time of paced tiers [default: 1].")
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            help="Latency profile the services start with: a file or a shipped name "
            "[default: the tiers']; not with --paced."
        ),
    ] = "",
    quality: Annotated[
        str,
        typer.Option(
            help="Quality table the services start with: a file or a shipped name "
            "[default: the tiers']."
        ),
    ] = "",
    policy: Annotated[
        str,
        typer.Option(
            help="Policy the routers start with [default: dqn where a snapshot was trained for the "
            "profile and tiers, else price]."
        ),
    ] = "",
    trainer: Annotated[bool, typer.Option(help="Start a trainer.")] = True,
    openai: Annotated[
        bool, typer.Option("--openai", help="Start an OpenAI-shaped HTTP door too.")
    ] = False,
    envoy: Annotated[
        bool, typer.Option("--envoy", help="Start an Envoy that asks the routers too.")
    ] = False,
    fresh: Annotated[bool, typer.Option(help="Forget an earlier mesh of this name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print mesh.json once ready.")] = False,
) -> None:
    """Start Redis, Triton, load monitor, trainer and router here; Ctrl-C stops them all."""
    _check_paced(bool(paced), devices=devices, time_scale=time_scale, profile=profile)
    run_folder(name)
    if paced:
        options = paced_options(
            name,
            shipped_file(PROFILES, paced, "--paced"),
            quality=shipped_file(QUALITY, quality or "opt", "--quality"),
            device_count=devices or 1,
            time_scale=1.0 if time_scale is None else time_scale,
        )
    else:
        options = MeshOptions(
            name=name,
            fleet=ReferenceFleet(),
            profile=shipped_file(PROFILES, profile or "reference", "--profile"),
            quality=shipped_file(QUALITY, quality or "reference", "--quality"),
            tasks=reference.task_entries(),
        )
    _check_files(options)
    start = start_policy(options.profile, options.fleet.tiers, policy)
    snapshot = {} if start.snapshot is None else {"policy_snapshot": str(start.snapshot.absolute())}
    traces = str((run_folder(name) / "traces").absolute())
    options = dataclasses.replace(
        options,
        router_count=routers,
        policy=start.name,
        trainer=trainer,
        openai_door=openai,
        envoy=envoy,
        fresh=fresh,
        sections={
            "router_inference": {"workers": workers, "trace_folder": traces, **snapshot},
            # The reference tiers understand a task's own words and nothing around them.
            "openai_door": {"chat_template": "plain" if paced else "bare", "trace_folder": traces},
        },
    )
    check_policy("--policy", start.name, known_policies(options.fleet.tiers))
    if envoy:
        envoy_program()
    mesh = EmbeddedMesh(options, say=note)
    note(f"policy {start.name}{start.reason and ': '}{start.reason}")
    raise typer.Exit(run_owning_children(_serve(mesh, as_json), note))


def _check_paced(paced: bool, **options: object) -> None:
    """Refuses options that would do nothing: nobody shall believe that he has four devices."""
    of_paced = {"devices", "time_scale"}
    for name, value in options.items():
        if value not in (None, "") and (name in of_paced) is not paced:
            word = "only with" if name in of_paced else "not with"
            raise InputError(f"--{name.replace('_', '-')}: {word} --paced")


def _check_files(options: MeshOptions) -> None:
    """Reads what the services will read: a mistake is no reason to start and end a mesh.

    Raises:
        InputError: Profile or quality table cannot be read, or lacks a tier or a task.
    """
    read = MeshSettings.model_construct(
        tiers=options.fleet.tiers,
        profile=options.profile,
        quality=options.quality,
        tasks=options.tasks,
        endpoints=(),
    )
    try:
        load_mesh_files(read)
    except SettingsError as error:
        raise InputError("; ".join(error.problems)) from None


async def _serve(mesh: EmbeddedMesh, as_json: bool) -> int:
    async with mesh:
        with waiting("starting Redis and Triton"):
            await mesh.start_backends()
        with waiting(
            "starting load monitor, trainer and router (compiles once, about half a minute)"
        ):
            await mesh.start_services()
        _announce(mesh, as_json)
        await asyncio.Event().wait()
    return 0


def _announce(mesh: EmbeddedMesh, as_json: bool) -> None:
    manifest = mesh.manifest()
    if as_json:
        print(json.dumps(dataclasses.asdict(manifest), indent=2), flush=True)
        return
    rows = [("router", ", ".join(manifest.routers))]
    rows += [(name.replace("_", " "), address) for name, address in manifest.addresses.items()]
    rows += [(f"{name} /metrics", address) for name, address in manifest.metrics.items()]
    console().print(table(f"mesh {manifest.name!r} ({manifest.kind})", ("part", "address"), rows))
    door = manifest.addresses.get("openai_door")
    if door is not None:
        note(f"OpenAI's clients: base_url http://{door}/v1   For example:")
        note(curl_line(door, mesh.options))
    gateway = manifest.addresses.get("envoy")
    if gateway is not None:
        note(f"Triton's clients by HTTP: http://{gateway}/v2/models/tiercel   For example:")
        note(generate_line(gateway, mesh.options))
    if "load_monitor" in manifest.metrics:
        note(f"look at it: http://{manifest.metrics['load_monitor']}/   or: tiercel top")
    suffix = "" if manifest.name == DEFAULT_NAME else f" --mesh {manifest.name}"
    note(f"ready. Next: {next_line(mesh.options)}{suffix}   Ctrl-C stops everything.")


def _known_question(options: MeshOptions) -> tuple[str, str]:
    """Returns a task and a text that the tiers know."""
    if options.fleet.kind == "paced":  # which know nothing, and take their time for any text
        return options.tasks[0].name, "Hello"
    return "sort", "sort:hgcafde="


def next_line(options: MeshOptions) -> str:
    """Returns a command that asks the mesh something that its tiers know."""
    if options.fleet.kind == "paced":
        task, text = _known_question(options)
        return f"tiercel generate {text} --task {task}"
    return "tiercel generate 'rev:tiercel='"


def generate_line(gateway: str, options: MeshOptions) -> str:
    """Returns a command that asks through Envoy, as Triton is asked by HTTP."""
    task, text = _known_question(options)
    body = {"text_input": text, "stream": True, "sampling_parameters": '{"max_tokens": 8}'}
    return (
        f"curl http://{gateway}/v2/models/tiercel/generate_stream -H 'x-tiercel-task: {task}'"
        f" -d '{json.dumps(body)}'"
    )


def curl_line(door: str, options: MeshOptions) -> str:
    """Returns a command that asks the door something that the tiers know."""
    task, text = _known_question(options)
    body = {"model": f"tiercel/{task}", "messages": [{"role": "user", "content": text}]}
    return (
        f"curl http://{door}/v1/chat/completions -H 'content-type: application/json'"
        f" -d '{json.dumps(body)}'"
    )
