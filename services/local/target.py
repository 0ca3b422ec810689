"""Which mesh is meant: a running one by name, or addresses given by hand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from services.common.addresses import parse_address
from services.local.errors import InputError
from services.local.manifest import DEFAULT_NAME, Manifest, find_mesh, running_names

MESH_VARIABLE = "TIERCEL_MESH"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where to call.

    Attributes:
        routers: Router addresses, at least one where a command needs one.
        load_monitor: Address of the load monitor; empty if unknown.
        trainer: Address of the trainer; empty if unknown.
        manifest: The running mesh; None if addresses were given by hand.
    """

    routers: tuple[str, ...]
    load_monitor: str
    trainer: str
    manifest: Manifest | None

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


def resolve(
    mesh: str = "",
    routers: Sequence[str] | None = None,
    load_monitor: str = "",
    trainer: str = "",
) -> Target:
    """Finds the mesh a command means.

    Args:
        mesh: Name; empty means $TIERCEL_MESH, else the only one that runs, else ``default``.
        routers: Addresses given by hand; with any address by hand no running mesh is looked for.
        load_monitor: Address given by hand.
        trainer: Address given by hand.

    Raises:
        InputError: An address is none, or several meshes run and none was named.
        CommandError: No such mesh runs.
    """
    by_hand = tuple(routers or ())
    for option, address in [
        *(("--router", each) for each in by_hand),
        ("--monitor", load_monitor),
        ("--trainer", trainer),
    ]:
        if address or option == "--router":
            _check(option, address)
    if by_hand or load_monitor or trainer:
        return Target(by_hand, load_monitor, trainer, None)
    manifest = find_mesh(mesh or os.environ.get(MESH_VARIABLE, "") or _only_running())
    addresses = manifest.addresses
    return Target(
        manifest.routers,
        addresses.get("load_monitor", ""),
        addresses.get("trainer", ""),
        manifest,
    )


def need_routers(target: Target) -> tuple[str, ...]:
    """Returns the router addresses; raises InputError if there is none."""
    if not target.routers:
        raise InputError("--router: give the address of at least one router")
    return target.routers


def _check(option: str, address: str) -> None:
    try:
        parse_address(address)
    except ValueError as error:
        raise InputError(f"{option}: {error}, got {address!r}") from None


def _only_running() -> str:
    names = running_names()
    if len(names) > 1:
        raise InputError(f"--mesh: several meshes run here ({', '.join(names)}); name one")
    return names[0] if names else DEFAULT_NAME
