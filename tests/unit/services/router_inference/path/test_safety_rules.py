"""The router's short cuts around the safety kernels decide exactly as the kernels do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import kernels, safety
from router.ledger import LoadArrays
from services.common.errors import ResourceExhaustedError
from services.router_inference.path.decide import Choice
from services.router_inference.path.second_chance import just_in_time_s
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import make_rig

FLOATS = st.floats(0.0, 40.0).map(lambda value: round(value, 3))
LIMITS = safety.SafetyLimits(0.7, 1.25, 0.005)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=6, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(0, 5),
    st.floats(0.001, 1.0),
)
def test_short_cuts_equal_kernels(
    rows: list[tuple[float, float, float]], allowed: list[bool], action: int, slack_s: float
) -> None:
    """Admission and rescue moment from the decision's predictions equal the kernels'."""

    async def run() -> None:
        rig = make_rig(endpoint_count=2)
        fleet = rig.core.view.current_fleet(0.0)
        load = LoadArrays(*(np.array(column) for column in zip(*rows, strict=True)))
        allowed_C = np.array(allowed)
        allowed_C[action] = True
        job = rig.job(deadline_s=slack_s)
        predicted_C, scratch_C = np.empty(6), np.empty(6)
        request = job.request
        tokens = (request.prompt_tokens, request.output_tokens)
        kernels.predict_latency_s(fleet.arrays, load, *tokens, predicted_C)
        choice = Choice(action, rig.core.view.targets[action], fleet, load, allowed_C, predicted_C)
        moment_s = safety.rescue_at_s(
            fleet.arrays, load, allowed_C, action, slack_s, *tokens, LIMITS.margin,
            LIMITS.guard_s, scratch_C,
        )  # fmt: skip
        assert just_in_time_s(choice, slack_s, LIMITS) == pytest.approx(moment_s)
        admitted, _ = safety.admit(
            fleet.arrays, load, allowed_C, slack_s, *tokens, LIMITS.optimism, scratch_C
        )
        try:
            rig.core.admission.check(request, action, allowed_C, predicted_C)
        except ResourceExhaustedError:
            assert not admitted
        else:
            assert admitted

    run_virtual(run())
