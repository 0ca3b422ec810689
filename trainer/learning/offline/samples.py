"""Paired samples, and the newest of them to fit a network to.

Shape letters: B decisions, C candidates, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class PairedSamples(NamedTuple):
    """Decisions with the return of every action tried.

    Attributes:
        x_BCF: features.
        allowed_BC: candidates allowed.
        tried_BC: candidates whose return was measured; at least two per row.
        return_BC: the returns; 0 where not tried.
    """

    x_BCF: NDArray[Any]
    allowed_BC: NDArray[Any]
    tried_BC: NDArray[Any]
    return_BC: NDArray[Any]


def joined(samples: Sequence[PairedSamples]) -> PairedSamples:
    """Returns samples one after the other."""
    return PairedSamples(*(np.concatenate(parts) for parts in zip(*samples, strict=True)))


class SamplePool:
    """The newest samples, up to a number of decisions."""

    def __init__(self, capacity: int) -> None:
        """Starts empty."""
        self._capacity = capacity
        self._parts: list[PairedSamples] = []
        self.total_count = 0
        """Decisions taken in, ever."""

    def __len__(self) -> int:
        """Returns the number of decisions held."""
        return sum(len(part.x_BCF) for part in self._parts)

    def add(self, samples: PairedSamples) -> None:
        """Takes in samples, at most as many as fit; the oldest beyond the bound go."""
        if len(samples.x_BCF):
            self._parts.append(samples)
            self.total_count += len(samples.x_BCF)
        if len(self) > self._capacity:
            self._parts = [PairedSamples(*(part[-self._capacity :] for part in self._whole()))]

    def sample(self, count: int, rng: np.random.Generator) -> PairedSamples:
        """Returns decisions drawn uniformly with replacement; must not be empty."""
        rows = rng.integers(len(self), size=count)
        return PairedSamples(*(part[rows] for part in self._whole()))

    def get_state(self) -> dict[str, NDArray[Any]]:
        """Returns what is held as arrays by name; nothing if it is empty."""
        return self._whole()._asdict() if self._parts else {}

    def set_state(self, arrays: Mapping[str, NDArray[Any]], total_count: int) -> None:
        """Goes on from what `get_state` returned and the number taken in by then."""
        self._parts = [PairedSamples(**arrays)] if arrays else []
        self.total_count = total_count

    def _whole(self) -> PairedSamples:
        if len(self._parts) > 1:
            self._parts = [joined(self._parts)]
        return self._parts[0]
