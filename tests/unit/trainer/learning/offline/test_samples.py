"""The pool of samples: its bound, its draws, its state."""

from __future__ import annotations

import numpy as np

from trainer.learning.offline.samples import PairedSamples, SamplePool


def _samples(*values: float) -> PairedSamples:
    """Returns one decision between two candidates per value, which is its first return."""
    count = len(values)
    everything = np.ones((count, 2), bool)
    returns = np.array([[value, 0.0] for value in values], np.float32).reshape(count, 2)
    return PairedSamples(np.zeros((count, 2, 3), np.float32), everything, everything, returns)


def _held(pool: SamplePool) -> list[float]:
    return [float(row[0]) for row in pool.get_state()["return_BC"]]


def test_oldest_samples_go_first() -> None:
    """Beyond the bound only the newest stay; the count of all goes on."""
    pool = SamplePool(3)
    for samples in (_samples(1, 2), _samples(3), _samples(4, 5)):
        pool.add(samples)
    assert _held(pool) == [3.0, 4.0, 5.0]
    assert (len(pool), pool.total_count) == (3, 5)


def test_episode_without_samples_changes_nothing() -> None:
    """An episode may measure no decision at all."""
    pool = SamplePool(3)
    pool.add(_samples())
    assert (len(pool), pool.total_count) == (0, 0)
    assert pool.get_state() == {}


def test_draws_come_from_everything_held() -> None:
    """Every decision held is drawn, and parts of it stay together."""
    pool = SamplePool(10)
    pool.add(_samples(1, 2))
    pool.add(_samples(3))
    drawn = pool.sample(200, np.random.default_rng(0))
    assert set(drawn.return_BC[:, 0].tolist()) == {1.0, 2.0, 3.0}
    assert drawn.x_BCF.shape == (200, 2, 3)


def test_goes_on_from_its_state() -> None:
    """What is held and the count of all come back."""
    pool, other = SamplePool(2), SamplePool(2)
    pool.add(_samples(1, 2, 3))
    other.set_state(pool.get_state(), pool.total_count)
    assert _held(other) == [2.0, 3.0]
    assert other.total_count == 3
