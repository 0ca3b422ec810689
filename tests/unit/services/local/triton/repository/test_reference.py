"""Written repositories of the reference tiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.local.triton.repository.layout import RepositoryError, read_model_config
from services.local.triton.repository.reference import write_reference_repository
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")


def _parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_reference_repository_links_and_sets_the_batch(tmp_path: Path) -> None:
    """Sources are linked, not copied, and the batch limit is the one asked for."""
    server = write_reference_repository(tmp_path / "reference", TIERS, max_batch=3)
    for tier in TIERS:
        config = read_model_config(server.path / tier / "config.pbtxt")
        assert _parameters(config)["tiercel_max_batch"] == "3"
        assert _parameters(config)["tiercel_kind"] == "reference"
        assert (server.path / tier / "1" / "model.py").resolve().is_relative_to(ROOT)
    [endpoint] = server.endpoints("127.0.0.1:8001")
    assert endpoint["models"] == {}


def test_unknown_reference_tier_is_named(tmp_path: Path) -> None:
    """A tier that is not there is named."""
    with pytest.raises(RepositoryError, match="huge"):
        write_reference_repository(tmp_path / "reference", ("small", "huge"))
