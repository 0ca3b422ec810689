"""Text tasks of the reference tiers: seeded examples, exact-match scores, graded difficulty.

Four tasks, all at the level of characters, all with answers of 5 to 10 characters so that one
deadline suits them all. A prompt names its task and ends in ``=``; the answer follows:

========  ========================  ============  ===============================================
task      prompt                    answer        level
========  ========================  ============  ===============================================
reverse   ``rev:kqzab=``            ``bazqk``     letters to write backwards
sort      ``sort:kqzab=``           ``abkqz``     letters to put into alphabetical order
addition  ``add:0004821+0000937=``  ``85750000``  digits in use; the sum is written ones first
recall    ``get:kqzab?310243=``     ``aqkzba``    letters stored; digits ask for places, from 0
========  ========================  ============  ===============================================

Train and eval examples never meet: a keyed hash of the prompt puts each prompt in exactly one
split. The module needs the standard library only, because load generators import it.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import random
import string
from collections.abc import Callable, Mapping, Sequence

EVAL_SHARE = 0.1
"""Share of all possible prompts that belongs to the eval split."""

MAX_PROMPT_CHARS = 32
"""Longest prompt any task makes, in characters."""

ADDITION_DIGITS = 7
"""Written digits of each number of an addition."""

RECALL_ASKED = 6
"""Places a recall prompt asks for."""

MAX_ANSWER_CHARS = 12
"""Longest answer any task asks for, in characters (without the end-of-sequence token)."""


class TaskError(ValueError):
    """A task name, level or split that does not exist; the text lists those that do."""


class Split(enum.StrEnum):
    """Which side of the train/eval border a prompt lies on."""

    TRAIN = "train"
    EVAL = "eval"


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One question with its only right answer.

    Attributes:
        task: Name of the task.
        level: Difficulty inside the task; larger is harder.
        prompt: Text to send, ends in ``=``.
        answer: Text that must come back, character for character.
    """

    task: str
    level: int
    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A class of examples with graded difficulty.

    Attributes:
        name: Name used in requests, quality tables and command lines.
        level_weights: Relative frequency of each difficulty level.
        easiest_level: Lowest level that makes sense; levels below those of ``level_weights`` serve
            as a training curriculum and are never scored.
        make: Draws one (prompt, answer) of a level.
    """

    name: str
    level_weights: Mapping[int, float]
    easiest_level: int
    make: Callable[[random.Random, int], tuple[str, str]]

    @property
    def levels(self) -> tuple[int, ...]:
        """Difficulty levels from easy to hard."""
        return tuple(sorted(self.level_weights))

    def sample(
        self, rng: random.Random, split: Split | str = Split.EVAL, level: int | None = None
    ) -> Example:
        """Draws one example.

        Args:
            rng: Source of randomness; the same state gives the same example.
            split: ``eval`` (held out, the default) or ``train``.
            level: Fixes the difficulty; by default it is drawn from ``level_weights``.

        Returns:
            An example whose prompt belongs to ``split``.

        Raises:
            TaskError: The split or the level does not exist.
        """
        try:
            wanted = Split(split)
        except ValueError:
            known = ", ".join(Split)
            raise TaskError(f"split: unknown split {split!r}; known splits: {known}") from None
        if level is None:
            levels = self.levels
            weights = [self.level_weights[each] for each in levels]
            level = rng.choices(levels, weights)[0]
        elif not self.easiest_level <= level <= self.levels[-1]:
            raise TaskError(
                f"level: task {self.name!r} has no level {level}; "
                f"known levels: {self.easiest_level} to {self.levels[-1]}"
            )
        while True:
            prompt, answer = self.make(rng, level)
            if split_of(prompt) is wanted:
                return Example(task=self.name, level=level, prompt=prompt, answer=answer)


def split_of(prompt: str) -> Split:
    """Says which split a prompt belongs to, from a hash that no seed changes."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4, person=b"tiercel-split").digest()
    return Split.EVAL if int.from_bytes(digest) < EVAL_SHARE * 2**32 else Split.TRAIN


def score(answer: str, text: str) -> float:
    """Scores a completion by exact match.

    Args:
        answer: The right answer.
        text: What the model wrote; white space around it does not count.

    Returns:
        1.0 if they are equal, else 0.0.
    """
    return 1.0 if text.strip() == answer else 0.0


def task_names() -> tuple[str, ...]:
    """Names of all tasks, in the order of tables."""
    return tuple(TASKS)


def get_task(name: str) -> Task:
    """Looks a task up.

    Raises:
        TaskError: No such task; the text lists the known ones.
    """
    try:
        return TASKS[name]
    except KeyError:
        known = ", ".join(TASKS)
        raise TaskError(f"task: unknown task {name!r}; known tasks: {known}") from None


def eval_set(name: str, example_count: int, seed: int = 0) -> list[Example]:
    """Draws a fixed set of held-out examples of one task.

    Args:
        name: Task to draw from.
        example_count: How many, at least 1.
        seed: Same seed, same set.

    Raises:
        TaskError: Unknown task, or fewer than one example asked for.
    """
    if example_count < 1:
        raise TaskError(f"example_count: must be at least 1, got {example_count}")
    task = get_task(name)
    rng = random.Random(f"tiercel-eval-{name}-{seed}")
    return [task.sample(rng, Split.EVAL) for _ in range(example_count)]


def _letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=count))


def _reverse(rng: random.Random, level: int) -> tuple[str, str]:
    word = _letters(rng, level)
    return f"rev:{word}=", word[::-1]


def _sort(rng: random.Random, level: int) -> tuple[str, str]:
    word = _letters(rng, level)
    return f"sort:{word}=", "".join(sorted(word))


def _addition(rng: random.Random, level: int) -> tuple[str, str]:
    """``level`` digits behind leading zeros; ones first, so that carries run with the writing."""
    first, second = (rng.randrange(10**level) for _ in range(2))
    width = ADDITION_DIGITS
    return f"add:{first:0{width}d}+{second:0{width}d}=", f"{first + second:0{width + 1}d}"[::-1]


def _recall(rng: random.Random, level: int) -> tuple[str, str]:
    """``level`` letters are stored; places, counted from 0, are asked for and may repeat."""
    word = _letters(rng, level)
    places = rng.choices(range(level), k=RECALL_ASKED)
    return f"get:{word}?{''.join(map(str, places))}=", "".join(word[place] for place in places)


def _uniform(levels: Sequence[int]) -> dict[int, float]:
    return dict.fromkeys(levels, 1.0)


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("reverse", _uniform(range(5, 11)), 3, _reverse),
        Task("sort", _uniform(range(5, 11)), 3, _sort),
        Task("addition", _uniform(range(3, 8)), 1, _addition),
        Task("recall", _uniform(range(5, 11)), 3, _recall),
    )
}
"""All tasks by name."""
