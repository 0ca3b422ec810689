"""Tiers whose answers are timed like those of the simulator's devices, behind a live router.

Queues, batches, iterations and caches of prefixes in plain Python, driven by the timers of the
running loop. One iteration of one tier runs at a time; the tiers with work take turns
(`trainer.simulation.engine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.profile import TierProfile
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierOverloadedError
from tests.fakes.asking import AsksByGenerating


@dataclass(eq=False)
class Sequence:
    """One request at a tier; `made` is put for each token, None ends it at its timeout."""

    prompt: int
    output: int
    conversation: int = -1
    made: int = 0
    tokens: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)


@dataclass
class Tier:
    """Queue and batch of one tier, and the tokens it keeps of conversations, oldest first."""

    profile: TierProfile
    queue: list[Sequence] = field(default_factory=list)
    batch: list[Sequence] = field(default_factory=list)
    kept: dict[int, int] = field(default_factory=dict)

    def new_tokens(self, sequence: Sequence) -> int:
        """Returns what of a prompt is not cached: whole blocks are, but never its last token."""
        known = min(self.kept.get(sequence.conversation, 0), sequence.prompt - 1)
        return sequence.prompt - known // 16 * 16

    def keep(self, conversation: int, tokens: int) -> None:
        """Keeps a conversation as the one used last; the oldest go until there is room."""
        self.kept.pop(conversation, None)
        if conversation < 0 or tokens > self.profile.prefix_cache_tokens:
            return
        self.kept[conversation] = tokens
        while sum(self.kept.values()) > self.profile.prefix_cache_tokens:
            del self.kept[next(iter(self.kept))]


class Device(AsksByGenerating):
    """The tiers of one endpoint, which share its time; stands for a `TritonClient`.

    Args:
        profiles: costs per model, in the order in which they take turns.
        output_tokens: returns the true length of the answer to a request, known by its seed.
        slow: factor on every iteration's time.
        conversation: returns a request's conversation, known by its seed; -1 = none.
    """

    def __init__(
        self,
        profiles: Mapping[str, TierProfile],
        output_tokens: Callable[[int], int],
        slow: float = 1.0,
        conversation: Callable[[int], int] = lambda _: -1,
    ) -> None:
        """Makes an idle device."""
        self._tiers = {model: Tier(profile) for model, profile in profiles.items()}
        self._order = list(self._tiers.values())
        self._output_tokens = output_tokens
        self._slow = slow
        self._conversation = conversation
        self._active: Tier | None = None
        self._last = 0

    async def close(self) -> None:
        """Does nothing."""

    async def generate(
        self, model: str, prompt: str, max_output_tokens: int, **options: Any
    ) -> AsyncGenerator[TierChunk, None]:
        """Answers token by token; ends at the request's timeout, as a tier does."""
        tier = self._tiers[model]
        seed = options["seed"]
        sequence = Sequence(len(prompt), self._output_tokens(seed), self._conversation(seed))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(options["timeout_s"], sequence.tokens.put_nowait, None)
        tier.queue.append(sequence)
        if self._active is None:
            self._start()
        try:
            while True:
                made = await sequence.tokens.get()
                if made is None:
                    raise TierOverloadedError("QUEUE_TIMEOUT", "Request timeout expired")
                is_last = made == sequence.output
                yield TierChunk("x", 1, is_last, "stop" if is_last else "")
                if is_last:
                    return
        finally:
            timer.cancel()
            for held in (tier.queue, tier.batch):
                if sequence in held:
                    held.remove(sequence)

    def _start(self) -> None:
        """Starts the next iteration of the next tier with work; idles if there is none."""
        self._active = None
        for turn in range(1, len(self._order) + 1):
            place = (self._last + turn) % len(self._order)
            tier = self._order[place]
            if not tier.queue and not tier.batch:
                continue
            tokens = _admit(tier)
            cost = tier.profile
            duration_s = cost.step_s + cost.per_sequence_s * len(tier.batch)
            duration_s += cost.per_prompt_token_s * tokens
            self._active, self._last = tier, place
            asyncio.get_running_loop().call_later(duration_s * self._slow, self._finish)
            return

    def _finish(self) -> None:
        """Gives every sequence of the batch a token and starts the next iteration."""
        tier = self._active
        assert tier is not None
        # The simulator files what ends with an iteration newest first.
        for sequence in reversed(tier.batch):
            sequence.made += 1
            sequence.tokens.put_nowait(sequence.made)
            if sequence.made == sequence.output:
                tier.keep(sequence.conversation, sequence.prompt + sequence.output)
        tier.batch = [each for each in tier.batch if each.made < each.output]
        self._start()


def _admit(tier: Tier) -> float:
    """Moves what fits from queue to batch, in order; returns the prompt tokens admitted."""
    tokens, cost = 0.0, tier.profile
    while tier.queue and len(tier.batch) < cost.max_batch:
        head = tier.queue[0]
        prompt = tier.new_tokens(head)
        if tokens and tokens + prompt > cost.max_prompt_tokens_per_step:
            break
        tokens += prompt
        tier.batch.append(tier.queue.pop(0))
    for sequence in tier.batch:
        if sequence.made == 0 and sequence.conversation in tier.kept:
            tier.keep(sequence.conversation, tier.kept[sequence.conversation])
    return tokens
