"""What live tiers are asked: prompts of the user's own traffic, or of the reference tasks."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from services.calibrate.checks import MATCHES, MOST_CHOICES, Check
from services.calibrate.lines import LineError, name_at, number_at, read_lines, text_at
from services.common.mesh_settings import HIGHEST_LIMIT_TOKENS, LOWEST_LIMIT_TOKENS
from trainer.reference_tiers import tasks as reference_tasks

DEFAULT_MAX_OUTPUT_TOKENS = 16
MADE_PER_LENGTH = 4
MOST_PROMPT_TOKENS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a tier.

    Attributes:
        task: Its task; empty if it belongs to none.
        prompt: Prompt.
        max_output_tokens: Limit of the answer.
        check: What makes an answer right; None if that is not known.
        token_count: Tokens of the prompt as its file states them; 0 if it does not.
    """

    task: str
    prompt: str
    max_output_tokens: int
    check: Check | None = None
    token_count: int = 0


def read_questions(
    path: pathlib.Path, limits: Mapping[str, int], *, scored: bool
) -> list[Question]:
    """Reads a file of prompts, one JSON object a line.

    Keys: ``prompt``; ``task``; ``answer``, ``match``, ``choices``, ``guess`` as in Check;
    ``max_output_tokens``; ``prompt_tokens``. Others are left alone.

    Args:
        path: The file.
        limits: Limit of output tokens by task, of the mesh's settings; empty: any task will do.
        scored: Whether every line needs a task and an answer.

    Raises:
        InputError: The file or a line is wrong; every mistake has its line.
    """
    return read_lines(path, lambda line: _question(line, limits, scored))


def _question(line: dict[str, Any], limits: Mapping[str, int], scored: bool) -> Question:
    task = name_at(line, "task") if scored or "task" in line else ""
    if task and limits and task not in limits:
        raise LineError(f"task: the mesh has no task {task!r}; it has {', '.join(limits)}")
    limit = limits.get(task, DEFAULT_MAX_OUTPUT_TOKENS)
    low, high = LOWEST_LIMIT_TOKENS, HIGHEST_LIMIT_TOKENS
    return Question(
        task,
        text_at(line, "prompt"),
        int(number_at(line, "max_output_tokens", low, high, limit)),
        _check(line) if scored else None,
        int(number_at(line, "prompt_tokens", 1, MOST_PROMPT_TOKENS, 0)),
    )


def _check(line: dict[str, Any]) -> Check:
    match = text_at(line, "match", "choice" if "choices" in line else "exact")
    if match not in MATCHES:
        raise LineError(f"match: must be one of {', '.join(MATCHES)}, got {match!r}")
    answer = line.get("answer")
    is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
    expected = str(answer) if is_number else text_at(line, "answer")
    choices: tuple[str, ...] = ()
    if match == "choice":
        found = line.get("choices")
        if not isinstance(found, list) or not 2 <= len(found) <= MOST_CHOICES:
            raise LineError(f"choices: must be a list of 2 to {MOST_CHOICES} texts")
        choices = tuple(str(each) for each in found)
        if len(set(choices)) != len(choices) or expected not in choices:
            raise LineError(f"answer: must be one of the choices, each there once, got {expected}")
    if match == "number":
        try:
            float(expected.replace(",", ""))
        except ValueError:
            raise LineError(f"answer: must be a number, got {expected!r}") from None
    if match == "regex":
        try:
            re.compile(expected)
        except (re.error, OverflowError, RecursionError) as error:
            raise LineError(f"answer: is no regular expression: {error}") from None
    guess = number_at(line, "guess", 0.0, 1.0, 1.0 / len(choices) if choices else 0.0)
    return Check(match, expected, choices, guess)


def reference_questions(count: int, seed: int) -> list[Question]:
    """Held-out examples of every reference task, mixed as in real traffic."""
    limit = reference_tasks.MAX_ANSWER_CHARS + 2
    asked = [
        Question(task, each.prompt, limit, Check("exact", each.answer))
        for task in reference_tasks.task_names()
        for each in reference_tasks.eval_set(task, count, seed)
    ]
    random.Random(seed).shuffle(asked)
    return asked


def made_questions(word_counts: Sequence[int], seed: int) -> list[Question]:
    """Prompts of made-up words, MADE_PER_LENGTH of each number of words, mixed."""
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))

    made = [
        Question("", " ".join(word() for _ in range(count)), DEFAULT_MAX_OUTPUT_TOKENS)
        for count in word_counts
        for _ in range(MADE_PER_LENGTH)
    ]
    rng.shuffle(made)
    return made


def spread(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """At most so many of the questions, from the shortest prompt to the longest, mixed."""
    by_length = sorted(questions, key=lambda each: len(each.prompt))
    if len(by_length) > count:
        step = (len(by_length) - 1) / (count - 1)
        by_length = [by_length[round(index * step)] for index in range(count)]
    random.Random(seed).shuffle(by_length)
    return by_length
