"""A report of an evaluation as small as it can be."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.inputs import Asked, read_inputs
from trainer.evaluation.run import run_evaluation

QUALITY = 'name = "one"\n[quality.easy]\nsmall = 0.5\nmedium = 0.8\nlarge = 1.0\n'


@pytest.fixture(scope="package")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One device, one task, price and the static policies; as it is read back from its file."""
    quality: pathlib.Path = tmp_path_factory.mktemp("report") / "one.toml"
    quality.write_text(QUALITY)
    asked = Asked(policies=("price",), quality=str(quality), devices=1)
    found = run_evaluation(
        read_inputs(asked),
        subjects.PLAN,
        seed_count=0,
        workers=1,
        command="tiercel evaluate",
        progress=lambda *_: None,
    )
    read: dict[str, Any] = json.loads(json.dumps(found))
    return read
