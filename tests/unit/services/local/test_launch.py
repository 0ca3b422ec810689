"""Children of a mesh run this installation's modules, wherever they are started."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from services.local.launch import module_command
from tests.unit.deploy.manifests import ROOT


def test_a_folder_of_the_same_name_does_no_harm(tmp_path: Path) -> None:
    """`tiercel up` is called in any directory, and many projects have a package `services`."""
    (tmp_path / "services").mkdir()
    (tmp_path / "services" / "__init__.py").touch()
    done = subprocess.run(
        module_command("services.common.health_probe", "--help"),
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "HOST:PORT" in done.stdout


def test_no_module_of_ours_is_started_otherwise() -> None:
    """Python alone would look in the current directory first."""
    for path in sorted((ROOT / "services").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'sys\.executable,\s*"-m",\s*(f?"services|module)', text), path
        assert not re.search(r'sys\.executable,\s*"-c"', text), path
