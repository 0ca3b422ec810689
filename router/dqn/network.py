"""The Q-network's forward pass: shared weights per candidate and a context pooled over all.

    h_CH = relu(x_CF W1 + b1)        each candidate by itself
    g_H  = mean over allowed of h_CH  what the choice as a whole looks like
    z_CH = relu([h_CH, g_H] W2 + b2)
    q_C  = z_CH w3[:H] + x_CF w3[H:] + b3

The linear term on the features lets a score that is already good (a price score, say) pass straight
through, so that the layers need to learn only what it lacks. No weight depends on a candidate's
place, so candidates may come and go.

Plain functions of float32 arrays, compiled for router and simulator; numpy runs them where there is
no compiler.
Shape letters: C candidates, F features, H hidden units, G = 2 H, P = H + F.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


NOT_LISTED: Final = -1e9
"""Value of a candidate that the network did not look at."""


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
    open_C = allowed_C.astype(np.float32)
    # The number of open ones, cheaper than a sum.
    total = open_C @ open_C
    q_C = corrections(x_CF, open_C, total, w1_FH, b1_H, w2_GH, b2_H, w3_P, b3)
    out_C[:] = np.where(allowed_C, base_C + q_C, -np.inf)


def listed_q_values(
    x_CF: NDArray[np.float32],
    allowed_C: NDArray[np.bool_],
    weight_C: NDArray[np.float64],
    base_C: NDArray[np.float64],
    w1_FH: NDArray[np.float32],
    b1_H: NDArray[np.float32],
    w2_GH: NDArray[np.float32],
    b2_H: NDArray[np.float32],
    w3_P: NDArray[np.float32],
    b3: np.float32,
    out_C: NDArray[np.float64],
) -> None:
    """Computes what `q_values` does, for the candidates of a shortlist alone.

    Each stands for `weight_C` candidates in the pooled context. The allowed ones that are not
    listed get a value that is finite and below all others: they have not been looked at.
    """
    row_S = np.flatnonzero(weight_C)
    open_S = weight_C[row_S].astype(np.float32)
    # A number of candidates, so that compiled and plain sums round to the same.
    total = np.float32(np.rint(weight_C.sum()))
    q_S = corrections(x_CF[row_S], open_S, total, w1_FH, b1_H, w2_GH, b2_H, w3_P, b3)
    out_C[:] = np.where(allowed_C, NOT_LISTED, -np.inf)
    out_C[row_S] = base_C[row_S] + q_S


def corrections(
    x_CF: NDArray[np.float32],
    open_C: NDArray[np.float32],
    total: Any,
    w1_FH: NDArray[np.float32],
    b1_H: NDArray[np.float32],
    w2_GH: NDArray[np.float32],
    b2_H: NDArray[np.float32],
    w3_P: NDArray[np.float32],
    b3: np.float32,
) -> NDArray[np.float32]:
    """Returns what the network adds to each row's score.

    Args:
        x_CF: features.
        open_C: weight of each row in the pooled context; 0 = none.
        total: sum of the weights.
        w1_FH: this and the rest as in `q_values`.
        b1_H: see there.
        w2_GH: see there.
        b2_H: see there.
        w3_P: see there.
        b3: see there.
    """
    hidden = len(b1_H)
    h_CH = x_CF @ w1_FH
    h_CH += b1_H
    h_CH = np.maximum(h_CH, np.float32(0.0))
    g_H = open_C @ h_CH
    g_H /= total
    z_CH = h_CH @ w2_GH[:hidden]
    z_CH += g_H @ w2_GH[hidden:] + b2_H
    z_CH = np.maximum(z_CH, np.float32(0.0))
    q_C: NDArray[np.float32] = z_CH @ w3_P[:hidden]
    q_C += x_CF @ w3_P[hidden:]
    q_C += b3
    return q_C
