"""`tiercel endpoint`: what is refused before a load monitor is asked, and what is shown."""

from __future__ import annotations

import pytest

from services.cli.app import run
from services.cli.endpoint import endpoint_facts
from tests.unit.services.cli.said import complaint
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2

NOBODY = ["--monitor", "127.0.0.1:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["127.0.0.1:9"], "--tier"),
        (["nowhere", "--tier", "small"], "ADDRESS: "),
        (["127.0.0.1:99999", "--tier", "small"], "ADDRESS: "),
        (["127.0.0.1:9", "--tier", "=opt"], "--tier: expected TIER or TIER=MODEL, got '=opt'"),
        (["127.0.0.1:9", "--tier", "small", "--metrics", "x"], "--metrics: "),
        (["127.0.0.1:9", "--tier", "small", "--http", "x:"], "--http: "),
        (
            ["127.0.0.1:9", "--tier", "small", "--protocol", "vllm"],
            "--protocol: must be one of triton, openai, got 'vllm'",
        ),
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is named; nobody is asked, so that no load monitor need run."""
    assert run(["endpoint", "add", "e", *arguments, *NOBODY]) == 2
    assert message in complaint(capsys)


@pytest.mark.parametrize("drain", ["-1", "3601", "nan", "soon"])
def test_a_drain_without_end_is_refused(drain: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It has limits, and is a number."""
    assert run(["endpoint", "remove", "e", "--drain", drain, *NOBODY]) == 2
    assert "--drain" in complaint(capsys)


def test_an_endpoint_that_was_not_heard_yet_is_shown_with_its_tiers() -> None:
    """Its device is its own name, as routers take it; the reason stands beside its health."""
    served = common_pb2.ServedTier(tier="small")
    state = system_state_pb2.EndpointState(
        endpoint=common_pb2.Endpoint(endpoint="e", address="127.0.0.1:9", tiers=[served]),
        health=common_pb2.ENDPOINT_HEALTH_DOWN,
        reason="no answer",
    )
    facts = endpoint_facts(state)
    assert (facts["device"], facts["health"], facts["tiers"]) == ("e", "down", {"small": {}})
    assert facts["reason"] == "no answer"
