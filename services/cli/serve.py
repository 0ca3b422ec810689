"""``tiercel serve``: one service of a mesh, by a settings file."""

from __future__ import annotations

import os
import runpy
import sys

import typer

from services.local.manifest import CONFIG_VARIABLE

SERVICES = {
    "router": ("router_inference", "Answer requests: the only service a mesh cannot do without."),
    "monitor": ("load_monitor", "Give several routers one picture of load and health."),
    "openai-door": ("openai_door", "Take requests of OpenAI clients over HTTP, for the routers."),
    "trainer": ("trainer", "Keep the registry of policies, train them and switch them."),
}
"""Name of each service here to its package, and what it is for."""
# Everything behind the name is the service's own: `tiercel serve router --help` is its help.
_PASSED_ON = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "help_option_names": [],
}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    commands = typer.Typer(
        name="serve",
        help="Run one service until Ctrl-C; settings by --config FILE.",
        no_args_is_help=True,
    )
    for name, (_, text) in SERVICES.items():
        commands.command(name, help=text, context_settings=_PASSED_ON)(serve)
    app.add_typer(commands)


def serve(context: typer.Context) -> None:
    """Becomes the service; its exit code is the command's."""
    package, _ = SERVICES[str(context.info_name)]
    named = os.environ.get(CONFIG_VARIABLE)
    # The same file for every command; what the command line says comes later and wins.
    sys.argv = [context.command_path, *(["--config", named] if named else []), *context.args]
    runpy.run_module(f"services.{package}", run_name="__main__")
