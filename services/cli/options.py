"""Options that several commands have."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

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
