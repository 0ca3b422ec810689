"""Where what is made is kept: compiled code and Triton's backends, runs and results."""

from __future__ import annotations

import os
from pathlib import Path

STATE_VARIABLE = "TIERCEL_STATE"
"""Environment variable that names another folder for what is kept (`tiercel --state`)."""
_ROOT = Path(__file__).resolve().parent.parent


def checkout() -> Path | None:
    """Returns the root of the checkout this module lies in; None when it is installed."""
    return _ROOT if (_ROOT / "pyproject.toml").is_file() else None


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # neither $HOME nor an entry for this user; containers have `/` then
        return Path("/")


def work_folder(*parts: str) -> Path:
    """Returns a folder for what is made on the way and can be made again.

    In a checkout `build`, else the user's cache.
    """
    root = checkout()
    if root is not None:
        return root.joinpath("build", *parts)
    cache = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    return Path(cache, "tiercel", *parts)


def state_folder(*parts: str) -> Path:
    """Returns a folder for what is kept: runs of meshes, measurements, policies, reports.

    It does not depend on the current directory: what $TIERCEL_STATE names, in a checkout `build`,
    else the user's state.
    """
    named = os.environ.get(STATE_VARIABLE)
    if named:
        return Path(named, *parts)
    root = checkout()
    if root is not None:
        return root.joinpath("build", *parts)
    state = os.environ.get("XDG_STATE_HOME") or _home() / ".local" / "state"
    return Path(state, "tiercel", *parts)
