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
