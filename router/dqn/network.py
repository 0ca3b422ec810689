"""The Q-network's forward pass: shared weights per candidate and a context pooled over all.

    h_CH = relu(x_CF W1 + b1)        each candidate by itself
    g_H  = mean over allowed of h_CH  what the choice as a whole looks like
    z_CH = relu([h_CH, g_H] W2 + b2)
    q_C  = z_CH w3[:H] + x_CF w3[H:] + b3

The linear term on the features lets a score that is already good (a price score, say) pass straight
through, so that the layers need to learn only what it lacks. No weight depends on a candidate's
place, so candidates may come and go.

A plain function of float32 arrays: numpy runs it on the request path, the simulator compiles it.
Shape letters: C candidates, F features, H hidden units, G = 2 H, P = H + F.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def q_values(
    x_CF: NDArray[np.float32],
    allowed_C: NDArray[np.bool_],
    base_C: NDArray[np.float64],
    w1_FH: NDArray[np.float32],
    b1_H: NDArray[np.float32],
    w2_GH: NDArray[np.float32],
    b2_H: NDArray[np.float32],
    w3_P: NDArray[np.float32],
    b3: np.float32,
    out_C: NDArray[np.float64],
) -> None:
    """Computes the Q-value of every candidate into `out_C`; -inf where it is not allowed.

    Args:
        x_CF: features, C-contiguous float32.
        allowed_C: candidates the request may go to; at least one is True.
        base_C: score that the network corrects, in units of quality.
        w1_FH: first layer.
        b1_H: its bias.
        w2_GH: second layer: rows 0 to H-1 read the candidate, the others the pooled context.
        b2_H: its bias.
        w3_P: output weights on the H hidden units, then on the F features.
        b3: output bias.
        out_C: result.
    """
    hidden = len(b1_H)
    h_CH = x_CF @ w1_FH
    h_CH += b1_H
    h_CH = np.maximum(h_CH, np.float32(0.0))
    open_C = allowed_C.astype(np.float32)
    g_H = open_C @ h_CH
    g_H /= open_C @ open_C  # the number of open ones, cheaper than a sum
    z_CH = h_CH @ w2_GH[:hidden]
    z_CH += g_H @ w2_GH[hidden:] + b2_H
    z_CH = np.maximum(z_CH, np.float32(0.0))
    q_C = z_CH @ w3_P[:hidden]
    q_C += x_CF @ w3_P[hidden:]
    q_C += b3
    out_C[:] = np.where(allowed_C, base_C + q_C, -np.inf)
