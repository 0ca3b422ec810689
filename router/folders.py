"""Where what is made on the way is kept: compiled code, Triton's backends, runs."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def checkout() -> Path | None:
    """Returns the root of the checkout this module lies in; None when it is installed."""
    return _ROOT if (_ROOT / "pyproject.toml").is_file() else None


def work_folder(*parts: str) -> Path:
    """Returns a folder for what is made on the way.

    In a checkout `build`, else the user's cache.
    """
    root = checkout()
    if root is not None:
        return root.joinpath("build", *parts)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "tiercel", *parts)
