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
        time_B: when the decision was made, seconds since 1970; empty if it is known of none.
    """

    x_BCF: NDArray[Any]
    allowed_BC: NDArray[Any]
    action_B: NDArray[Any]
    return_B: NDArray[Any]
    discount_B: NDArray[Any]
    next_x_BCF: NDArray[Any]
    next_allowed_BC: NDArray[Any]
    shortfall_B: NDArray[Any] = np.zeros(0, np.float32)
    time_B: NDArray[Any] = np.zeros(0, np.float64)

    def where(self, keep_B: NDArray[np.bool_]) -> Transitions:
        """Returns some of the transitions."""
        return Transitions(*(array[keep_B] for array in self))


_EMPTY_CANDIDATES = 1
MAX_CANDIDATES = 4_096
"""Most candidates of a transition that is kept."""
_MOST_BYTES = 1 << 30


class Replay:
    """A ring of transitions. Rows of candidates a transition lacks are zero and not allowed.

    Every number in it is finite, and it takes at most 1 GiB: with many candidates it holds fewer
    transitions than its capacity. Features are kept as half floats: they are bounded by 5, so the
    rounding is below 0.1 percent of their range, and the ring is half as big.
    """

    def __init__(self, *, capacity: int, feature_count: int) -> None:
        """Starts empty; grows to `capacity` transitions and as many candidates as it is shown."""
        self._most = self._capacity = capacity
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
        """Adds transitions, in order; the oldest give way, what is not finite is left out.

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
        if not len(batch.time_B):
            batch = batch._replace(time_B=np.zeros(count))
        batch = batch.where(_is_sound(batch))
        batch = Transitions(*(a if a.ndim == 1 else a[:, :MAX_CANDIDATES] for a in batch))
        count = len(batch.action_B)
        if not count:
            return
        self._widen(batch.allowed_BC.shape[1])
        self.total_count += count
        if count > self._capacity:
            batch = Transitions(*(array[count - self._capacity :] for array in batch))
            count = self._capacity
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
        np.savez(
            buffer,
            allow_pickle=False,
            total_count=np.int64(self.total_count),
            **self._held()._asdict(),
        )
        return buffer.getvalue()

    def drop(self, since_s: float, until_s: float) -> int:
        """Drops the transitions of decisions made in a span of time; returns how many.

        Args:
            since_s: start of the span, seconds since 1970.
            until_s: end of the span, itself not in it.
        """
        held = self._held()
        keep_B = (held.time_B < since_s) | (held.time_B >= until_s)
        dropped = int(np.count_nonzero(~keep_B))
        if dropped:
            self._refill(held.where(keep_B))
        return dropped

    def _held(self) -> Transitions:
        """Returns everything held from oldest to newest, so a smaller ring keeps the newest."""
        order = (self._next - self._size + np.arange(self._size)) % len(self._arrays.action_B)
        return Transitions(*(array[order] for array in self._arrays))

    def _refill(self, batch: Transitions) -> None:
        """Replaces the content; the count of all there ever were stays."""
        total_count = self.total_count
        self._capacity = self._most
        self._arrays = _allocate(self._capacity, _EMPTY_CANDIDATES, self._feature_count)
        self._size = self._next = 0
        self.append(batch)
        self.total_count = total_count

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
            count, candidates, features = batch.x_BCF.shape
        except Exception as error:  # numpy and zipfile raise a dozen types on damaged input
            raise ReplayError(f"saved replay cannot be read: {error}") from error
        if features != self._feature_count:
            raise ReplayError("saved replay has other features")
        own = _allocate(0, candidates, features)
        if any(
            array.dtype != part.dtype or array.shape != (count, *part.shape[1:])
            for array, part in zip(batch, own, strict=True)
        ):
            raise ReplayError("saved replay has arrays that do not fit together")
        self._refill(batch)
        self.total_count = total_count

    def _widen(self, candidate_count: int) -> None:
        missing = candidate_count - self.candidate_count
        if missing <= 0:
            return
        fit = max(1, _MOST_BYTES // (2 * 2 * candidate_count * self._feature_count))
        if fit < self._capacity:
            held = self._held()
            kept = min(self._size, fit)
            self._capacity = fit
            self._arrays = Transitions(
                *(np.zeros((fit, *array.shape[1:]), array.dtype) for array in self._arrays)
            )
            for own, array in zip(self._arrays, held, strict=True):
                own[:kept] = array[len(array) - kept :]
            self._size, self._next = kept, kept % fit
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
        np.zeros(capacity, np.float64),
    )


def _is_sound(batch: Transitions) -> NDArray[np.bool_]:
    """Returns which transitions have nothing but finite numbers as they are kept [B]."""
    with np.errstate(over="ignore"):  # becomes infinite, which is what is looked for
        rows = [batch.x_BCF.astype(np.float16), batch.next_x_BCF.astype(np.float16)]
    sound_B: NDArray[np.bool_] = np.isfinite(batch.return_B) & np.isfinite(batch.discount_B)
    sound_B &= ~np.isinf(batch.shortfall_B) & np.isfinite(batch.time_B)
    for x_BCF in rows:
        sound_B &= np.isfinite(x_BCF).all(axis=(1, 2))
    width = batch.allowed_BC.shape[1]
    if width > MAX_CANDIDATES:
        sound_B &= ~batch.allowed_BC[:, MAX_CANDIDATES:].any(axis=1)
        sound_B &= ~batch.next_allowed_BC[:, MAX_CANDIDATES:].any(axis=1)
    sound_B &= (batch.action_B >= 0) & (batch.action_B < width)
    return sound_B
