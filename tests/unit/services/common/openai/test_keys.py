"""The keys that endpoints want."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.mesh_settings import MeshSettings
from services.common.openai.keys import read_api_keys
from services.common.settings import SettingsError, SettingsModel, load_settings
from tests.fakes.router_process import mesh_toml


class _File(SettingsModel):
    mesh: MeshSettings


def mesh(folder: Path, *endpoints: str) -> MeshSettings:
    """Returns the settings of a mesh with these lines for its endpoints."""
    text = mesh_toml([])
    for index, lines in enumerate(endpoints):
        text += f'[[mesh.endpoints]]\nname = "e{index}"\ntiers = ["small"]\n{lines}\n'
    path = folder / "tiercel.toml"
    path.write_text(text)
    return load_settings(_File, path=path, environ={}).mesh


OPENAI = 'protocol = "openai"\naddress = "127.0.0.1:{}"\n{}'


def test_keys_come_from_variables_and_files(tmp_path: Path) -> None:
    """By address; an endpoint that names none has none; what surrounds a key in a file is cut."""
    (tmp_path / "key").write_text("  of-file\n")
    found = mesh(
        tmp_path,
        OPENAI.format(1, 'api_key_variable = "SERVER_KEY"'),
        OPENAI.format(2, 'api_key_file = "key"'),
        OPENAI.format(3, ""),
    )
    keys = read_api_keys(found, {"SERVER_KEY": "of-variable"})
    assert keys == {"127.0.0.1:1": "of-variable", "127.0.0.1:2": "of-file"}


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("two secrets", "holds no key"),
        ("secret\r\nx: y", "holds no key"),
        ("sécret", "holds no key"),
        ("s" * 5_000, "holds no key"),
    ],
)
def test_what_is_no_key_is_named_and_never_shown(
    tmp_path: Path, key: str | None, problem: str
) -> None:
    """A line's end in a key would be another header."""
    found = mesh(tmp_path, OPENAI.format(1, 'api_key_variable = "SERVER_KEY"'))
    with pytest.raises(SettingsError, match=problem) as caught:
        read_api_keys(found, {} if key is None else {"SERVER_KEY": key})
    assert "mesh.endpoints.0.api_key_variable: SERVER_KEY" in str(caught.value)
    assert not key or key not in str(caught.value)


def test_two_keys_for_one_address_contradict_each_other(tmp_path: Path) -> None:
    """Nobody could tell which is shown."""
    both = [OPENAI.format(1, f'api_key_variable = "{name}"') for name in ("ONE", "TWO")]
    with pytest.raises(SettingsError, match="another key for 127"):
        read_api_keys(mesh(tmp_path, *both), {"ONE": "a", "TWO": "b"})


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('address = "h:1"\napi_key_file = "k"', "goes with protocol"),
        (OPENAI.format(1, 'api_key_file = "k"\napi_key_variable = "K"'), "give one"),
        (OPENAI.format(1, 'api_key_variable = "not a name"'), "api_key_variable"),
        ('address = "h:1"\nprotocol = "http"', "protocol"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, lines: str, problem: str) -> None:
    """Said at the start, with the key of the settings."""
    with pytest.raises(SettingsError, match=problem):
        mesh(tmp_path, lines)
