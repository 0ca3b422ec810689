"""Small children for tests of what starts and ends them."""

from __future__ import annotations

import pathlib
import sys

from services.local import probes
from services.local.child import ChildSpec

SLEEPER = "import sys, time, pathlib; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def spec_of(
    tmp_path: pathlib.Path, code: str = SLEEPER, *, name: str = "one", stage: int = 0
) -> ChildSpec:
    """A child that runs a line of Python and is ready once its file is there."""
    ready = tmp_path / f"{name}.ready"
    return ChildSpec(
        name=name,
        command=(sys.executable, "-c", code, str(ready)),
        is_ready=lambda: probes.file_exists(ready),
        log_path=tmp_path / f"{name}.log",
        stage=stage,
        ready_timeout_s=20.0,
        stop_timeout_s=0.3,
    )
