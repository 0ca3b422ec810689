"""Colors and lines of policies, the same in every plot of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.evaluation.policies import REGRET_BASELINE
from trainer.evaluation.report.style import AMBER, BLUE, GREEN, RED, SOFT, VIOLET

LARGE_COLOR = RED
OTHER_COLORS = (VIOLET, "#2a9d9d", "#b5446e", "#8a8f3c", SOFT, "#9c6b4a", "#d98cb3")
OTHER_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))


class Palette:
    """One color and width per policy, the same in every plot."""

    def __init__(self, policies: Sequence[str], learned: str, small: str, large: str) -> None:
        """Takes the policies in the order of the legend."""
        self.learned, self.large = learned, large
        self._strong = {
            small: GREEN,
            large: LARGE_COLOR,
            REGRET_BASELINE: AMBER,
            learned: BLUE,
        }
        self._others = [name for name in policies if name not in self._strong]

    def is_strong(self, policy: str) -> bool:
        """Whether the policy is one the eye should follow; only those get a band."""
        return policy in self._strong

    def line(self, policy: str) -> dict[str, Any]:
        """Keyword arguments of a policy's line."""
        if self.is_strong(policy):
            own = policy == self.learned
            width, order = (2.6, 5) if own else (1.9, 4)
            color = self._strong[policy]
            return {"color": color, "lw": width, "zorder": order, "label": policy}
        number = self._others.index(policy) if policy in self._others else 0
        turn, index = divmod(number, len(OTHER_COLORS))
        return {
            "color": OTHER_COLORS[index],
            "ls": OTHER_DASHES[turn % len(OTHER_DASHES)],
            "lw": 1.1,
            "zorder": 3,
            "label": policy,
        }
