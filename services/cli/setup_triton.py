"""``tiercel setup-triton``: the environment of Triton, where there is no checkout to make it."""

from __future__ import annotations

import typer

from services.cli.output import note
from services.local.errors import CommandError
from services.local.triton.environment import (
    default_environment,
    make_environment,
    prepare_environment,
)
from services.local.triton.errors import TritonEnvironmentError


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("setup-triton")(setup_triton)


def setup_triton() -> None:
    """Install Triton Inference Server into an environment of its own, for `tiercel up`."""
    path = default_environment()
    note(f"making {path}: Triton and PyTorch are fetched, some gigabytes")
    try:
        make_environment(path)
        prepare_environment(path)
    except TritonEnvironmentError as error:
        raise CommandError(str(error)) from None
    note("ready. Next: tiercel up")
