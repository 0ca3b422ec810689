"""How one policy does by a priority class beside another one, on the same requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassGap:
    """One score of one class.

    Attributes:
        priority: name of the class.
        score: ``performance`` or ``availability``.
        value: mean of the policy's over the scenarios that had requests of the class.
        reference: the other policy's.
        half: half the width of the 95 % interval of their paired difference.
    """

    priority: str
    score: str
    value: float
    reference: float
    half: float

    @property
    def gap(self) -> float:
        """How much more the policy has than the other one."""
        return self.value - self.reference

    def is_worse(self, margin: float) -> bool:
        """Returns whether the policy is surely worse, and by more than a margin.

        A class has fewer requests than all together, so its scores scatter more: a difference
        within the interval says nothing.
        """
        # Written so that a score that is no number counts as worse.
        return not (self.gap >= -margin or self.gap + self.half >= 0.0)

    def __str__(self) -> str:
        """Returns e.g. "availability 0.9876 (-0.0012 ± 0.0031)"."""
        return f"{self.score} {self.value:.4f} ({self.gap:+.4f} ± {self.half:.4f})"
