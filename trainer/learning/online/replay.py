"""Replay: the newest transitions in a ring, sampled uniformly; survives a restart.

Shape letters: N transitions, B batch, C candidates, F features.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ReplayError(ValueError):
    """Saved replay cannot be read, or does not fit this run."""


class Transitions(NamedTuple):
    """Transitions; the number of candidates may differ from one append to the next.

    Attributes:
        x_BCF: features at the decision.
        allowed_BC: candidates allowed.
        action_B: chosen row.
        return_B: discounted sum of rewards over the horizon.
        discount_B: discount of the bootstrap; 0 if there is none.
        next_x_BCF: features at the decision to bootstrap from.
        next_allowed_BC: candidates allowed there.
        shortfall_B: what the decision itself earned less than its features promised, <= 0; NaN
            where that is not known, empty if it is known of none.
    """

    x_BCF: NDArray[Any]
    allowed_BC: NDArray[Any]
    action_B: NDArray[Any]
    return_B: NDArray[Any]
    discount_B: NDArray[Any]
    next_x_BCF: NDArray[Any]
    next_allowed_BC: NDArray[Any]
    shortfall_B: NDArray[Any] = np.zeros(0, np.float32)


_EMPTY_CANDIDATES = 1


class Replay:
    """A ring of transitions. Rows of candidates a transition lacks are zero and not allowed.

    Features are kept as half floats: they are bounded by 5, so the rounding is below 0.1 percent
    of their range, and the ring is half as big.
    """

    def __init__(self, *, capacity: int, feature_count: int) -> None:
        """Starts empty; grows to `capacity` transitions and as many candidates as it is shown."""
        self._capacity = capacity
        self._feature_count = feature_count
        self._size = 0
        self._next = 0
        self.total_count = 0
        self._arrays = _allocate(capacity, _EMPTY_CANDIDATES, feature_count)

    def __len__(self) -> int:
        """Returns the number of transitions held."""
        return self._size

    @property
    def candidate_count(self) -> int:
        """Most candidates seen in one transition."""
        return int(self._arrays.allowed_BC.shape[1])

    def append(self, batch: Transitions) -> None:
        """Adds transitions, in order; the oldest give way.

        Raises:
            ReplayError: the feature count is another one.
        """
        if batch.x_BCF.shape[2] != self._feature_count:
            raise ReplayError(
                f"transitions have {batch.x_BCF.shape[2]} features, not {self._feature_count}"
            )
        count = len(batch.action_B)
        if not len(batch.shortfall_B):
            batch = batch._replace(shortfall_B=np.full(count, np.nan, np.float32))
        self.total_count += count
        if count > self._capacity:
            batch = Transitions(*(array[count - self._capacity :] for array in batch))
            count = self._capacity
        self._widen(batch.allowed_BC.shape[1])
        slot_B = (self._next + np.arange(count)) % self._capacity
        for own, new in zip(self._arrays, batch, strict=True):
            if own.ndim == 1:
                own[slot_B] = new
            else:
                width = new.shape[1]
                own[slot_B, :width] = new
                own[slot_B, width:] = 0
        self._next = int((self._next + count) % self._capacity)
        self._size = min(self._capacity, self._size + count)

    def sample(self, count: int, rng: np.random.Generator) -> Transitions:
        """Returns `count` transitions drawn uniformly with replacement; must not be empty."""
        slot_B = rng.integers(self._size, size=count)
        drawn = [array[slot_B] for array in self._arrays]
        drawn[0] = drawn[0].astype(np.float32)
        drawn[5] = drawn[5].astype(np.float32)
        return Transitions(*drawn)

    def to_bytes(self) -> bytes:
        """Returns everything held, as numpy's own file format (no pickle)."""
        buffer = io.BytesIO()
        # From oldest to newest, so that a smaller ring keeps the newest ones.
        order = (self._next - self._size + np.arange(self._size)) % self._capacity
        np.savez(
            buffer,
            allow_pickle=False,
            total_count=np.int64(self.total_count),
            **{name: getattr(self._arrays, name)[order] for name in Transitions._fields},
        )
        return buffer.getvalue()

    def restore(self, blob: bytes) -> None:
        """Replaces the content by what `to_bytes` returned.

        Raises:
            ReplayError: the bytes are damaged or were saved with other features; nothing changes.
        """
        try:
            with np.load(io.BytesIO(blob), allow_pickle=False) as file:
                saved: dict[str, Any] = {name: file[name] for name in file.files}
            batch = Transitions(*(saved[name] for name in Transitions._fields))
            total_count = int(saved["total_count"])
            lengths = {len(array) for array in batch}
        except Exception as error:  # numpy and zipfile raise a dozen types on damaged input
            raise ReplayError(f"saved replay cannot be read: {error}") from error
        if len(lengths) != 1 or batch.x_BCF.ndim != 3:
            raise ReplayError("saved replay has arrays that do not fit together")
        if batch.x_BCF.shape[2] != self._feature_count:
            raise ReplayError("saved replay has other features")
        self._arrays = _allocate(self._capacity, _EMPTY_CANDIDATES, self._feature_count)
        self._size = self._next = 0
        self.append(batch)
        self.total_count = total_count

    def _widen(self, candidate_count: int) -> None:
        missing = candidate_count - self.candidate_count
        if missing <= 0:
            return
        self._arrays = Transitions(
            *(
                array
                if array.ndim == 1
                else np.pad(array, [(0, 0), (0, missing), (0, 0)][: array.ndim])
                for array in self._arrays
            )
        )


def _allocate(capacity: int, candidates: int, features: int) -> Transitions:
    shape = (capacity, candidates, features)
    return Transitions(
        np.zeros(shape, np.float16),
        np.zeros(shape[:2], np.bool_),
        np.zeros(capacity, np.int64),
        np.zeros(capacity, np.float32),
        np.zeros(capacity, np.float32),
        np.zeros(shape, np.float16),
        np.zeros(shape[:2], np.bool_),
        np.zeros(capacity, np.float32),
    )
