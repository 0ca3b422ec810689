"""The order of a decision, and what is known when a policy fails."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from router.policies.base import ScorePolicy
from router.policies.table import BY_NAME
from services.common.errors import ResourceExhaustedError
from tests.unit.services.router_inference.parts import choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario


class Broken(ScorePolicy):
    """A policy that raises."""

    @property
    def params_P(self) -> NDArray[np.float64]:
        """Raises."""
        raise RuntimeError("bug")


@scenario
async def test_a_refused_request_costs_no_decision() -> None:
    """Admission comes first: no policy is asked, and nothing is recorded to learn from."""
    rig = make_rig()
    refused, admitted = rig.job(deadline_s=0.005), rig.job()
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(refused)
    await rig.answer(admitted)
    assert refused.choice is None
    assert [entry.WhichOneof("record") for entry in await rig.records()] == ["decision", "outcome"]
    assert choice_of(admitted).sequence == 1


def test_what_a_policy_raised_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """With its traceback and the number of decisions it has cost so far."""

    @scenario
    async def run() -> None:
        rig = make_rig()
        rig.core.slot.guard.replace(Broken("greedy", BY_NAME["greedy"]))
        for _ in range(3):
            await rig.answer(rig.job())
        await asyncio.sleep(61.0)
        await rig.answer(rig.job())

    with caplog.at_level(logging.ERROR):
        run()
    lines = [record for record in caplog.records if record.getMessage() == "policy_failed"]
    assert [record.__dict__["tiercel_fields"]["count"] for record in lines] == [1, 4]
    assert lines[0].exc_info is not None
    assert str(lines[0].exc_info[1]) == "bug"
