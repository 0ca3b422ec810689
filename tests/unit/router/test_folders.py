"""Where what is made on the way is kept, in a checkout and outside one."""

from __future__ import annotations

from pathlib import Path

import pytest

from router import folders
from trainer.shipped import shipped


def test_an_installation_keeps_its_work_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a checkout nothing is written beside the packages or into the working directory."""
    monkeypatch.setattr(folders, "_ROOT", tmp_path / "site-packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert folders.checkout() is None
    assert folders.work_folder("numba") == tmp_path / "cache" / "tiercel" / "numba"
    assert shipped("profiles").parent.name == "shipped_files"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert folders.work_folder() == Path.home() / ".cache" / "tiercel"


def test_what_is_kept_lies_in_one_place_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside a checkout the user's state, unless a folder is named."""
    monkeypatch.delenv("TIERCEL_STATE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert folders.state_folder("load") == Path(__file__).parents[3] / "build" / "load"
    monkeypatch.setattr(folders, "_ROOT", tmp_path / "site-packages")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert folders.state_folder("load") == tmp_path / "state" / "tiercel" / "load"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert folders.state_folder() == Path.home() / ".local" / "state" / "tiercel"
    monkeypatch.setenv("TIERCEL_STATE", "here")
    assert folders.state_folder("load") == Path("here", "load")


def test_a_user_without_a_home_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may run as a number that no list of users has, and without $HOME."""

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(folders, "_ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(Path, "home", nowhere)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "TIERCEL_STATE"):
        monkeypatch.delenv(name, raising=False)
    assert folders.work_folder("numba") == Path("/.cache/tiercel/numba")
    assert folders.state_folder("run") == Path("/.local/state/tiercel/run")
