"""What live tiers are asked: files of prompts, made-up words, reference tasks."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from services.calibrate.checks import Check
from services.calibrate.questions import (
    DEFAULT_MAX_OUTPUT_TOKENS,
    Question,
    made_questions,
    read_questions,
    reference_questions,
    spread,
)
from services.local.errors import InputError


def written(folder: pathlib.Path, *lines: dict[str, Any]) -> pathlib.Path:
    """A file of prompts."""
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in lines), encoding="utf-8")
    return path


def test_a_line_says_what_is_right(tmp_path: pathlib.Path) -> None:
    """Match, choices and guess come with their defaults; the mesh's task gives the limit."""
    path = written(
        tmp_path,
        {"task": "sums", "prompt": "2+2=", "answer": 4, "match": "number"},
        {"task": "pick", "prompt": "A or B?", "answer": "x", "choices": ["x", "y"]},
        {"task": "pick", "prompt": "?", "answer": "yes", "guess": 0.5, "max_output_tokens": 3},
    )
    asked = read_questions(path, {"sums": 7, "pick": 9}, scored=True)
    assert [each.max_output_tokens for each in asked] == [7, 9, 3]
    assert [each.check for each in asked] == [
        Check("number", "4"),
        Check("choice", "x", ("x", "y"), 0.5),
        Check("exact", "yes", (), 0.5),
    ]


def test_prompts_alone_are_enough_to_measure_time(tmp_path: pathlib.Path) -> None:
    """Neither task nor answer is needed then; tokens may be stated."""
    path = written(tmp_path, {"prompt": "hello", "prompt_tokens": 900, "id": "of your log"})
    [asked] = read_questions(path, {}, scored=False)
    assert asked == Question("", "hello", DEFAULT_MAX_OUTPUT_TOKENS, None, 900)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"prompt": "p", "answer": "a"}, "task: is missing"),
        ({"task": "other", "prompt": "p", "answer": "a"}, "no task 'other'; it has sums"),
        ({"task": "sums", "answer": "a"}, "prompt: is missing"),
        ({"task": "sums", "prompt": "p"}, "answer: is missing"),
        ({"task": "sums", "prompt": "p", "answer": "a", "match": "about"}, "match: must be one of"),
        ({"task": "sums", "prompt": "p", "answer": "(", "match": "regex"}, "no regular expression"),
        (
            {"task": "sums", "prompt": "p", "answer": "a{99999999999}", "match": "regex"},
            "no regular expression",
        ),
        (
            {"task": "sums", "prompt": "p", "answer": "(" * 5000 + ")" * 5000, "match": "regex"},
            "no regular expression",
        ),
        ({"task": "sums", "prompt": "p", "answer": "x", "match": "number"}, "must be a number"),
        ({"task": "sums", "prompt": "p", "answer": "x", "match": "choice"}, "choices: must be"),
        (
            {"task": "sums", "prompt": "p", "answer": "x", "choices": ["y", "z"]},
            "one of the choices",
        ),
        ({"task": "sums", "prompt": "p", "answer": "a", "guess": 2}, "guess: must be 0 to 1"),
    ],
)
def test_a_line_that_is_wrong_says_which_key(
    tmp_path: pathlib.Path, line: dict[str, Any], said: str
) -> None:
    """The message has file, line, key and what would be right."""
    with pytest.raises(InputError, match=f"own.jsonl: line 1: .*{said}"):
        read_questions(written(tmp_path, line), {"sums": 7}, scored=True)


def test_made_up_prompts_have_the_words_asked_for() -> None:
    """So many of each length, the same for the same seed."""
    asked = made_questions([3, 900], 0)
    assert sorted({len(each.prompt.split()) for each in asked}) == [3, 900]
    assert asked == made_questions([3, 900], 0)


def test_a_few_prompts_still_go_from_the_shortest_to_the_longest() -> None:
    """Of many prompts some are taken over their whole range."""
    asked = [Question("", "w" * count, 1) for count in range(1, 1001)]
    lengths = sorted(len(each.prompt) for each in spread(asked, 5, 0))
    assert lengths[0] == 1
    assert lengths[-1] == 1000
    assert len(lengths) == 5


def test_reference_questions_are_of_every_task_and_have_answers() -> None:
    """Each can be scored by exact match."""
    asked = reference_questions(3, 0)
    assert len({each.task for each in asked}) == 4
    assert all(each.check is not None and each.check.match == "exact" for each in asked)
