"""The Q-network's forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dqn.network import NOT_LISTED, listed_q_values, q_values
from router.dqn.snapshot import Weights


def _weights(rng: np.random.Generator, features: int, hidden: int) -> Weights:
    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    return Weights(
        draw(features, hidden),
        draw(hidden),
        draw(2 * hidden, hidden),
        draw(hidden),
        draw(hidden + features),
        np.float32(rng.normal()),
    )


def _case(seed: int, candidates: int) -> tuple[Any, Any, Weights]:
    rng = np.random.default_rng(seed)
    x_CF = rng.normal(size=(candidates, 7)).astype(np.float32)
    allowed_C = rng.random(candidates) < 0.6
    allowed_C[rng.integers(candidates)] = True
    return x_CF, allowed_C, _weights(rng, 7, 8)


def _run(x_CF: Any, allowed_C: Any, weights: Weights, base_C: Any = None) -> Any:
    out_C = np.zeros(len(allowed_C))
    base_C = np.zeros(len(allowed_C)) if base_C is None else base_C
    q_values(x_CF, allowed_C, base_C, *weights, out_C)
    return out_C


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), candidates=st.integers(1, 24))
def test_equals_formula(seed: int, candidates: int) -> None:
    """The kernel computes the formula of its docstring."""
    x_CF, allowed_C, w = _case(seed, candidates)
    x = x_CF.astype(np.float64)
    h = np.maximum(0.0, x @ w.w1_FH + w.b1_H)
    g = h[allowed_C].mean(axis=0)
    z = np.maximum(0.0, np.hstack([h, np.tile(g, (candidates, 1))]) @ w.w2_GH + w.b2_H)
    q = np.where(allowed_C, np.hstack([z, x]) @ w.w3_P + w.b3, -np.inf)
    np.testing.assert_allclose(_run(x_CF, allowed_C, w), q, rtol=1e-3, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), candidates=st.integers(2, 24))
def test_order_of_candidates_does_not_matter(seed: int, candidates: int) -> None:
    """Permuting the candidates permutes the values."""
    x_CF, allowed_C, w = _case(seed, candidates)
    order = np.random.default_rng(seed).permutation(candidates)
    permuted = _run(np.ascontiguousarray(x_CF[order]), allowed_C[order], w)
    np.testing.assert_allclose(permuted, _run(x_CF, allowed_C, w)[order], rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), candidates=st.integers(2, 24))
def test_closed_candidates_do_not_leak(seed: int, candidates: int) -> None:
    """What a candidate that is not allowed looks like changes no other value."""
    x_CF, allowed_C, w = _case(seed, candidates)
    other_CF = np.where(allowed_C[:, None], x_CF, np.float32(3.0))
    np.testing.assert_allclose(
        _run(other_CF, allowed_C, w), _run(x_CF, allowed_C, w), rtol=1e-5, atol=1e-5
    )


def test_one_listed_for_several_speaks_for_them_all() -> None:
    """A list in which one stands for three equals gives the values that all three would get."""
    x_CF, _, w = _case(4, 6)
    x_CF[3:5] = x_CF[2]
    allowed_C = np.array([True, True, True, True, True, False])
    listed_C, weight_C = np.array([0, 1, 2]), np.array([1.0, 1.0, 3.0, 0.0, 0.0, 0.0])
    out_C = np.zeros(6)
    listed_q_values(x_CF, allowed_C, weight_C, np.zeros(6), *w, out_C)
    whole_C = _run(x_CF, allowed_C, w)
    np.testing.assert_allclose(out_C[listed_C], whole_C[listed_C], rtol=1e-5, atol=1e-5)
    assert out_C[3:].tolist() == [NOT_LISTED, NOT_LISTED, -np.inf]


def test_zeroed_network_leaves_the_base_alone() -> None:
    """With an output of zero the value of an allowed candidate is its base, bit by bit."""
    x_CF, allowed_C, w = _case(3, 12)
    base_C = np.random.default_rng(0).normal(size=12)
    out_C = _run(x_CF, allowed_C, w.zeroed(), base_C)
    np.testing.assert_array_equal(out_C[allowed_C], base_C[allowed_C])
    assert not np.array_equal(_run(x_CF, allowed_C, w, base_C)[allowed_C], base_C[allowed_C])
