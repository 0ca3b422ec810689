"""Names and versions of models, as Triton takes them."""

from __future__ import annotations

import pytest

from services.router_inference.doors.kserve.models import TensorError, UnknownModelError
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario


@scenario
async def test_there_is_the_router_and_a_model_per_tier() -> None:
    """`tiercel` leaves the choice to the router, a tier's name pins it."""
    models = make_rig().core.kserve._models
    assert models.names == ("large", "medium", "small", "tiercel", "tiercel_unary")
    assert {model.name: model.tier for model in models} == {
        "large": "large", "medium": "medium", "small": "small", "tiercel": "", "tiercel_unary": "",
    }  # fmt: skip
    assert [model.name for model in models if not model.is_decoupled] == ["tiercel_unary"]


@scenario
async def test_versions_are_read_as_triton_reads_them() -> None:
    """The number at the beginning counts; only 1 exists."""
    models = make_rig().core.kserve._models
    for version in ("", "1", "01", " 1", "+1", "1x", "1 "):
        assert models.find("large", version).tier == "large"
    for version in ("7", "0", "11"):
        with pytest.raises(UnknownModelError, match=f"version {version} is not found"):
            models.find("large", version)
    for version in ("x", "99999999999999999999", "\u0661"):
        with pytest.raises(TensorError, match="failed to get model version"):
            models.find("large", version)
    with pytest.raises(TensorError, match="invalid model version specified '-1'"):
        models.find("large", "-1")


@scenario
async def test_an_unknown_model_is_told_with_those_there_are() -> None:
    """The error says what could be asked for."""
    with pytest.raises(UnknownModelError, match="'nope' is not found; known: large, medium"):
        make_rig().core.kserve._models.find("nope", "7")


@scenario
async def test_a_model_is_ready_while_an_endpoint_of_its_tier_is_usable() -> None:
    """Without the large tier's endpoint the router's own model can still answer."""
    rig = make_rig()
    models = rig.core.kserve._models
    assert models.ready(rig.clock.monotonic_s()) == set(models.names)
    for target in rig.core.view.fleet.targets:
        if target.tier == "large":
            for _ in range(3):
                target.breaker.on_failure(rig.clock.monotonic_s(), "UNAVAILABLE")
    assert models.ready(rig.clock.monotonic_s()) == set(models.names) - {"large"}
