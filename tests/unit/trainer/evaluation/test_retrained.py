"""A comparison with retrained policies, given as a file."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from router.dqn.snapshot import load_snapshot
from tests.unit.deploy.manifests import ROOT
from trainer.evaluation.inputs import Asked, EvaluationInputError, read_inputs

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def retrained_file(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Writes a comparison with a retrained policy for the shipped snapshot."""
    shipped = load_snapshot((ROOT / "policies" / "opt-a100.safetensors").read_bytes())
    setting = read_inputs(Asked()).setting
    number = {"performance": 0.9, "retrained_performance": 0.9, "ratio": 1.0, "availability": 1.0}
    row = {"shift": "mix", "load": 2.0, "share_of_always_small": 0.1, "safety_net": True, **number,
           "ratio_ci95": [0.9, 1.1], "retrained_availability": 1.0}  # fmt: skip
    training = {"shift": "mix", "rounds": 9, "samples": 5, "validation_original": 0.9,
                "validation_trained": 0.8, "kept": "original"}  # fmt: skip
    found = {
        "snapshot_version": shipped.version,
        "setting": setting.facts(),
        "rounds": 9,
        "rows": [row],
        "training": [training],
    }
    path = folder / "retrained.json"
    path.write_text(json.dumps({"retrained": {**found, **changes}}))
    return path


def test_comparison_with_retrained_policies_is_taken_for_the_same_snapshot(
    tmp_path: pathlib.Path,
) -> None:
    """Rows and training facts come into the report."""
    inputs = read_inputs(Asked(retrained=retrained_file(tmp_path)))
    assert inputs.retrained["status"] == "run"
    assert len(inputs.retrained["rows"]) == len(inputs.retrained["training"]) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"snapshot_version": "0ther"}, "0ther"),
        ({"setting": {"profile": "opt-a100", "devices": 3}}, "devices 3"),
    ],
)
def test_comparison_of_something_else_is_stale(
    changes: dict[str, Any], named: str, tmp_path: pathlib.Path
) -> None:
    """Another snapshot or fleet: no rows are used, and a note says why."""
    inputs = read_inputs(Asked(retrained=retrained_file(tmp_path, **changes)))
    assert inputs.retrained["status"] == "stale"
    assert inputs.retrained["rows"] == []
    assert any(named in note for note in inputs.notes)


def test_comparison_over_one_seed_is_taken(tmp_path: pathlib.Path) -> None:
    """Its ratios have no intervals."""
    row = json.loads(retrained_file(tmp_path).read_text())["retrained"]["rows"][0]
    path = retrained_file(tmp_path, rows=[{**row, "ratio_ci95": None}])
    assert read_inputs(Asked(retrained=path)).retrained["status"] == "run"


def test_comparison_without_its_columns_is_refused(tmp_path: pathlib.Path) -> None:
    """The file and its maker are named."""
    path = retrained_file(tmp_path, rows=[{"shift": "mix", "safety_net": True}])
    with pytest.raises(
        EvaluationInputError, match=r"retrained\.json.*trainer\.research\.retrained"
    ):
        read_inputs(Asked(retrained=path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "[" * 100_000,
        '{"retrained": NaN}',
        '{"retrained": 1e999}',
        '{"retrained": []}',
        '{"retrained": {"rows": [{}], "training": 3}}',
        '{"retrained": ' + "9" * 5_000 + "}",
        " " * 5_000_000,
        "\udcff",
    ],
)
@pytest.mark.parametrize("kind", ["retrained", "crosscheck"])
def test_a_file_of_something_else_is_one_line(kind: str, text: str, tmp_path: pathlib.Path) -> None:
    """Whatever the file holds, it is named in one line with what writes such files."""
    path = tmp_path / "file.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EvaluationInputError) as caught:
        read_inputs(Asked(retrained=path) if kind == "retrained" else Asked(crosscheck=path))
    (line,) = str(caught.value).splitlines()
    assert f"--{kind}: {path}" in line


def test_numbers_that_are_none_are_refused(tmp_path: pathlib.Path) -> None:
    """NaN among the figures would come out as a result."""
    path = retrained_file(tmp_path, rounds=float("inf"))
    with pytest.raises(EvaluationInputError, match="--retrained"):
        read_inputs(Asked(retrained=path))


def test_a_byte_order_mark_is_accepted(tmp_path: pathlib.Path) -> None:
    """As in every other file."""
    path = retrained_file(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_inputs(Asked(retrained=path)).retrained["status"] == "run"
