"""What a Triton server's log says of its models and of its end."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from services.local.triton.errors import ModelLoadError, PortInUseError, TritonServerError

_LOADED = re.compile(r"successfully loaded '([^']+)'")
_FAILED = re.compile(r"failed to load '([^']+)'(?: version \d+)?: (.+)")
_PORT_TAKEN = re.compile(r"(Socket '[^']*' |[Aa]ddress )already in use")


def set_aside(path: Path) -> None:
    """Keeps the log of the server before, which may say why that one ended, as FILE.1."""
    if path.is_file():  # and no device
        with contextlib.suppress(OSError):
            path.replace(path.with_name(f"{path.name}.1"))


def loaded_models(path: Path) -> set[str]:
    """Returns the models that are loaded."""
    return {found[1] for line in _log_lines(path) if (found := _LOADED.search(line))}


def exit_reason(path: Path, code: int | None) -> str:
    """Returns why Triton is not running, one line.

    Args:
        path: Its log.
        code: Its exit code, for a log that does not say.
    """
    lines = _log_lines(path)
    for line in reversed(lines):
        if failed := _FAILED.search(line):
            return f"model {failed[1]} failed to load: {_tail(lines, failed[2])}"
    errors = [line for line in lines if line.startswith(("E", "error:"))]
    return errors[-1].split("] ", 1)[-1].strip('"') if errors else f"exit code {code}"


def start_error(path: Path, code: int | None) -> TritonServerError:
    """Names why a starting server ended, in one line; see `exit_reason`."""
    text = "\n".join(_log_lines(path))
    reason = f"{exit_reason(path, code)} (log: {path})"
    if _PORT_TAKEN.search(text):
        return PortInUseError(f"Triton could not listen: {reason}")
    if _FAILED.search(text):
        return ModelLoadError(reason)
    return TritonServerError(f"Triton ended while starting: {reason}")


def _log_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _tail(lines: list[str], reason: str) -> str:
    """Adds the last line of a Python traceback, which says more than Triton's first line."""
    causes = [line.strip() for line in lines if re.match(r"^\w*(Error|Exception)\b.*: ", line)]
    return f"{reason} ({causes[-1]})" if causes and causes[-1] not in reason else reason
