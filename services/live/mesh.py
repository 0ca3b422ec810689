"""A mesh of paced tiers in stretched time: all that routers do and know ages by one factor."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from router.policies.table import DQN
from services.local.embedded import MeshOptions
from services.local.paced_mesh import DEADLINE_S, paced_options

REPORT_S, PUBLISH_S, STATE_AGE_S, SILENCE_S = 0.1, 0.08, 2.0, 3.0
"""The services' own defaults, in the profile's own time."""
MOST_PUBLISH_S, MOST_REPORT_S = 1.0, 10.0
"""Limits of the settings."""
ALLOWANCE_S = 0.002
"""What the load generator takes off the deadline it tells a router, in the profile's own time."""


@dataclasses.dataclass(frozen=True)
class StretchedMesh:
    """Paced devices, each with every tier of a profile, and the routers before them.

    Attributes:
        name: Name of the mesh.
        profile: Latency profile that times the tiers.
        quality: Quality table; its tasks are the mesh's.
        snapshot: Snapshot of the learned policy; None: there is none.
        devices: How many.
        routers: Router processes.
        time_scale: Factor on every time.
    """

    name: str
    profile: pathlib.Path
    quality: pathlib.Path
    snapshot: pathlib.Path | None
    devices: int
    routers: int
    time_scale: float

    @property
    def deadline_s(self) -> float:
        """Deadline of every task, stretched, seconds."""
        return DEADLINE_S * self.time_scale

    @property
    def publish_s(self) -> float:
        """Time between two states of the load monitor, seconds."""
        return min(MOST_PUBLISH_S, PUBLISH_S * self.time_scale)

    @property
    def report_s(self) -> float:
        """Time between two reports of a router: what is left of the age of what others know."""
        return min(MOST_REPORT_S, (REPORT_S + PUBLISH_S) * self.time_scale - self.publish_s)

    def options(self) -> MeshOptions:
        """Returns what starts it, without a trainer, all files of an earlier one deleted.

        Raises:
            InputError: A file cannot be read or lacks its table.
        """
        router: dict[str, Any] = {
            "report_interval_s": self.report_s,
            "state_max_age_s": STATE_AGE_S * self.time_scale,
        }
        if self.snapshot is not None:
            router["policy_snapshot"] = str(self.snapshot.absolute())
        monitor = {
            "publish_interval_s": self.publish_s,
            "idle_publish_interval_s": 2.0 * self.publish_s,
            "router_silence_s": SILENCE_S * self.time_scale,
        }
        return dataclasses.replace(
            paced_options(
                self.name,
                self.profile,
                quality=self.quality,
                device_count=self.devices,
                time_scale=self.time_scale,
            ),
            router_count=self.routers,
            policy="price" if self.snapshot is None else DQN,
            trainer=False,
            fresh=True,
            sections={"router_inference": router, "load_monitor": monitor},
        )
