"""Records as messages: what a router writes down of a decision's conversation and of an end."""

from __future__ import annotations

import pytest

from router.explanation import Explainer
from router.seat import Stay
from services.router_inference.job import Outcome
from services.router_inference.records.convert import (
    OUTCOME_STATUS,
    STAYS,
    OutcomeEntry,
    RecordBuilder,
)
from tiercel.common.v1 import common_pb2, experience_pb2


@pytest.mark.parametrize("stay", Stay)
def test_every_stay_has_its_value(stay: Stay) -> None:
    """The word of the code is the word of the contract, and the number too."""
    name = "UNSPECIFIED" if stay is Stay.NONE else stay.name
    assert common_pb2.ConversationStay.Name(STAYS[stay]) == f"CONVERSATION_STAY_{name}"
    assert int(STAYS[stay]) == int(stay)


def test_every_end_has_its_status() -> None:
    """And no two have the same."""
    assert set(OUTCOME_STATUS) == set(Outcome)
    assert len(set(OUTCOME_STATUS.values())) == len(Outcome)


@pytest.mark.parametrize("is_answered", [True, False])
def test_an_end_is_written_as_it_was(*, is_answered: bool) -> None:
    """Who served it only where somebody did; a latency is never below 0."""
    entry = OutcomeEntry(
        router_id="r",
        epoch=1,
        sequence=2,
        request_id="a",
        end_ns=3_000_000_007,
        status=OUTCOME_STATUS[Outcome.ON_TIME],
        latency_s=-1e-9,
        first_token_s=0.25 if is_answered else None,
        output_tokens=8,
        served_by=("large", "e0") if is_answered else None,
        quality=1.0,
        reward=0.5,
        delivered_reward=0.75,
        cached_prompt_tokens=96,
    )
    data = RecordBuilder(router_id="r", epoch=1, explainer=Explainer()).payload(entry)
    record = experience_pb2.ExperienceEntry.FromString(data).outcome
    assert record.HasField("served_by") == record.HasField("first_token_latency") == is_answered
    assert record.latency.ToNanoseconds() == 0
    assert record.end_time.ToNanoseconds() == 3_000_000_007
    assert (record.reward, record.delivered_reward) == (0.5, 0.75)
    assert record.cached_prompt_token_count == 96
