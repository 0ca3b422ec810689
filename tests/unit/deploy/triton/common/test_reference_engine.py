"""The serving engine against ``transformers``, in the environment of Triton."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy.manifests import ROOT

PYTHON = ROOT / ".venv-triton" / "bin" / "python"
CHECK = Path(__file__).with_name("compare_engine.py")


@pytest.mark.triton
@pytest.mark.timeout(120)
@pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment .venv-triton")
@pytest.mark.parametrize("tier", ["small", "medium", "large"])
def test_engine_gives_the_logits_of_transformers(tier: str) -> None:
    """Slots that come, go and differ in length give the same logits as whole forward passes."""
    result = subprocess.run(
        [str(PYTHON), str(CHECK), str(ROOT / "deploy" / "triton"), tier],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout.split()[-1]) < 1e-3
