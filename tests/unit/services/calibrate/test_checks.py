"""Whether an answer is right, by every kind of match."""

from __future__ import annotations

import pytest

from services.calibrate.checks import Check, choice_in, number_in

CHOICES = ("Paris", "Rome", "Rome or Paris")


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        (Check("exact", "yes"), " yes\n", "yes."),
        (Check("contains", "Paris"), "It is PARIS.", "It is Rome."),
        (Check("regex", r"^\d{3}-\d{4}$"), "555-1234", "call 555-1234"),
        (Check("number", "1,200"), "600 + 600 = 1200.0", "1200 of 1300"),
        (Check("number", "-3.5"), "So x = -3.5.", "3.5"),
        (Check("choice", "Rome", CHOICES), "B", "A"),
    ],
)
def test_an_answer_is_right_by_its_match(check: Check, right: str, wrong: str) -> None:
    """Each kind of match takes what it should and nothing else."""
    assert check.is_right(right)
    assert not check.is_right(wrong)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", "Rome"),
        ("(b) because", "Rome"),
        ("Answer: Rome", "Rome"),
        ("rome or paris, surely", "Rome or Paris"),
        ("A trip to Rome", "Rome"),
        ("A: Paris", "Paris"),
        ("D", None),
        ("none of them", None),
    ],
)
def test_a_choice_is_made_by_letter_or_by_text(text: str, choice: str | None) -> None:
    """A letter at the start counts, else the text that is named first, the longest at one place."""
    assert choice_in(text, CHOICES) == choice


@pytest.mark.parametrize(
    ("text", "number"), [("", None), ("no digits", None), ("2 + 2 = 4", 4.0), (".5e1", 5.0)]
)
def test_the_last_number_counts(text: str, number: float | None) -> None:
    """Answers that show their work end with the result."""
    assert number_in(text) == number
