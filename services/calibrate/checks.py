"""Whether an answer is right: what a line of a file of prompts may ask for."""

from __future__ import annotations

import dataclasses
import math
import re
import string

MATCHES = ("exact", "contains", "regex", "number", "choice")
MOST_CHOICES = len(string.ascii_uppercase)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """What makes an answer right.

    Attributes:
        match: One of MATCHES.
        expected: The right answer; a pattern for ``regex``, one of the choices for ``choice``.
        choices: What there is to choose from, in the order of their letters; for ``choice``.
        guess: Share of right answers that guessing gives, 0 to 1.
    """

    match: str
    expected: str
    choices: tuple[str, ...] = ()
    guess: float = 0.0

    def is_right(self, text: str) -> bool:
        """Returns whether a tier's answer is right; white space around it does not count."""
        if self.match == "contains":
            return self.expected.casefold() in text.casefold()
        if self.match == "regex":
            return re.search(self.expected, text) is not None
        if self.match == "number":
            said, wanted = number_in(text), number_in(self.expected)
            return (
                said is not None
                and wanted is not None
                and math.isclose(said, wanted, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
            )
        if self.match == "choice":
            return choice_in(text, self.choices) == self.expected
        return text.strip() == self.expected.strip()


def number_in(text: str) -> float | None:
    """Returns the last number of a text, where answers that show their work end; None if none."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def choice_in(text: str, choices: tuple[str, ...]) -> str | None:
    """Returns the choice an answer makes: by a letter it begins with, else the text named first."""
    start = re.match(r"\W*([A-Za-z])(?![\w'])", text)
    if start is not None:
        index = string.ascii_uppercase.find(start[1].upper())
        # A lone "a" before another word is the article.
        is_article = start[1] in "aA" and re.match(r"\s+\w", text[start.end() :]) is not None
        if index < len(choices) and not is_article:
            return choices[index]
    folded = text.casefold()
    named = [(folded.find(each.casefold()), -len(each), each) for each in choices]
    return min(((at, size, each) for at, size, each in named if at >= 0), default=(0, 0, None))[2]
