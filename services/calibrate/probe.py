"""Single requests and closed loops straight at a live endpoint's tiers, with stamps."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence

from services.common.triton.client import TritonClient
from services.common.triton.errors import TierError
from services.local.errors import CommandError

REQUEST_TIMEOUT_S = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a tier.

    Attributes:
        task: Its task; empty if it belongs to none.
        prompt: Prompt; for the reference tiers one character is one token.
        answer: The right answer; empty if there is none.
        max_output_tokens: Limit of the answer.
    """

    task: str
    prompt: str
    answer: str
    max_output_tokens: int


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
    """

    question: Question
    text: str
    first_token_s: float
    total_s: float
    output_token_count: int
    began_s: float


async def ask(client: TritonClient, model: str, question: Question) -> Sample:
    """Asks one question.

    Raises:
        CommandError: The endpoint did not answer it.
    """
    began_s = time.monotonic()
    first_s, text, tokens = 0.0, "", 0
    try:
        stream = client.generate(
            model, question.prompt, question.max_output_tokens, timeout_s=REQUEST_TIMEOUT_S
        )
        async with contextlib.aclosing(stream) as chunks:
            async for chunk in chunks:
                if chunk.token_count and not first_s:
                    first_s = time.monotonic() - began_s
                text += chunk.text
                tokens += chunk.token_count
    except TierError as error:
        raise CommandError(f"{model} at {client.address}: {error}") from None
    total_s = time.monotonic() - began_s
    return Sample(question, text, first_s or total_s, total_s, tokens, began_s)


async def closed_loop(
    client: TritonClient,
    model: str,
    questions: Sequence[Question],
    concurrency: int,
    *,
    until_s: float | None = None,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> list[Sample]:
    """Keeps ``concurrency`` questions under way, in order.

    Args:
        client: The endpoint.
        model: Triton model.
        questions: What to ask; each once, or with ``until_s`` over and over.
        concurrency: Questions under way, at least 1.
        until_s: Monotonic time at which no new question is sent; None means until all are asked.
        on_sample: Gets every answer as it comes.

    Raises:
        CommandError: The endpoint did not answer one of them.
    """
    samples: list[Sample] = []
    next_index = 0

    async def worker() -> None:
        nonlocal next_index
        while next_index < len(questions) or until_s is not None:
            if until_s is not None and time.monotonic() >= until_s:
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
