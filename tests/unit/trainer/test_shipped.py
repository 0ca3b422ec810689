"""Shipped files by name, and where work is kept in a checkout and outside one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.deploy.manifests import ROOT
from trainer import shipped


def test_a_name_and_a_path_mean_the_same_file() -> None:
    """The shipped name stands for its file; a path is taken as it is."""
    path = ROOT / "profiles" / "opt-a100.toml"
    assert shipped.find(shipped.PROFILES, "opt-a100") == path
    assert shipped.find(shipped.PROFILES, str(path)) == path


@pytest.mark.parametrize("name", ["opt-a1000", "../profiles/opt-a100", "opt-a100.toml"])
def test_what_is_neither_file_nor_name_lists_the_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what there is."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(shipped.NotShippedError, match="known: opt-a100, reference"):
        shipped.find(shipped.PROFILES, name)
