"""Random streams of the evaluation, disjoint from every stream that training or tuning can draw.

Training and tuning seed numpy's generator with one or two words: a run's own seed, or a seed and a
small index. Evaluation streams have four words, of which the first is a tag and the last is not
zero. numpy pads short seeds with zeros and hashes all of them, so a seed of one or two words (an
integer below 2**64 among them) never gives the stream of one of four.
"""

from __future__ import annotations

import zlib

import numpy as np

TAG = 0x7E57_5EED
FIRST_SEED = 900_001
"""First evaluation seed; training validates and tests on 700,001 and 800,001 onwards."""
MIN_FULL_SEEDS = 10


def evaluation_seeds(count: int) -> tuple[int, ...]:
    """Returns the first `count` evaluation seeds."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))


def entropy(seed: int, purpose: str) -> list[int]:
    """Returns the four words that seed the stream of one purpose."""
    return [TAG, zlib.crc32(purpose.encode()), seed, 1]


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Returns the generator of a seed and a purpose (suite, scenario, load)."""
    return np.random.default_rng(entropy(seed, purpose))
