"""The replay ring."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learning.online.replay import Replay, ReplayError, Transitions


def _batch(start: int, count: int, candidates: int = 2, features: int = 3) -> Transitions:
    """Transitions whose return is a running number."""
    number = np.arange(start, start + count, dtype=np.float32)
    x = np.ones((count, candidates, features), np.float32)
    allowed = np.ones((count, candidates), bool)
    return Transitions(x, allowed, np.zeros(count, int), number, number * 0, x * 2, allowed)


def _returns(replay: Replay) -> set[float]:
    drawn = replay.sample(4000, np.random.default_rng(0))
    return {float(value) for value in drawn.return_B}


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 13), max_size=12))
def test_keeps_the_newest(sizes: list[int]) -> None:
    """After any appends exactly the newest `capacity` transitions are held."""
    replay = Replay(capacity=10, feature_count=3)
    total = 0
    for size in sizes:
        replay.append(_batch(total, size))
        total += size
    assert len(replay) == min(10, total)
    assert replay.total_count == total
    if total:
        assert _returns(replay) == {float(n) for n in range(max(0, total - 10), total)}


def test_mixed_candidate_counts() -> None:
    """Fleets of different size share one ring; rows a transition lacks are not allowed."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 2, candidates=2))
    replay.append(_batch(2, 2, candidates=5))
    replay.append(_batch(4, 2, candidates=3))
    drawn = replay.sample(200, np.random.default_rng(0))
    assert drawn.x_BCF.shape == (200, 5, 3)
    assert drawn.x_BCF.dtype == np.float32
    wanted = {0: 2, 1: 2, 2: 5, 3: 5, 4: 3, 5: 3}
    for allowed, number in zip(drawn.allowed_BC, drawn.return_B, strict=True):
        assert allowed.sum() == wanted[int(number)]


def test_narrow_transition_clears_the_slot_it_takes() -> None:
    """No row of an older, wider transition shines through."""
    replay = Replay(capacity=2, feature_count=3)
    replay.append(_batch(0, 2, candidates=4))
    replay.append(_batch(2, 2, candidates=1))
    drawn = replay.sample(50, np.random.default_rng(0))
    assert not drawn.x_BCF[:, 1:].any()
    assert not drawn.next_allowed_BC[:, 1:].any()


def test_survives_a_restart() -> None:
    """What was saved is what is held after a restart, also in a smaller ring."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 14))
    blob = replay.to_bytes()
    same = Replay(capacity=10, feature_count=3)
    same.restore(blob)
    assert _returns(same) == _returns(replay)
    assert same.total_count == 14
    smaller = Replay(capacity=4, feature_count=3)
    smaller.restore(blob)
    assert _returns(smaller) == {10.0, 11.0, 12.0, 13.0}


def test_damage_is_refused_and_changes_nothing() -> None:
    """A damaged or foreign file is refused; the ring stays as it was."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 5))
    blob = replay.to_bytes()
    other = Replay(capacity=10, feature_count=4).to_bytes()
    damaged: list[Any] = [b"", blob[:50], blob[: len(blob) // 2], other]
    for bad in damaged:
        with pytest.raises(ReplayError):
            replay.restore(bad)
    assert _returns(replay) == {0.0, 1.0, 2.0, 3.0, 4.0}
    with pytest.raises(ReplayError, match="4 features"):
        replay.append(_batch(0, 1, features=4))


def test_many_candidates_cost_transitions_not_memory() -> None:
    """Above 1 GiB the ring gets shorter, and keeps the newest."""
    replay = Replay(capacity=2_000_000, feature_count=3)
    replay.append(_batch(0, 3))
    replay.append(_batch(3, 1, candidates=4_096))
    assert replay._arrays.x_BCF.nbytes + replay._arrays.next_x_BCF.nbytes <= 1 << 30
    assert _returns(replay) == {0.0, 1.0, 2.0, 3.0}
    replay.append(_batch(4, 1))
    assert _returns(replay) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_more_candidates_than_any_mesh_has_are_left_out() -> None:
    """They neither enter nor widen the ring."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 1, candidates=5_000))
    assert (len(replay), replay.candidate_count) == (0, 1)


@pytest.mark.parametrize("field", ["x_BCF", "next_x_BCF", "return_B", "discount_B"])
def test_a_saved_replay_that_was_poisoned_loses_only_the_poison(field: str) -> None:
    """What is not finite is left out when it is read, the rest is kept."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 5))
    getattr(replay._arrays, field)[2] = np.inf
    restored = Replay(capacity=10, feature_count=3)
    restored.restore(replay.to_bytes())
    assert _returns(restored) == {0.0, 1.0, 3.0, 4.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("action_B", np.array(["0"] * 4)),
        ("action_B", np.zeros(4)),
        ("x_BCF", np.ones((4, 1, 3), np.float16)),
        ("allowed_BC", np.ones((4, 5), bool)),
        ("return_B", np.zeros((4, 1), np.float32)),
    ],
)
def test_arrays_that_no_replay_saved_are_refused(name: str, value: Any) -> None:
    """Types and shapes are as saved, or nothing is taken."""
    replay = Replay(capacity=10, feature_count=3)
    replay.append(_batch(0, 4))
    with np.load(io.BytesIO(replay.to_bytes())) as file:
        saved = {key: file[key] for key in file.files}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{**saved, name: value})
    with pytest.raises(ReplayError, match="fit"):
        replay.restore(buffer.getvalue())
    assert len(replay) == 4
