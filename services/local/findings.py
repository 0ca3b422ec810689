"""What the doctor says."""

from __future__ import annotations

from dataclasses import dataclass

GOOD, ODD, BAD = "good", "odd", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        subject: What was looked at.
        level: ``good``, ``odd`` (it works, or may) or ``bad``.
        text: What was found.
        advice: What to do; empty where all is well.
    """

    subject: str
    level: str
    text: str
    advice: str = ""
