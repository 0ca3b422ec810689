"""Requests as the experience stream tells of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from router.profile import LatencyProfile
from services.calibrate.served import History, history, read_entries
from services.common.state.experience_stream import MemoryExperienceStream
from tests.fakes.clock import FakeClock
from tests.unit.services.calibrate.served_records import decision, entries, outcome, written
from tests.unit.trainer.profiling.served_device import COSTS, served
from tiercel.common.v1 import common_pb2, experience_pb2
from trainer.profiling.served_fit import Served

PROFILE = LatencyProfile("p", "measured", dict(COSTS))
DEVICES = {"on-d": "d"}
REQUEST = Served("large", "d", 100.0, 8, 0.0, 0.02, 0.2, True, True)


def told(*records: Any, devices: dict[str, str] = DEVICES) -> History:
    """What entries of these records tell."""
    return history(entries(*records), devices, PROFILE)


def test_what_is_written_is_read_back() -> None:
    """Tier, device, prompt, tokens and the three moments of every request."""
    requests = sorted(served(COSTS, 8.0, 50), key=lambda each: each.sent_s)
    found = history(written(requests), DEVICES, PROFILE)
    assert (found.whole_count, found.unseen_count, found.lost_count) == (50, 0, 0)
    first_s = requests[0].sent_s
    for one, other in zip(requests, sorted(found.requests, key=lambda e: e.sent_s), strict=True):
        assert (one.tier, one.device, one.prompt_tokens, one.output_tokens) == (
            other.tier, other.device, other.prompt_tokens, other.output_tokens,
        )  # fmt: skip
        for name in ("sent_s", "first_s", "end_s"):
            assert getattr(other, name) == pytest.approx(getattr(one, name) - first_s, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({"rescued": True}, ["large", "large"]),
        ({"retry_count": 1}, ["large", "large"]),
        ({"output_token_count": 0}, ["large"]),
    ],
)
def test_a_course_that_nobody_wrote_down_is_uncertain(
    fields: dict[str, Any], places: list[str]
) -> None:
    """Where it was sent first, and where it was answered; it is no whole answer."""
    found = told(decision(REQUEST, 1), outcome(REQUEST, 1, **fields))
    assert [each.tier for each in found.requests] == places
    assert not any(each.is_certain or each.is_complete for each in found.requests)
    assert found.unseen_count == len(places)


def test_what_was_cut_off_after_its_first_token_is_known_and_no_whole_answer() -> None:
    """Its tokens ran beside others; without a first token nobody knows what it did."""
    cut = replace(REQUEST, is_complete=False, output_tokens=5)
    late = {"status": common_pb2.OUTCOME_STATUS_LATE}
    (found,) = told(decision(cut, 1), outcome(cut, 1, **late)).requests
    assert (found.is_certain, found.is_complete, found.output_tokens) == (True, False, 5)
    silent = replace(cut, first_s=math.inf, output_tokens=0)
    (found,) = told(decision(silent, 1), outcome(silent, 1, **late)).requests
    assert not found.is_certain


def test_one_that_has_not_ended_may_run_until_after_its_deadline() -> None:
    """Two seconds of slack in its decision, and one more."""
    (found,) = told(decision(REQUEST, 1)).requests
    assert (found.is_certain, found.end_s) == (False, 3.0)
    (found,) = told(outcome(REQUEST, 1)).requests
    assert (found.is_certain, found.tier) == (False, "large")


def test_prompts_count_without_what_was_cached() -> None:
    """Nobody computed that part; at least one token is new."""
    for cached, left in ((40, 60.0), (100, 1.0)):
        ended = outcome(REQUEST, 1, cached_prompt_token_count=cached)
        (found,) = told(decision(REQUEST, 1), ended).requests
        assert found.prompt_tokens == left


def test_answers_in_one_piece_are_counted_apart() -> None:
    """Eight tokens in no time came together: when they were made is not known."""
    piece = replace(REQUEST, first_s=0.2)
    found = told(decision(piece, 1), outcome(piece, 1))
    assert (found.in_one_piece_count, found.whole_count) == (1, 0)


def test_others_and_what_was_refused_are_left_out() -> None:
    """Endpoints of other profiles, bad input, decisions whose action is none."""
    elsewhere = told(decision(REQUEST, 1), outcome(REQUEST, 1), devices={"other": "d"})
    assert elsewhere.requests == ()
    invalid = outcome(REQUEST, 1, status=common_pb2.OUTCOME_STATUS_INVALID)
    assert told(decision(REQUEST, 1), invalid).requests == ()
    odd = decision(REQUEST, 1)
    odd.action = 7
    assert told(odd).requests == ()


def test_the_first_outcome_counts_and_gaps_are_lost() -> None:
    """A second one is feedback; numbers between the first and the last have to be there."""
    again = outcome(replace(REQUEST, end_s=9.0), 1)
    found = told(
        decision(REQUEST, 1), outcome(REQUEST, 1), again, decision(REQUEST, 5), outcome(REQUEST, 5)
    )
    assert [each.end_s for each in found.requests] == [pytest.approx(0.2)] * 2
    assert found.lost_count == 3


async def test_the_stream_is_read_between_two_moments() -> None:
    """By when entries were appended; what is no entry is left out."""
    clock = FakeClock()
    stream = MemoryExperienceStream(clock)
    start_s = clock.wall_ns() / 1e9
    payload = entries(decision(REQUEST, 1))[0].SerializeToString()
    await stream.append([payload])
    clock.move(10.0)
    await stream.append([payload, b"\xff\xff\xff"])
    clock.move(10.0)
    await stream.append([payload])
    for low_s, high_s, count in ((-1.0, 30.0, 3), (5.0, 30.0, 2), (5.0, 15.0, 1), (25.0, 30.0, 0)):
        found = await read_entries(stream, start_s + low_s, start_s + high_s)
        assert len(found) == count
        assert all(isinstance(each, experience_pb2.ExperienceEntry) for each in found)


def test_a_record_of_nowhen_spoils_nothing() -> None:
    """Whoever may write to the stream can write a stamp that is none, or one from far away."""
    good = [decision(REQUEST, 1), outcome(REQUEST, 1), decision(REQUEST, 2), outcome(REQUEST, 2)]
    expected = told(*good)
    never, ahead, unset = (decision(REQUEST, number) for number in (3, 4, 5))
    never.decide_time.seconds, never.decide_time.nanos = 2**62, -7
    ahead.decide_time.seconds += 10**9
    unset.ClearField("decide_time")
    late = outcome(REQUEST, 6)
    late.end_time.nanos = 2**31 - 1
    late.end_time.seconds = -(2**62)
    found = told(*good, never, ahead, unset, late)
    assert found == expected
    endless = decision(REQUEST, 3)
    endless.slack.seconds = 2**60
    assert max(each.end_s for each in told(*good, endless).requests) <= 3.0 * 86_400.0 + 1.1
