"""Tasks of the reference tiers: right answers, stable splits, clear errors."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.reference_tiers.tasks import (
    MAX_ANSWER_CHARS,
    MAX_PROMPT_CHARS,
    TASKS,
    Split,
    TaskError,
    eval_set,
    get_task,
    score,
    split_of,
    task_names,
)
from trainer.reference_tiers.tokenizer import CharTokenizer

names = st.sampled_from(task_names())
seeds = st.integers(0, 2**32)


def solve(prompt: str) -> str:
    """Answers a prompt from its text alone, written independently of the generators."""
    kind, _, body = prompt.removesuffix("=").partition(":")
    if kind == "rev":
        return "".join(reversed(body))
    if kind == "sort":
        return "".join(sorted(body))
    if kind == "add":
        first, second = body.split("+")
        return str(int(first) + int(second)).rjust(len(first) + 1, "0")[::-1]
    word, places = body.split("?")

    return "".join(word[int(place)] for place in places)


@given(names, seeds, st.sampled_from(list(Split)))
def test_answer_is_right_and_short(name: str, seed: int, split: Split) -> None:
    """Every example states the right answer, keeps the length limits and fits the vocabulary."""
    example = get_task(name).sample(random.Random(seed), split)
    assert example.answer == solve(example.prompt)
    assert len(example.prompt) <= MAX_PROMPT_CHARS
    assert 4 <= len(example.answer) <= MAX_ANSWER_CHARS
    assert CharTokenizer().encode(example.prompt + example.answer)


@given(names, seeds)
def test_same_seed_gives_same_examples(name: str, seed: int) -> None:
    """Sampling is a function of the random state."""
    first, second = (random.Random(seed) for _ in range(2))
    task = get_task(name)
    assert [task.sample(first) for _ in range(3)] == [task.sample(second) for _ in range(3)]


@given(names, seeds, st.sampled_from(list(Split)))
def test_splits_are_disjoint(name: str, seed: int, split: Split) -> None:
    """A prompt's split follows from the prompt alone, so no prompt is in both."""
    example = get_task(name).sample(random.Random(seed), split)
    assert split_of(example.prompt) is split


def test_eval_share_is_about_a_tenth() -> None:
    """The held-out part is neither empty nor most of the prompts."""
    held_out = sum(split_of(f"rev:{number:x}=") is Split.EVAL for number in range(5000))
    assert 400 <= held_out <= 600


@pytest.mark.parametrize("name", task_names())
def test_every_level_can_be_drawn(name: str) -> None:
    """A fixed level is honoured, from the curriculum's easiest to the hardest."""
    task = get_task(name)
    for level in range(task.easiest_level, task.levels[-1] + 1):
        assert task.sample(random.Random(1), Split.TRAIN, level).level == level


@pytest.mark.parametrize("name", task_names())
def test_answer_lengths_suit_one_deadline(name: str) -> None:
    """Mean answer lengths of the tasks lie close together."""
    lengths = [len(each.answer) for each in eval_set(name, 300)]
    assert 6.0 <= sum(lengths) / len(lengths) <= 10.0


def test_eval_set_is_fixed_by_its_seed() -> None:
    """The same seed gives the same set, another seed another one."""
    assert eval_set("sort", 20, 3) == eval_set("sort", 20, 3)
    assert eval_set("sort", 20, 3) != eval_set("sort", 20, 4)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    """Unknown task, split and level and an empty set are errors that name what exists."""
    with pytest.raises(TaskError, match="unknown task 'rhyme'; known tasks: reverse, sort, addi"):
        get_task("rhyme")
    with pytest.raises(TaskError, match="unknown split 'test'; known splits: train, eval"):
        get_task("sort").sample(random.Random(1), "test")
    with pytest.raises(
        TaskError, match=f"no level 99; known levels: .* to {max(TASKS['sort'].levels)}"
    ):
        get_task("sort").sample(random.Random(1), level=99)
    with pytest.raises(TaskError, match="example_count: must be at least 1, got 0"):
        eval_set("sort", 0)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [("abc", "abc", 1.0), ("abc", " abc\n", 1.0), ("abc", "abcd", 0.0), ("abc", "", 0.0)],
)
def test_score_is_exact_match(answer: str, text: str, expected: float) -> None:
    """Only the whole answer counts; white space around it does not."""
    assert score(answer, text) == expected


def test_tasks_import_nothing_heavy() -> None:
    """Load generators import the tasks, so neither torch nor numpy may come along."""
    code = "import sys, trainer.reference_tiers.tasks; print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "set()"
