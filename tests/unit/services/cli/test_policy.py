"""``tiercel policy``."""

from __future__ import annotations

import json

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint


def test_policies_are_listed_and_switched_on_the_routers_named(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a trainer each router is asked itself; an unknown name is bad input."""
    fake, address = router
    assert run(["policy", "use", "price", "--router", address]) == 0
    assert fake.policy == "price"
    capsys.readouterr()
    assert run(["policy", "list", "--router", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routers"][address]["policy"] == "price"
    assert run(["policy", "use", "nonsense", "--router", address]) == 2
    assert "greedy" in complaint(capsys)
