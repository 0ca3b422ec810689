"""The command line: its commands, and what an error looks like (one line, no traceback)."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import math
import os
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from router.folders import STATE_VARIABLE, state_folder
from router.messages import without_controls
from services.cli.files import read_bytes
from services.common.access.caller import (
    API_KEY_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    ROOTS_VARIABLE,
)
from services.local.errors import CommandError, InputError

COMMANDS = (
    "up",
    "init",
    "serve",
    "doctor",
    "demo",
    "generate",
    "status",
    "explain",
    "trace",
    "top",
    "report",
    "quality",
    "calibrate",
    "policy",
    "replay",
    "endpoint",
    "target",
    "load",
    "train",
    "evaluate",
    "bench",
    "certificates",
    "keys",
    "setup_triton",
)
"""Modules of this package with a ``register(app)`` each, in the order of the help text."""
_LOOKS: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}
INTERRUPTED_EXIT_CODE = 130
_SURROUNDINGS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
    errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG,
)  # fmt: skip
"""Errors of a disk that is full, read-only or not for us, and of paths that cannot be: no bugs."""
UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command line it cannot parse; it does not export the class itself."""


class _Commands(TyperGroup):
    """Imports a command's module once the command is asked for: a router starts within a second."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Returns the names of all commands, in the order of the help text."""
        return [name.replace("_", "-") for name in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Returns a command, None if there is none of the name."""
        module = cmd_name.replace("-", "_")
        if module in COMMANDS and cmd_name not in self.commands:
            alone = typer.Typer(**_LOOKS)
            alone.callback()(lambda: None)  # with one, a single command stays a group's command
            importlib.import_module(f"services.cli.{module}").register(alone)
            group = typer.main.get_group(alone)
            _refuse_nan(group)
            self.commands = {**self.commands, **group.commands}
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns what the arguments name; a name with a slip gets a suggestion."""
        known = self.list_commands(ctx)
        if args and args[0] not in known:
            self.commands = {name: self.get_command(ctx, name) for name in known}
        return super().resolve_command(ctx, args)


def _refuse_nan(command: Any) -> None:
    """Has every option of a command, or of a group's, refuse NaN, which no limit keeps out."""
    for each in getattr(command, "commands", {}).values():
        _refuse_nan(each)
    for parameter in command.params:
        parameter.callback = parameter.callback or _checked


def _checked(ctx: Any, parameter: Any, value: Any) -> Any:
    """Returns the value of an option; raises BadParameter if it is NaN, or one of several is."""
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, float) and math.isnan(each):
            raise typer.BadParameter("must be a number, got nan", ctx=ctx, param=parameter)
    return value


def make_app() -> typer.Typer:
    """Builds the command; its parts are imported as they are asked for."""
    app = typer.Typer(
        name="tiercel",
        help="Learned best-effort serving mesh for LLMs.",
        cls=_Commands,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **_LOOKS,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool,
            typer.Option("--version", is_eager=True, callback=_version, help="Say which one."),
        ] = False,
        root_certificates: Annotated[
            str, typer.Option(envvar=ROOTS_VARIABLE, help="PEM file of the mesh's roots: use TLS.")
        ] = "",
        certificate: Annotated[
            str, typer.Option(envvar=CERTIFICATE_VARIABLE, help="PEM file of your certificate.")
        ] = "",
        key: Annotated[str, typer.Option(envvar=KEY_VARIABLE, help="PEM file of its key.")] = "",
        api_key_file: Annotated[
            str, typer.Option(help=f"File of your API key [default: ${API_KEY_VARIABLE}].")
        ] = "",
        state: Annotated[
            str,
            typer.Option(
                envvar=STATE_VARIABLE,
                help="Folder for runs, measurements, policies and reports "
                "[default: build in a checkout, else ~/.local/state/tiercel].",
            ),
        ] = "",
    ) -> None:
        """Learned best-effort serving mesh for LLMs: `tiercel up`, then `tiercel generate`."""
        # Commands and the processes they start read the environment.
        given = {ROOTS_VARIABLE: root_certificates, CERTIFICATE_VARIABLE: certificate}
        given |= {KEY_VARIABLE: key, STATE_VARIABLE: state}
        if api_key_file:
            try:
                key_bytes = read_bytes(pathlib.Path(api_key_file))
            except InputError as error:
                raise InputError(f"--api-key-file: {error}") from None
            key_text = key_bytes.decode("ascii", "replace").strip()
            if not key_text.isascii() or not key_text.isprintable():
                raise InputError(f"--api-key-file: {api_key_file}: is no line of printable ASCII")
            given[API_KEY_VARIABLE] = key_text
        os.environ.update({name: value for name, value in given.items() if value})

    return app


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tiercel {importlib.metadata.version('tiercel')}")
        raise typer.Exit


def run(arguments: Sequence[str]) -> int:
    """Runs the command line.

    Returns:
        0 on success, 1 when something failed, 2 for bad input, 130 when interrupted.
    """
    command = typer.main.get_command(make_app())
    try:
        result = command.main(
            args=list(arguments) or ["--help"], prog_name="tiercel", standalone_mode=False
        )
    except CommandError as error:
        return _complain(str(error), error.exit_code)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # a group alone is a question, no mistake
            print(error.format_message())
            return 0
        message = error.format_message().replace("\n", " ")
        where = getattr(error.ctx, "command_path", "tiercel")
        return _complain(f"{message.rstrip('.')} (see: {where} --help)", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        # The reader has gone, for instance `| head`; the interpreter must not flush into it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UnicodeEncodeError as error:  # the command line may hold bytes that are no text
        return _complain(f"{error.object!r}: is not valid UTF-8", 2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _SURROUNDINGS:
            return _complain(f"{error.filename or 'a file'}: {error.strerror}", 1)
        if isinstance(error, FileNotFoundError) and error.filename is None:
            # No file was named: it is the current folder, or there is none for temporary files.
            what = "the current folder is gone" if _is_nowhere() else error.strerror
            return _complain(str(what), 1)
        if isinstance(error, FileNotFoundError) and _is_state(str(error.filename)):
            return _complain(f"{error.filename}: no folder can be made there", 1)
        if missing := _missing(error):
            return _complain(missing, 1)
        return _complain(f"internal error: {_one_line(error)} (details: {_keep()})", 1)
    return result if isinstance(result, int) else 0


def _is_nowhere() -> bool:
    try:
        pathlib.Path.cwd()
    except OSError:
        return True
    return False


def _is_state(name: str) -> bool:
    """Returns whether a path is the state's folder, or one that it lies in."""
    state = state_folder()
    return pathlib.Path(name) in (state, *state.parents)


def _missing(error: Exception) -> str:
    """Says which extra brings a package that is not installed; empty if it is none of ours."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    name = (error.name or "").partition(".")[0]
    extras = [
        found[1]
        for each in importlib.metadata.requires("tiercel") or ()
        if re.split(r"[^\w-]", each, maxsplit=1)[0].replace("-", "_") == name
        and (found := re.search(r"extra == ['\"]([^'\"]+)", each))
    ]
    if not extras:
        return ""
    # Several have numba; what a command needs else comes with the trainer's.
    extra = "trainer" if "trainer" in extras else extras[0]
    return f"the package {name} is missing: pip install 'tiercel[{extra}]'"


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _keep() -> str:
    """Keeps the traceback of a bug in a file: a user needs one line, a report needs all."""
    said = traceback.format_exc()
    try:
        # A name that others can tell beforehand could be a link of theirs to any file.
        with tempfile.NamedTemporaryFile(
            "w", prefix="tiercel-error-", suffix=".log", delete=False,
            encoding="utf-8", errors="backslashreplace",
        ) as file:  # fmt: skip
            file.write(said)
    except OSError as error:  # there may be no folder at all that can be written to
        return f"not kept: {error}"
    return file.name


def _complain(message: str, exit_code: int) -> int:
    print(f"tiercel: {without_controls(message)}", file=sys.stderr)
    return exit_code
