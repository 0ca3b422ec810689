"""How slow each device is beside its profile, learned from what this router dispatched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from router.estimators import SlownessEstimator

# Estimates are applied at most this often, and only if they moved this much.
_EVERY_S = 0.1
_STEP = 0.02


class DeviceSlowness:
    """Estimates per device, and those that were applied last."""

    def __init__(self, now_s: float) -> None:
        """Starts without a device, at `now_s` monotonic seconds."""
        self._estimators: dict[str, SlownessEstimator] = {}
        self._applied_D: NDArray[np.float64] = np.ones(0)
        self._looked_s = now_s

    def follow(self, devices: Sequence[str]) -> None:
        """Keeps to these devices; what is known of those that stay is kept."""
        self._estimators = {
            name: self._estimators.get(name) or SlownessEstimator() for name in devices
        }
        self.apply()

    def forget(self, devices: Iterable[str]) -> None:
        """Drops what is known of devices, from the next `follow` on."""
        for name in devices:
            self._estimators.pop(name, None)

    def observe(self, device: str, taken_s: float, profile_s: float, *, finished: bool) -> None:
        """Learns from one dispatch; one to a device that has left teaches nothing."""
        estimator = self._estimators.get(device)
        if estimator is not None:
            estimator.observe(taken_s, profile_s, finished=finished)

    def apply(self) -> NDArray[np.float64]:
        """Returns the estimates, in the devices' order, from now on those `has_moved` means."""
        self._applied_D = self._current_D()
        return self._applied_D

    def has_moved(self, now_s: float) -> bool:
        """Returns whether estimates moved since they were applied; looks once in a while."""
        if now_s - self._looked_s <= _EVERY_S:
            return False
        self._looked_s = now_s
        change_D = np.abs(self._current_D() / self._applied_D - 1.0)
        return bool((change_D > _STEP).any())

    def by_device(self) -> Mapping[str, float]:
        """Returns the estimate of each device, 1.0 = as the profile says."""
        return {name: each.slowness for name, each in self._estimators.items()}

    def _current_D(self) -> NDArray[np.float64]:
        return np.array([each.slowness for each in self._estimators.values()])
