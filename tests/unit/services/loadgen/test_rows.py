"""Rows of a run: when the tokens of a stream came, beside their due times."""

from __future__ import annotations

import pytest

from services.loadgen.rows import Row, latest_token_s
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


def streamed(*pieces: tuple[float, int], end_s: float) -> Row:
    """A row whose messages came at these times with so many tokens, and then the completion."""
    messages = [
        pb.GenerateStreamResponse(chunk=pb.Chunk(text="x", token_count=count))
        for _, count in pieces
    ]
    messages.append(pb.GenerateStreamResponse(completion=pb.Completion(tier="small")))
    return Row(
        latency_s=end_s,
        message_s=[*(came_s for came_s, _ in pieces), end_s],
        payload=[message.SerializeToString() for message in messages],
    )


@pytest.mark.parametrize(
    ("pieces", "latest_s"),
    [
        ([(0.3, 1)], 0.3),
        ([(0.3, 1), (0.35, 1), (0.4, 1)], 0.3),  # faster than is read: the first one counts
        ([(0.3, 1), (0.5, 1), (0.7, 1)], 0.5),  # slower: the last one, 0.2 s after the first's
        ([(0.3, 1), (0.9, 1), (0.9, 1)], 0.8),  # a pause before the second
        ([(0.3, 4), (0.8, 4)], 0.4),  # the fifth token of all, due 0.4 s after the first
    ],
)
def test_the_latest_token_is_the_one_most_behind_its_due_time(
    pieces: list[tuple[float, int]], latest_s: float
) -> None:
    """Tokens of one message came together; the completion brings none."""
    assert latest_token_s(streamed(*pieces, end_s=2.0), 0.1) == pytest.approx(latest_s)


def test_an_answer_without_tokens_came_with_its_end() -> None:
    """There is nothing else of it."""
    assert latest_token_s(streamed(end_s=0.4), 0.1) == 0.4
