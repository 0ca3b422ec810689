"""Which mesh a command means, the same for every command.

In this order: what the command line says (`--router`, `--monitor`, `--trainer`, and for the rest
`--config` or `--mesh`), what the environment says in variables of the same names, and the mesh of
`tiercel up` that runs here.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from services.common.addresses import HostPort, parse_address
from services.common.settings import SettingsError, load_settings
from services.local.errors import CommandError, InputError
from services.local.manifest import (
    CONFIG_VARIABLE,
    DEFAULT_NAME,
    Manifest,
    find_mesh,
    run_folder,
    running_names,
)
from services.router_inference.settings import Settings

MESH_VARIABLE = "TIERCEL_MESH"
PART_VARIABLES = {part: f"TIERCEL_{part.upper()}" for part in ("router", "monitor", "trainer")}
"""Addresses; several routers are separated by commas."""
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what to dial, not to listen on


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where to call.

    Attributes:
        routers: Router addresses, at least one where a command needs one.
        load_monitor: Address of the load monitor; empty if unknown.
        trainer: Address of the trainer; empty if unknown.
        manifest: The running mesh of `tiercel up`; None if it is another.
        config: Settings file of the mesh; empty if unknown.
    """

    routers: tuple[str, ...] = ()
    load_monitor: str = ""
    trainer: str = ""
    manifest: Manifest | None = None
    config: str = ""

    def need(self, part: str) -> str:
        """Returns the address of ``load_monitor`` or ``trainer``.

        Raises:
            InputError: It is not known.
        """
        address = self.load_monitor if part == "load_monitor" else self.trainer
        if not address:
            option = "--monitor" if part == "load_monitor" else "--trainer"
            raise InputError(f"{option}: this mesh has no {part.replace('_', ' ')}; give {option}")
        return address


@dataclasses.dataclass(frozen=True, slots=True)
class _Said:
    """What one place says: the command line, or the environment."""

    routers: tuple[str, ...]
    load_monitor: str
    trainer: str
    config: str
    mesh: str
    names: dict[str, str]

    def target(self) -> Target | None:
        """Returns the mesh that is meant; None if nothing is said."""
        for part, address in [
            *(("router", each) for each in self.routers),
            ("monitor", self.load_monitor),
            ("trainer", self.trainer),
        ]:
            if address or part == "router":
                _check(self.names[part], address)
        if self.config and self.mesh:
            raise InputError(f"{self.names['config']}, {self.names['mesh']}: give one of them")
        if not (self.routers or self.load_monitor or self.trainer or self.config or self.mesh):
            return None
        rest = Target()
        if self.config:
            rest = _of_settings(pathlib.Path(self.config), self.names["config"])
        elif self.mesh:
            rest = _of_manifest(find_mesh(self.mesh))
        return dataclasses.replace(
            rest,
            routers=self.routers or rest.routers,
            load_monitor=self.load_monitor or rest.load_monitor,
            trainer=self.trainer or rest.trainer,
        )


def resolve(
    mesh: str = "",
    routers: Sequence[str] | None = None,
    load_monitor: str = "",
    trainer: str = "",
    *,
    config: pathlib.Path | None = None,
) -> Target:
    """Finds the mesh a command means; the arguments are its options.

    Args:
        mesh: Name of a mesh of `tiercel up`.
        routers: Addresses; with any address no running mesh is looked for.
        load_monitor: Address.
        trainer: Address.
        config: Settings file of a mesh started by hand.

    Raises:
        InputError: An address or a settings file is none, or several meshes run and none was named.
        CommandError: No such mesh runs.
    """
    flags = {name: f"--{name}" for name in (*PART_VARIABLES, "config", "mesh")}
    said = _Said(tuple(routers or ()), load_monitor, trainer, str(config or ""), mesh, flags)
    return said.target() or _of_environment().target() or _of_manifest(find_mesh(_only_running()))


def need_routers(target: Target) -> tuple[str, ...]:
    """Returns the router addresses; raises InputError if there is none."""
    if not target.routers:
        raise InputError("--router: give the address of at least one router")
    return target.routers


def _of_environment() -> _Said:
    names = {**PART_VARIABLES, "config": CONFIG_VARIABLE, "mesh": MESH_VARIABLE}
    said = {name: os.environ.get(variable, "") for name, variable in names.items()}
    routers = tuple(each.strip() for each in said["router"].split(",") if each.strip())
    shown = {name: f"${variable}" for name, variable in names.items()}
    return _Said(routers, said["monitor"], said["trainer"], said["config"], said["mesh"], shown)


def _of_manifest(manifest: Manifest) -> Target:
    addresses = manifest.addresses
    return Target(
        manifest.routers,
        addresses.get("load_monitor", ""),
        addresses.get("trainer", ""),
        manifest,
        manifest.config,
    )


def _of_settings(path: pathlib.Path, option: str) -> Target:
    """Returns where a settings file, and the variables that change it, say the services are."""
    try:
        settings = load_settings(Settings, path=path, environ=os.environ)
    except SettingsError as error:
        raise InputError(f"{option}: {'; '.join(error.problems)}") from None
    listen = parse_address(settings.router_inference.listen, allow_port_zero=True)
    dialled = HostPort(_ANY_HOST.get(listen.host, listen.host), listen.port)
    return Target(
        (str(dialled),) if listen.port else (),
        settings.mesh.load_monitor_address,
        settings.mesh.trainer_address,
        config=str(path),
    )


def _check(option: str, address: str) -> None:
    try:
        parse_address(address)
    except ValueError as error:
        raise InputError(f"{option}: {error}, got {address!r}") from None


def _only_running() -> str:
    names = running_names()
    if len(names) > 1:
        raise InputError(f"--mesh: several meshes run here ({', '.join(names)}); name one")
    if names:
        return names[0]
    variables = ", ".join(f"${name}" for name in (*PART_VARIABLES.values(), CONFIG_VARIABLE))
    raise CommandError(
        "no mesh runs here. Looked for: --router, --monitor, --trainer, --config, --mesh; then "
        f"{variables}, ${MESH_VARIABLE}; then {run_folder(DEFAULT_NAME).parent}. "
        "Start one with: tiercel up, or tiercel serve router --config FILE"
    )
