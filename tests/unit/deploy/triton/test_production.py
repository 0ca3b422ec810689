"""The model configurations for real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.local.triton.repository.layout import read_model_config
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")
PRODUCTION = ROOT / "deploy" / "triton" / "production"
# Triton's protobuf numbers of the two kinds of instance that are used here.
KIND_CPU, KIND_MODEL = 2, 3
INTERFACE = {"text_input", "stream", "sampling_parameters", "exclude_input_in_output"}


def _parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


@pytest.mark.parametrize(
    "path", sorted(PRODUCTION.glob("*/config.pbtxt")), ids=lambda p: p.parent.name
)
def test_production_configs_are_triton_configs(path: Path) -> None:
    """Every production file parses as Triton's message and has the interface of a tier."""
    config = read_model_config(path)
    assert config.name == path.parent.name
    assert config.backend == "vllm"
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled
    assert [group.kind for group in config.instance_group] == [KIND_MODEL]
    assert {tensor.name for tensor in config.input} >= INTERFACE
    assert _parameters(config)["tiercel_kind"] == "production"
    engine = json.loads((path.parent / "1" / "model.json").read_text())
    assert engine["model"].startswith("/checkpoints/")
    assert engine["max_num_seqs"] >= 1


def test_production_tiers_fit_one_gpu() -> None:
    """One config per tier, and together they leave room on the GPU."""
    paths = sorted(PRODUCTION.glob("*/config.pbtxt"))
    tiers = {_parameters(read_model_config(path))["tiercel_tier"] for path in paths}
    assert tiers == set(TIERS)
    shares = [
        json.loads((path.parent / "1" / "model.json").read_text())["gpu_memory_utilization"]
        for path in paths
    ]
    assert sum(shares) < 0.9
