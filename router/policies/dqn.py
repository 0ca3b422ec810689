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

PARAMETERS: tuple[Parameter, ...] = ()


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

    It has no parameters: whether a router explores is its own setting, for every policy. Fails: far
    outside what it was trained on; then the guard's fallback takes over.
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
        parameter_vector("dqn", PARAMETERS, params)

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
