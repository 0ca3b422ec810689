"""What a request knows of itself on its way."""

from __future__ import annotations

import pytest

from tests.unit.services.router_inference.parts import choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario


@scenario
async def test_without_a_decision_there_is_no_tier() -> None:
    """Tier and endpoint are those of where it was last sent, and empty before."""
    rig = make_rig()
    job = rig.job()
    assert (job.tier, job.endpoint) == ("", "")
    await rig.answer(job)
    assert (job.tier, job.endpoint) == choice_of(job).target.candidate == ("large", "e0")


@pytest.mark.parametrize(
    ("task", "is_stream", "first_token_s", "event_s"),
    [("hard", False, 3.0, 9.0), ("first", True, 3.0, 3.0), ("first", True, 0.0, 9.0)],
)
def test_what_a_deadline_is_measured_against(
    task: str, is_stream: bool, first_token_s: float, event_s: float
) -> None:
    """The end, or the first token where the task says so and one came."""

    @scenario
    async def run() -> None:
        job = make_rig().job(task=task, is_stream=is_stream)
        job.first_token_s, job.end_s = first_token_s, 9.0
        assert job.deadline_event_s == event_s

    run()


@scenario
async def test_a_moment_of_the_request_has_a_wall_clock_time() -> None:
    """Counted from the arrival, whose two times are known."""
    job = make_rig().job()
    assert job.wall_ns(job.arrival_s) == job.arrival_ns
    assert job.wall_ns(job.arrival_s + 0.25) == job.arrival_ns + 250_000_000
