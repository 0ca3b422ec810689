"""Where the files that come with the product are: profiles, quality tables, policies, models.

A checkout keeps them beside the packages; the wheel carries them inside this one (`pyproject.toml`
says which).
"""

from __future__ import annotations

from pathlib import Path

from router.folders import checkout

_PACKAGE = Path(__file__).resolve().parent
PROFILES, QUALITY, POLICIES = "profiles", "quality", "policies"
SNAPSHOT_SUFFIX = ".safetensors"
_SUFFIX = {PROFILES: ".toml", QUALITY: ".toml", POLICIES: SNAPSHOT_SUFFIX}


class NotShippedError(LookupError):
    """Neither a file nor the name of a shipped one; the text names those there are."""


def shipped(*parts: str) -> Path:
    """Returns the path of a shipped file or folder, for instance `shipped("profiles")`."""
    return (checkout() or _PACKAGE / "shipped_files").joinpath(*parts)


def shipped_names(folder: str) -> list[str]:
    """Returns the names of the shipped files of a folder, without their suffix."""
    return sorted(path.stem for path in shipped(folder).glob(f"*{_SUFFIX[folder]}"))


def named(folder: str, name: str) -> Path:
    """Returns where the shipped file of a name is, if there is one."""
    return shipped(folder, name + _SUFFIX[folder])


def find(folder: str, name: str) -> Path:
    """Returns the file that a path or a shipped name stands for.

    Args:
        folder: PROFILES, QUALITY or POLICIES.
        name: a file, or a name as `shipped_names` lists them.

    Raises:
        NotShippedError: It is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped_names(folder)
    if name in known:
        return named(folder, name)
    raise NotShippedError(f"no file and no shipped name {name!r}; known: {', '.join(known)}")
