"""The decision as one function of plain arrays: prediction, features, scores, choice.

The simulator compiles it. Live policies call the same kernels on lists, which plain Python reads
faster (`ScorePolicy`, `DqnPolicy`).

Shape letters: C candidates, F features, P parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from router import features, kernels
from router.dqn import network
from router.policies import scores, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.dqn.snapshot import Weights
    from router.features import FeatureScratch
    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

DQN_ROW: Final = table.ROW[table.DQN]


def decide(
    row: int,
    fleet: FleetArrays,
    load: LoadArrays,
    own: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    weights: Weights,
    scratch: FeatureScratch,
    features_CF: NDArray[np.float32],
    s: Scratch,
) -> int:
    """Returns the allowed candidate that a policy scores highest, -1 if there is none.

    Args:
        row: of the policy in the table.
        fleet: candidates.
        load: outstanding load as seen.
        own: the part of it that is this router's.
        allowed_C: candidates the request may go to.
        query: the request and the traffic.
        params_P: a score kernel's parameters, and its memory; a network's are those of the price it
            corrects and, if it has one, of its scheduled price.
        weights: of a network; others do not read them.
        scratch: working space of the features.
        features_CF: the features a network read.
        s: predictions and scores; predictions may lie where `scratch.seen` has them.
    """
    if row == DQN_ROW:
        features.compute_features(
            fleet, load, own, allowed_C, query, params_P, scratch, features_CF
        )
        network.q_values(
            features_CF,
            allowed_C,
            scratch.seen.score_C,
            weights.w1_FH,
            weights.b1_H,
            weights.w2_GH,
            weights.b2_H,
            weights.w3_P,
            weights.b3,
            s.score_C,
        )
    else:
        scores.predict(fleet, load, query, s)
        table.score(row, fleet, load, allowed_C, query, params_P, s)
    return kernels.best_allowed(s.score_C, allowed_C)
