"""Options that several commands have, and how numbers of any option are checked."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from router.types import Priority
from services.local.errors import InputError

CLASSES = tuple(each.label for each in Priority)
"""Names of the priority classes."""
MeshOption = Annotated[
    str,
    typer.Option("--mesh", help="Name of a mesh started here [default: the one that runs]."),
]
ConfigOption = Annotated[
    pathlib.Path | None,
    typer.Option("--config", help="Settings file of a mesh started by hand."),
]
RouterOption = Annotated[
    list[str] | None,
    typer.Option("--router", help="Address of a router, host:port; may be given several times."),
]
MonitorOption = Annotated[str, typer.Option("--monitor", help="Address of the load monitor.")]
TrainerOption = Annotated[str, typer.Option("--trainer", help="Address of the trainer.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def check_number(
    option: str,
    value: float | None,
    low: float,
    high: float,
    unit: str = "",
    *,
    is_open: bool = False,
) -> None:
    """Refuses a number outside of its limits before anybody is asked anything.

    Args:
        option: The option that gave it.
        value: What was given; None is an option that was not.
        low: Least value; with ``is_open`` the value must be above it.
        high: Largest value.
        unit: Unit of the three, as the message has it.
        is_open: Leaves ``low`` itself out.

    Raises:
        InputError: It is outside; the text has option, limits and value.
    """
    if value is None or (low < value <= high if is_open else low <= value <= high):
        return
    limits = f"above {low:g} and at most {high:g}" if is_open else f"{low:g} to {high:g}"
    raise InputError(f"{option}: must be {' '.join(filter(None, (limits, unit)))}, got {value:g}")
