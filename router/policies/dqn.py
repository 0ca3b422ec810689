"""The learned policy `dqn`: a searched scheduled price, and what a network adds to it.

The network is fitted to paired returns by policy iteration (`trainer.learning.offline`), as a
correction of a price score; `router.features` computes both what it reads and what it corrects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from router import features
from router.dqn.snapshot import (
    REASON_BASE,
    REASON_POLICY,
    REASON_SCHEMA,
    REASON_SHAPE,
    SnapshotError,
)
from router.policies import price, scheduled_price
from router.policies.base import Parameter, PolicyParameterError, parameter_vector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.dqn.snapshot import Snapshot

PRICE_DEFAULTS_P: Final = parameter_vector("price", price.PARAMETERS, None)
"""Parameters of the price score that a network corrects unless its snapshot states others."""

NAME: Final = "dqn"
_FEATURE_NAMES: Final = tuple(feature.name for feature in features.FEATURES)

PARAMETERS = (
    Parameter("epsilon", 0.0, 0.0, 0.5, "Share of decisions that explore."),
    Parameter("explore_on_time", 0.8, 0.0, 1.0, "P(on time) a candidate needs to be explored."),
)


def price_parameters(snapshot: Snapshot) -> NDArray[np.float64]:
    """Returns the parameters of the price a snapshot corrects, and its scheduled price's table.

    Raises:
        SnapshotError: it names one that does not exist, or a value is out of range.
    """
    try:
        price_P = parameter_vector("price", price.PARAMETERS, snapshot.base)
        return np.array([*price_P, *scheduled_price.parameters_of(snapshot.schedule)])
    except (PolicyParameterError, scheduled_price.ScheduleError) as error:
        raise SnapshotError(REASON_BASE, f"snapshot: {error}") from error


class DqnPolicy:
    """Adds a trained network's correction to the price score of every (tier, endpoint).

    With every weight zero it decides as `price` does.

    Parameters: `epsilon`, the share of decisions drawn at random among the allowed candidates that
    should make the deadline (among all allowed if none should); such a decision says so and
    carries its probability. Fails: far outside what it was trained on; then the guard's fallback
    takes over.
    """

    def __init__(self, snapshot: Snapshot, params: Mapping[str, float] | None = None) -> None:
        """Takes a checked snapshot.

        Raises:
            SnapshotError: it is for another policy, or follows another feature schema than this
                build.
            PolicyParameterError: a parameter is unknown or out of range.
        """
        if snapshot.policy != NAME:
            raise SnapshotError(
                REASON_POLICY, f"snapshot is for policy {snapshot.policy[:64]!r}, not {NAME!r}"
            )
        if snapshot.feature_schema != features.SCHEMA:
            raise SnapshotError(
                REASON_SCHEMA,
                f"snapshot follows {snapshot.feature_schema!r}, this build {features.SCHEMA!r}",
            )
        if snapshot.weights.feature_count != features.FEATURE_COUNT:
            raise SnapshotError(
                REASON_SHAPE,
                f"snapshot reads {snapshot.weights.feature_count} features, "
                f"{features.SCHEMA} has {features.FEATURE_COUNT}",
            )
        if snapshot.feature_names != _FEATURE_NAMES:
            raise SnapshotError(
                REASON_SCHEMA,
                f"snapshot's feature names are not those of {features.SCHEMA}, in their order",
            )
        self._base_P = price_parameters(snapshot)
        self._snapshot = snapshot
        self.epsilon, self._explore_on_time = parameter_vector("dqn", PARAMETERS, params).tolist()

    @property
    def name(self) -> str:
        """Name by which the policy is chosen."""
        return self._snapshot.policy

    @property
    def version(self) -> str:
        """Version of the snapshot."""
        return self._snapshot.version

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot it decides with."""
        return self._snapshot

    @property
    def base_P(self) -> NDArray[np.float64]:
        """Parameters of the price that the network corrects, and its scheduled price's table."""
        return self._base_P

    def explore(
        self,
        greedy: int,
        allowed_C: NDArray[np.bool_],
        on_time_C: NDArray[np.float64],
        rng: np.random.Generator,
    ) -> tuple[int, float, bool]:
        """Returns an action, its probability, and whether it was drawn.

        Args:
            greedy: the action of the highest Q-value.
            allowed_C: candidates the request may go to.
            on_time_C: predicted probability of making the deadline on each.
            rng: the dice.
        """
        open_C = allowed_C & (on_time_C >= self._explore_on_time)
        if not open_C.any():
            open_C = allowed_C
        rows = np.flatnonzero(open_C)
        explored = bool(rng.random() < self.epsilon)
        action = int(rows[rng.integers(len(rows))]) if explored else greedy
        probability = self.epsilon / len(rows) if open_C[action] else 0.0
        if action == greedy:
            probability += 1.0 - self.epsilon
        return action, probability, explored
