"""Folders that no shell can take apart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from services.local.triton.errors import TritonServerError
from services.local.triton.server import plain_paths
from services.local.triton.server.plain_paths import PlainPaths


def test_a_plain_path_stays_as_it_is() -> None:
    """Nothing is made where nothing is needed."""
    paths = PlainPaths()
    assert paths.of(Path("/srv/models-1.0"), "models") == Path("/srv/models-1.0")
    paths.remove()


@pytest.mark.parametrize(
    "name", ["a b", "\u00fc", "it's", 'a"b', "a;b", "$HOME", "a\\nb", "a`b", "a&b"]
)
def test_other_paths_are_reached_by_a_plain_link(tmp_path: Path, name: str) -> None:
    """The link leads to the folder and goes with the server; the folder stays."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_text("here")
    paths = PlainPaths()
    link = paths.of(folder, "models")
    assert paths.of(folder, "models") == link
    assert str(link).replace("/", "").replace("-", "").replace("_", "").isalnum()
    assert (link / "file").read_text() == "here"
    paths.remove()
    paths.remove()
    assert not link.is_symlink()
    assert (folder / "file").exists()


def test_no_folder_for_links_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what Triton takes, before anything is started."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    monkeypatch.setattr(plain_paths, "_TEMPORARY", (str(tmp_path / "neither"),))
    with pytest.raises(TritonServerError, match="letters, digits"):
        PlainPaths().of(tmp_path / "a b", "models")
