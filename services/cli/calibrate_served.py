"""``tiercel calibrate --from-production``: refits a profile while the mesh serves."""

from __future__ import annotations

import asyncio
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from router.folders import state_folder
from router.profile import format_profile
from services.calibrate.production import Refit, devices_of, farthest, refit
from services.cli.files import write_text
from services.cli.output import console, note, print_json, table
from services.cli.spans import DAY_S, span_s
from services.common.clock import SystemClock
from services.common.convert import endpoint_of_message, endpoint_of_settings
from services.common.mesh_settings import (
    MeshFiles,
    MeshSettings,
    endpoint_profile_names,
    load_mesh_files,
)
from services.common.settings import SettingsError
from services.common.state.connect import connect_stores
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb

LONGEST_S = 2 * DAY_S
_TIMEOUT_S = 5.0


def refit_from_production(
    target: Target,
    mesh: MeshSettings | None,
    *,
    since: str,
    keeps_others: bool,
    most_error: float,
    name: str,
    out: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Refits the mesh's profile and writes it.

    Args:
        target: The mesh.
        mesh: Its settings; None where they are not at hand.
        since: How far back requests are taken, as text; empty means an hour.
        keeps_others: Keeps the costs of tiers of which too little is known.
        most_error: Error above which there is no profile.
        name: Of the profile; empty keeps its name.
        out: File to write; None means that of the state folder.
        as_json: Prints JSON instead of tables.

    Raises:
        InputError: The settings are not at hand, or keep no experience.
        CommandError: Too little was served, nothing fits it, or the fit is off by too much.
    """
    if mesh is None:
        raise InputError("--from-production: needs the mesh's settings file: give --config")
    if not mesh.redis_url:
        raise InputError(
            "--from-production: mesh.redis_url is empty, so nobody keeps what was served; "
            "measure instead: tiercel calibrate"
        )
    over_s = span_s(since or "1h", "--since", LONGEST_S)
    try:
        files, own_profiles = load_mesh_files(mesh), endpoint_profile_names(mesh)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None
    specs = [endpoint_of_settings(entry) for entry in mesh.endpoints]
    if target.load_monitor:
        request = monitor_pb.GetSystemStateRequest()
        state = call("load monitor", target.load_monitor, "GetSystemState", request).state
        specs = [endpoint_of_message(each.endpoint) for each in state.endpoints]
    devices = devices_of(specs, own_profiles)
    if not devices:
        raise CommandError("no endpoint goes by the mesh's profile")
    found = asyncio.run(_refit(mesh, files, devices, over_s, name, keeps_others=keeps_others))
    if as_json:
        print_json(found.to_json())
    else:
        console().print(refit_table(found))
    for remark in found.remarks:
        note(remark)
    if refusals := found.refusals(most_error):
        said = "\n".join(refusals)
        raise CommandError(f"{said}\nno profile is written; accept it with --most-error")
    path = out or state_folder("profiles", "measured.toml")
    write_text(path, format_profile(found.profile))
    if not as_json:
        note(f"written: {path}")
        if path.resolve() != pathlib.Path(mesh.profile).resolve():
            note(f"to use it, copy it to {mesh.profile} and send SIGHUP to the services")
        else:
            note("to use it, send SIGHUP to the services")


async def _refit(
    mesh: MeshSettings,
    files: MeshFiles,
    devices: Mapping[str, str],
    over_s: float,
    name: str,
    *,
    keeps_others: bool,
) -> Refit:
    try:
        stores = connect_stores(mesh.redis_url, clock=SystemClock(), timeout_s=_TIMEOUT_S)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None
    now_s = time.time()
    try:
        return await refit(
            stores.experience,
            files.profile,
            devices,
            mesh.tiers,
            start_s=now_s - over_s,
            end_s=now_s,
            name=name,
            keeps_others=keeps_others,
        )
    finally:
        await stores.close()


def refit_table(found: Refit) -> Any:
    """The costs, before and now, and where each is farthest off."""
    rows = []
    for tier, costs in found.profile.tiers.items():
        before = found.before.tiers[tier]
        pairs = [
            (before.step_s, costs.step_s, 1e3, ".3f"),
            (before.per_sequence_s, costs.per_sequence_s, 1e3, ".3f"),
            (before.per_prompt_token_s, costs.per_prompt_token_s, 1e6, ".1f"),
            (before.overhead_s, costs.overhead_s, 1e3, ".2f"),
        ]
        rows.append(
            (
                tier,
                *(f"{old * by:{form}} > {new * by:{form}}" for old, new, by, form in pairs),
                farthest(found.misfits_before.get(tier, {})),
                farthest(found.misfits.get(tier, {})) if tier in found.fits else "kept",
                found.fits[tier].sample_count if tier in found.fits else 0,
            )
        )
    told = found.history
    title = (
        f"latency profile {found.profile.name}, before > now, from {told.whole_count} answers "
        f"served over {told.span_s / 60.0:.1f} minutes"
    )
    columns = ("tier", "step ms", "per sequence ms", "per prompt token us", "overhead ms")
    more = ("farthest off before", "farthest off now", "stretches")
    return table(title, (*columns, *more), rows)
