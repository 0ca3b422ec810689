"""What a demo found out."""

from __future__ import annotations

import dataclasses
from typing import Any

from services.calibrate.quality import QualityMeasurement
from services.calibrate.result import Calibration
from services.demo.capacity import CapacityProbe
from services.demo.plan import DemoPlan
from services.demo.replay import PolicyRun


@dataclasses.dataclass
class Findings:
    """What the demo found out so far; filled step by step."""

    quality: QualityMeasurement | None = None
    calibration: Calibration | None = None
    deadline_s: float = 0.0
    probes: list[CapacityProbe] = dataclasses.field(default_factory=list)
    capacity_rps: float = 0.0
    learned_version: str = ""
    runs: list[PolicyRun] = dataclasses.field(default_factory=list)
    devices: dict[str, Any] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    trace_id: str = ""
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)

    def facts(self, plan: DemoPlan, *, kind: str, took_s: float) -> dict[str, Any]:
        """Everything of the report but its policies.

        Args:
            plan: What was asked for.
            kind: Kind of the tiers.
            took_s: Length of the whole run.
        """
        assert self.quality is not None
        assert self.calibration is not None
        phases = plan.phases(self.capacity_rps)
        return {
            "quality": self.quality.to_json(),
            "machine": self.machine,
            "versions": self.versions,
            "deadline_s": self.deadline_s,
            "static_large_capacity_rps": round(self.capacity_rps, 3),
            "burst_rps": phases[1]["rate_rps"],
            "seed": plan.seed,
            "trace_id": self.trace_id,
            "phases": phases,
            "capacity_probes": [dataclasses.asdict(each) for each in self.probes],
            "calibration": self.calibration.to_json(),
            "kind": kind,
            "static_large_devices": self.devices,
            "notes": self.notes,
            "took_s": round(took_s, 1),
        }
