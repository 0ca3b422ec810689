"""``tiercel explain``."""

from __future__ import annotations

import json

import pytest

from services.cli import explain
from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


def test_a_decision_is_told_in_words_and_a_table(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was chosen, why, what it would have taken, and what has no score for which reason."""
    assert run(["explain", "known", "--router", router[1]]) == 0
    out = capsys.readouterr().out
    assert "had 0.500 s left and went to medium@e0" in out
    assert "The task's target was to answer 0.99 of the requests in time" in out
    assert "device time cost 4.5 times as much" in out
    assert "Its priority was normal (it asked for high, more than its client may have)" in out
    assert "device time cost it 1.25 times as much" in out
    assert "dqn@1 gave it the highest score of 1 candidates" in out
    assert "large@e0 would have been 0.200 s late" in out
    assert "With 0.900 s left a larger tier would have been chosen on that load" in out
    assert "with nothing under way, and no more time, none would have been." in out
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│ ") and "@e0" in line]
    assert [row[1].strip() for row in rows] == ["medium@e0", "small@e0", "large@e0"]
    assert [row[-2].strip() for row in rows] == ["0.2500", "not allowed", "not on the shortlist"]


def test_an_explanation_for_machines_has_the_features(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, for every candidate; the router that knows is found among several."""
    addresses = ["--router", "127.0.0.1:1", "--router", router[1]]
    assert run(["explain", "known", *addresses, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choice"] == "medium@e0"
    assert (found["target"], found["target_pressure"]) == (0.99, 1.5)
    assert found["priority"] == {
        "class": "normal", "asked": "high", "price_factor": 1.25, "admission_factor": 1.0,
        "owed": False,
    }  # fmt: skip
    assert [each["features"]["quality"] for each in found["candidates"]][::2] == [0.5, 1.0]
    assert [each["score"] for each in found["candidates"]] == [None, 0.25, None]


def test_a_request_nobody_knows_is_bad_input(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is the router's."""
    assert run(["explain", "lost", "--router", router[1]]) == 2
    assert "no such request" in complaint(capsys)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_router_that_cannot_be_asked_may_be_the_one_that_knows(
    is_first: bool, router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it stands among those named: that the others do not know says too little."""
    addresses = ["127.0.0.1:1", router[1]][:: 1 if is_first else -1]
    options = [word for address in addresses for word in ("--router", address)]
    assert run(["explain", "lost", *options]) == 1
    assert "no router answers at 127.0.0.1:1" in complaint(capsys)


@pytest.mark.parametrize(
    ("stay", "words"),
    [
        (common_pb2.CONVERSATION_STAY_NEW, "was not known"),
        (common_pb2.CONVERSATION_STAY_KEPT, "small@e0 had served its conversation last"),
        (common_pb2.CONVERSATION_STAY_CLOSED, "was gone, or not open to it"),
        (common_pb2.CONVERSATION_STAY_DEADLINE, "small@e0 was not expected in time"),
        (common_pb2.CONVERSATION_STAY_TARGET, "from small@e0 for the sake of the target"),
        (common_pb2.CONVERSATION_STAY_WORTH, "more than small@e0 by more than a margin of 0.05"),
    ],
)
def test_a_conversation_is_told_in_words(
    stay: common_pb2.ConversationStay.ValueType, words: str
) -> None:
    """Why it stayed or moved, and what was taken for cached where the request went."""
    reply = pb.ExplainDecisionResponse(
        conversation_stay=stay, conversation_seat=0, conversation_margin=0.05
    )
    for tier, score in (("small", 0.2), ("large", 0.3)):
        candidate = common_pb2.Candidate(tier=tier, endpoint="e0")
        entry = reply.candidates.add(candidate=candidate, allowed=True, score=score)
        entry.cached_prompt_token_count = 96 if tier == "small" else 0
    text = " ".join(explain.words(explain.facts(reply)))
    assert words in text
    assert "Some 96 prompt tokens were taken for cached." in text
    assert ("Its conversation stayed there" in text) == (stay == common_pb2.CONVERSATION_STAY_KEPT)


def test_nothing_is_said_of_no_conversation() -> None:
    """There is no sentence about one."""
    reply = pb.ExplainDecisionResponse()
    reply.candidates.add(candidate=common_pb2.Candidate(tier="small", endpoint="e0"), score=1.0)
    assert "conversation" not in " ".join(explain.words(explain.facts(reply)))


def test_an_explored_decision_is_told_with_what_the_policy_liked_best() -> None:
    """Its probability is that of the draw."""
    reply = pb.ExplainDecisionResponse(
        policy="price", explored=True, behavior_probability=0.025, action=1
    )
    for tier, score in (("small", 0.3), ("large", 0.2)):
        candidate = common_pb2.Candidate(tier=tier, endpoint="e0")
        reply.candidates.add(candidate=candidate, allowed=True, score=score)
    text = " ".join(explain.words(explain.facts(reply)))
    assert "Exploration drew it, with probability 0.025; price gave small@e0 the highest" in text
