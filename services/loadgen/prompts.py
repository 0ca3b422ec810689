"""Prompts of a load run: pools given in its spec, made-up text for tasks without one."""

from __future__ import annotations

import dataclasses
import math
import random
import string
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to send.

    Attributes:
        task: Its task.
        text: What is sent.
        answer: The only right answer; None if answers to it cannot be scored.
        max_output_tokens: Limit of its answer; None means the task's own.
    """

    task: str
    text: str
    answer: str | None
    max_output_tokens: int | None = None

    def score(self, text: str | None) -> float:
        """Scores an answer by exact match: 1.0 or 0.0, NaN if it cannot be scored.

        Args:
            text: the answer; None if there was none, which is not the right one.
        """
        if self.answer is None:
            return math.nan
        return 1.0 if text is not None and text.strip() == self.answer else 0.0


def made_up_text(token_count: int, rng: random.Random) -> str:
    """Makes a text of so many words of three letters: as many tokens at four bytes a token."""
    letters = rng.choices(string.ascii_lowercase, k=3 * token_count)
    return " ".join("".join(letters[i : i + 3]) for i in range(0, len(letters), 3))


def draw_prompts(
    mix: Mapping[str, float],
    pools: Mapping[str, Sequence[Prompt]],
    count: int,
    *,
    seed: int,
    stretches: Sequence[tuple[slice, Mapping[str, float]]] = (),
) -> list[Prompt]:
    """Draws the prompts of a run: tasks by their shares, prompts of a task in the pool's order.

    Args:
        mix: Share of each task; only ratios count.
        pools: At least one prompt for every task of the mix.
        count: How many to draw.
        seed: Same seed, same tasks.
        stretches: Requests whose tasks, all of the mix, have other shares.
    """
    names = list(mix)

    def drawn(shares: Mapping[str, float], count: int, *place: int) -> NDArray[np.int64]:
        share = np.array([shares.get(name, 0.0) for name in names], dtype=np.float64)
        rng = np.random.default_rng([seed, 1, *place])
        return rng.choice(len(names), size=count, p=share / share.sum())

    picks = drawn(mix, count)
    for place, (where, shares) in enumerate(stretches):
        picks[where] = drawn(shares, len(picks[where]), place + 1)
    used = dict.fromkeys(names, 0)
    prompts = []
    for pick in picks:
        name = names[int(pick)]
        pool = pools[name]
        prompts.append(pool[used[name] % len(pool)])
        used[name] += 1
    return prompts
