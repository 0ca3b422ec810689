"""The keys that endpoints of the settings want; they are in no message, and in no log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from services.common.files import read_bytes
from services.common.mesh_settings import EndpointSettings, MeshSettings
from services.common.settings import SettingsError

_MOST_KEY_BYTES = 4_096
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


def read_api_keys(mesh: MeshSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the key of each address whose endpoint names one.

    By address: an endpoint that joins under a name of the settings elsewhere is not shown the key.

    Raises:
        SettingsError: A variable is missing, a file cannot be read, or what they hold is no key.
    """
    problems: list[str] = []
    keys: dict[str, str] = {}
    for index, entry in enumerate(mesh.endpoints):
        if entry.api_key_variable or entry.api_key_file:
            key = _key_of(entry, f"mesh.endpoints.{index}", environ, problems)
            if keys.setdefault(entry.address, key) != key:
                problems.append(f"mesh.endpoints.{index}: another key for {entry.address}")
    if problems:
        raise SettingsError(problems)
    return keys


def _key_of(
    entry: EndpointSettings, origin: str, environ: Mapping[str, str], problems: list[str]
) -> str:
    """Returns a key; adds what is wrong with it, never the key itself."""
    if entry.api_key_variable:
        origin = f"{origin}.api_key_variable: {entry.api_key_variable}"
        key = environ.get(entry.api_key_variable, "")
        if not key:
            problems.append(f"{origin}: is not set")
            return ""
    else:
        origin = f"{origin}.api_key_file: {entry.api_key_file}"
        try:
            found = read_bytes(Path(entry.api_key_file), _MOST_KEY_BYTES)
        except OSError as error:
            problems.append(f"{origin}: cannot be read: {error.strerror or error}")
            return ""
        key = found.decode("utf-8", "replace").strip()
    if _KEY.fullmatch(key) is None:
        problems.append(f"{origin}: holds no key: 1 to 4096 characters of ASCII without spaces")
    return key
