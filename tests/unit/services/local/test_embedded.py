"""An embedded mesh, as far as it can be looked at without its processes."""

from __future__ import annotations

import pathlib

import pytest

from services.local.embedded import EmbeddedMesh
from services.local.paced_mesh import paced_options
from trainer.shipped import PROFILES, QUALITY, shipped


def test_a_manifest_that_cannot_be_written_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mesh goes on without; an error here would end the watch over its processes."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    (tmp_path / "run").write_text("no folder")
    options = paced_options(
        "m", shipped(PROFILES, "opt-a100.toml"), quality=shipped(QUALITY, "opt.toml")
    )
    said: list[str] = []
    mesh = EmbeddedMesh(options, say=said.append)
    mesh._write_manifest()
    mesh._claims.release()
    assert len(said) == 1
    assert "mesh.json: cannot be written: Not a directory" in said[0]
