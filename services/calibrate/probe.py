"""Single requests and closed loops straight at a live endpoint's tiers, with stamps."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

from services.calibrate.questions import Question
from services.common.tiers.client import TierClient
from services.common.tiers.errors import TierError
from services.local.errors import CommandError

REQUEST_TIMEOUT_S = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One answered question.

    Attributes:
        question: What was asked.
        text: The answer.
        first_token_s: From sending to the first piece, in seconds.
        total_s: From sending to the end, in seconds.
        output_token_count: Tokens in the answer.
        began_s: Monotonic time of sending.
        stamps: Monotonic time and new tokens of every piece that had any.
    """

    question: Question
    text: str
    first_token_s: float
    total_s: float
    output_token_count: int
    began_s: float
    stamps: tuple[tuple[float, int], ...]


async def ask(client: TierClient, model: str, question: Question) -> Sample:
    """Asks one question.

    Raises:
        CommandError: The endpoint did not answer it.
    """
    began_s = time.monotonic()
    text = ""
    stamps: list[tuple[float, int]] = []
    try:
        stream = client.generate(
            model, question.prompt, question.max_output_tokens, timeout_s=REQUEST_TIMEOUT_S
        )
        async with contextlib.aclosing(stream) as chunks:
            async for chunk in chunks:
                if chunk.token_count:
                    stamps.append((time.monotonic(), chunk.token_count))
                text += chunk.text
    except TierError as error:
        raise CommandError(f"{model} at {client.address}: {error}") from None
    total_s = time.monotonic() - began_s
    first_s = stamps[0][0] - began_s if stamps else total_s
    count = sum(tokens for _, tokens in stamps)
    return Sample(question, text, first_s, total_s, count, began_s, tuple(stamps))


async def closed_loop(
    client: TierClient,
    model: str,
    questions: Sequence[Question],
    concurrency: int,
    *,
    until_s: float | None = None,
    fewest: int = 0,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """Keeps ``concurrency`` questions under way, in order.

    Args:
        client: The endpoint.
        model: The server's own name of the model.
        questions: What to ask; each once, or with ``until_s`` over and over.
        concurrency: Questions under way, at least 1.
        until_s: Monotonic time at which no new question is sent; None means until all are asked.
        fewest: Answers that must have come before it stops at ``until_s``.
        on_sample: Gets every answer as it comes.

    Raises:
        CommandError: The endpoint did not answer one of them.
    """
    samples: list[Sample] = []
    next_index = 0

    async def worker() -> None:
        nonlocal next_index
        while next_index < len(questions) or until_s is not None:
            if until_s is not None and time.monotonic() >= until_s and len(samples) >= fewest:
                return
            question = questions[next_index % len(questions)]
            next_index += 1
            sample = await ask(client, model, question)
            samples.append(sample)
            on_sample(sample)

    workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
    return samples
