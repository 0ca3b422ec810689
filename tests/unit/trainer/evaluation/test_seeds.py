"""Evaluation seeds: never those of training, validation, testing or tuning."""

from __future__ import annotations

import numpy as np

from trainer.evaluation.plan import PLANS
from trainer.evaluation.seeds import MIN_FULL_SEEDS, entropy, evaluation_seeds, stream
from trainer.learning.offline.training import TEST_SEEDS
from trainer.learning.offline.validation import VALIDATION_SEEDS


def test_full_suite_has_ten_seeds_or_more() -> None:
    """The record rests on enough of them."""
    assert PLANS["full"].seed_count >= MIN_FULL_SEEDS


def test_numbers_are_none_that_training_validates_or_tests_on() -> None:
    """Even the most seeds the command takes reach none of training's fixed ones."""
    seeds = set(evaluation_seeds(1000))
    assert len(seeds) == 1000
    assert not seeds & {*VALIDATION_SEEDS, *TEST_SEEDS}


def test_streams_are_disjoint_by_the_length_of_their_entropy() -> None:
    """Four words with a last one above zero: no seed of one or two words gives that stream."""
    words = entropy(evaluation_seeds(1)[0], "sweep")
    assert len(words) == 4
    assert words[-1] != 0
    assert all(0 <= word < 2**32 for word in words)
    own = np.random.SeedSequence(words).generate_state(4)
    for other in (words[2], [words[2], 9], [words[2], 7], words[:2], words[:3]):
        assert not np.array_equal(np.random.SeedSequence(other).generate_state(4), own)


def test_streams_differ_by_seed_and_by_purpose() -> None:
    """Two seeds, and two purposes of one seed, draw different numbers; the same draw the same."""
    first = stream(900_001, "a").random()
    assert first != stream(900_002, "a").random()
    assert first != stream(900_001, "b").random()
    assert first == stream(900_001, "a").random()
