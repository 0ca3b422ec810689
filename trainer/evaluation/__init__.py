"""Evaluation of policies in the simulator: the parts that other packages use."""

from trainer.evaluation.fluid import fluid_reference
from trainer.evaluation.hold import highest_held_rps
from trainer.evaluation.scenarios import SCENARIOS, Scenario
from trainer.evaluation.setting import HOLDS, Setting, shared_fleet_setting, with_routers
from trainer.evaluation.statistics import Interval, interval
from trainer.evaluation.sweep import SweepRow, sweep

__all__ = [
    "HOLDS",
    "SCENARIOS",
    "Interval",
    "Scenario",
    "Setting",
    "SweepRow",
    "fluid_reference",
    "highest_held_rps",
    "interval",
    "shared_fleet_setting",
    "sweep",
    "with_routers",
]
