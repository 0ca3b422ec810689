"""Which live tiers `tiercel calibrate` and `tiercel quality` measure, and what the mesh says."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from services.calibrate.tiers import LiveTier, tiers_of_monitor, tiers_of_settings
from services.cli.output import note
from services.common.access.plain_text import Outgoing
from services.common.mesh_settings import MeshSettings
from services.common.openai.keys import read_api_keys
from services.common.settings import SettingsError, SettingsModel, load_settings
from services.local.errors import CommandError, InputError
from services.local.own_tls import tls_of, tls_of_environment
from services.local.target import Target
from services.router_inference.settings import Settings


class _MeshFile(SettingsModel):
    """The part of a settings file that every service reads."""

    mesh: MeshSettings


def read_mesh(path: pathlib.Path) -> MeshSettings:
    """Reads the `[mesh]` section of a settings file and of the variables that change it.

    Raises:
        InputError: It holds mistakes; all of them are named.
    """
    try:
        return load_settings(_MeshFile, path=path, environ=os.environ).mesh
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None


def mesh_of(target: Target) -> MeshSettings | None:
    """Returns the settings of a mesh; None where they are not at hand."""
    return read_mesh(pathlib.Path(target.config)) if target.config else None


def live_tiers(target: Target, mesh: MeshSettings | None) -> list[LiveTier]:
    """Returns the tiers to measure: of its load monitor, and of the endpoints of its settings.

    They are called as routers call them: with the mesh's certificates, and in plain text on other
    machines only where the settings give leave.

    Raises:
        CommandError: There is none.
        InputError: A key that an endpoint wants is missing, a certificate is wrong, or an endpoint
            may not be called in plain text.
    """
    if mesh is None:
        tls = tls_of_environment(os.environ)
        tiers = tiers_of_monitor(target.need("load_monitor"))
        return [dataclasses.replace(each, tls=tls) for each in tiers]
    tiers = _tiers(target, mesh)
    try:
        keys = read_api_keys(mesh, os.environ)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None
    outgoing = Outgoing("router_inference", mesh, _has_leave(target))
    for tier in tiers:
        if outgoing.is_readable(tier.address):
            raise InputError(
                f"endpoint {tier.endpoint}: {tier.address} is on another machine, which needs"
                f" {outgoing.needed}; {outgoing.instead} sends prompts and keys in plain text"
            )
    tls = tls_of(mesh.tls)
    tls = tls and tls.for_triton
    return [
        dataclasses.replace(each, api_key=keys.get(each.address, ""), tls=tls) for each in tiers
    ]


def _tiers(target: Target, mesh: MeshSettings) -> list[LiveTier]:
    """Returns the tiers of the load monitor, and those that the settings alone name: new ones.

    A monitor that does not answer is no reason not to measure what the settings name.
    """
    if not target.load_monitor:
        return tiers_of_settings(mesh)
    if not mesh.endpoints:
        return tiers_of_monitor(target.load_monitor)
    named = tiers_of_settings(mesh)
    try:
        told = tiers_of_monitor(target.load_monitor)
    except InputError:  # a certificate that cannot be used, for instance
        raise
    except CommandError as error:
        note(f"{error}; measuring the endpoints of the settings file")
        return named
    known = {each.tier for each in told}
    return [*told, *(each for each in named if each.tier not in known)]


def _has_leave(target: Target) -> bool:
    """Returns whether routers of these settings may call endpoints in plain text anywhere."""
    try:
        settings = load_settings(Settings, path=pathlib.Path(target.config), environ=os.environ)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None
    return settings.router_inference.insecure_open_to_network


def limits_of(mesh: MeshSettings | None) -> dict[str, int]:
    """Returns the limit of output tokens of every task; nothing without settings."""
    tasks = mesh.tasks if mesh is not None else ()
    return {task.name: task.default_max_output_tokens for task in tasks}
