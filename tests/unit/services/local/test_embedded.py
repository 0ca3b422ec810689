"""An embedded mesh, as far as it can be looked at without its processes."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from services.local.embedded import EmbeddedMesh
from services.local.errors import CommandError
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


async def test_a_second_start_of_a_name_leaves_the_first_its_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first has a manifest, and also where the second would begin afresh."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    options = paced_options(
        "m", shipped(PROFILES, "opt-a100.toml"), quality=shipped(QUALITY, "opt.toml")
    )
    fresh = dataclasses.replace(options, fresh=True)
    async with EmbeddedMesh(options, say=print) as first:
        kept = first.folder / "redis"
        kept.touch()
        with pytest.raises(CommandError, match="'m' is being started"):
            await EmbeddedMesh(fresh, say=print).__aenter__()
        assert kept.exists()
    async with EmbeddedMesh(fresh, say=print):
        assert not kept.exists()


FORKED = """
import asyncio, os, pathlib, sys
from services.local.embedded import EmbeddedMesh
from services.local.paced_mesh import paced_options
from tests.unit.services.local.children import spec_of
from trainer.shipped import PROFILES, QUALITY, shipped

async def main():
    options = paced_options(
        "m", shipped(PROFILES, "opt-a100.toml"), quality=shipped(QUALITY, "opt.toml")
    )
    async with EmbeddedMesh(options, say=print) as mesh:
        # The folder of a mesh that has no Redis and no Triton here.
        file = mesh.folder / "mesh.json"
        file.touch()
        await mesh._supervisor.start([spec_of(pathlib.Path(sys.argv[1]))])
        child = mesh._supervisor.children["one"]
        if os.fork() == 0:
            asyncio.run(mesh.stop())
            asyncio.run(child.stop())
            os._exit(0)
        os.wait()
        print(child.is_running, mesh.start_count("one"), file.exists(), flush=True)
    print(child.is_running, file.exists(), flush=True)

asyncio.run(main())
"""


def test_a_fork_of_its_process_ends_nothing(tmp_path: pathlib.Path) -> None:
    """What has been copied with the process is not the copy's to end."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(tmp_path)],
        env={**os.environ, "TIERCEL_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines() == ["True 1 True", "False False"], done.stderr
