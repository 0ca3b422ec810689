"""Shifts: worlds that differ from the nominal one, met without retraining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trainer.evaluation.cases import Case
from trainer.evaluation.plan import Plan
from trainer.evaluation.rows import Row, rounded
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import FleetEvent

NOMINAL = "nominal"
SLOWER = 1.3
"""Factor on every time of the profile in the latency shift."""
STALENESS_S = 0.5
LOSS_AT = 1.0 / 3.0
"""A device is lost after this share of the run."""


@dataclass(frozen=True)
class Shift:
    """One shift.

    Attributes:
        name: for tables.
        setting: name of the setting it runs in.
        hardware: name of the setting whose always-small capacity limits its loads.
        scenario: arrival process.
        routers: number of routers.
        staleness_s: age of what they see of each other, seconds.
        lost: a device is lost during the run.
        family: shifts that are judged together.
    """

    name: str
    setting: str = ""
    hardware: str = ""
    scenario: str = "poisson"
    routers: int = 1
    staleness_s: float = 0.0
    lost: bool = False
    family: str = ""

    def events(self, duration_s: float) -> tuple[FleetEvent, ...]:
        """Returns what happens to the devices in a run: at a third of it the first one is lost."""
        return (FleetEvent(LOSS_AT * duration_s, 0, "lost"),) if self.lost else ()


def shifted_settings(base: Setting) -> dict[str, Setting]:
    """Returns the settings that shifts run in, by name; the nominal one under ""."""
    tasks = [task.name for task in base.catalog.tasks]
    settings = {"": base}
    for index, task in enumerate(tasks):
        share = tuple(1.0 if k == index else 0.0 for k in range(len(tasks)))
        settings[f"task {task}"] = replace(base, task_share=share)
    falling = tuple(float(len(tasks) - k) for k in range(len(tasks)))
    settings["mix"] = replace(base, task_share=falling)
    settings["mix reversed"] = replace(base, task_share=falling[::-1])
    profiles = {name: profile.scaled(SLOWER) for name, profile in base.profiles.items()}
    settings["slower"] = replace(base, profiles=profiles)
    slowness_D = np.full(len(base.fleet.devices), SLOWER)
    settings["slower, known"] = replace(
        base, profiles=profiles, fleet=base.fleet.with_slowness(slowness_D)
    )
    if len(base.fleet.devices) > 1:
        settings["one device less"] = _without_device(base, 0)
    return settings


def shifts_of(settings: Mapping[str, Setting]) -> list[Shift]:
    """Returns the shifts of a protocol over the settings `shifted_settings` made."""
    shifts = [Shift(NOMINAL)]
    shifts += [Shift(name, name, family="task") for name in settings if name.startswith("task ")]
    if len(settings[""].catalog.tasks) > 1:
        shifts += [Shift(name, name, family="task") for name in ("mix", "mix reversed")]
    shifts += [
        Shift(name, scenario=name, family="bursty")
        for name in ("gamma-cv4", "gamma-cv8", "markov", "square-wave")
    ]
    shifts.append(Shift("latency +30 %, not known", "slower", hardware="slower", family="slower"))
    shifts.append(
        Shift("latency +30 %, learned", "slower, known", hardware="slower", family="slower")
    )
    if "one device less" in settings:
        shifts.append(
            Shift("one device lost", hardware="one device less", lost=True, family="loss")
        )
    shifts += [
        Shift(f"{count} routers, stale", routers=count, staleness_s=STALENESS_S, family="stale")
        for count in (2, 4)
    ]
    return shifts


def _without_device(base: Setting, device: int) -> Setting:
    """Returns the setting with a device switched off."""
    arrays = base.fleet.arrays
    availability_C = np.where(arrays.device_C == device, 0.0, arrays.availability_C)
    return replace(base, fleet=base.fleet.with_availability(availability_C))


def shift_cases(
    shift: Shift,
    plan: Plan,
    seeds: Sequence[int],
    policies: tuple[str, ...],
    *,
    small_rps: float,
    unit_rps: float,
) -> list[Case]:
    """Returns a shift's cases, by load, then by seed.

    Args:
        shift: the shift.
        plan: shares of `small_rps`, and how long runs are.
        seeds: evaluation seeds.
        policies: names in the context.
        small_rps: what always-small holds on the shift's hardware.
        unit_rps: rate of load 1.
    """
    return [
        shift_case(
            shift, rate_rps, plan.duration_s(rate_rps), policies, seed=seed, unit_rps=unit_rps
        )
        for rate_rps in (share * small_rps for share in plan.shift_shares)
        for seed in seeds
    ]


def shift_case(
    shift: Shift,
    rate_rps: float,
    duration_s: float,
    policies: tuple[str, ...],
    *,
    seed: int,
    unit_rps: float,
) -> Case:
    """Returns one run of a shift; see `shift_cases`."""
    return Case(
        "shifts",
        shift.name,
        rate_rps / unit_rps,
        rate_rps,
        seed,
        duration_s,
        policies,
        scenario=shift.scenario,
        setting=shift.setting,
        routers=shift.routers,
        staleness_s=shift.staleness_s,
        events=shift.events(duration_s),
        # With several routers, the very requests that one router gets.
        requests_of=NOMINAL if shift.routers > 1 else "",
    )


def shift_rows(
    rows: Sequence[Row], shifts: Sequence[Shift], small_rps: Mapping[str, float]
) -> list[Row]:
    """Returns score rows with their shift instead of a label."""
    by_name = {shift.name: shift for shift in shifts}
    named = []
    for row in rows:
        shift = by_name[row["label"]]
        named.append(
            {
                "shift": shift.name,
                "family": shift.family,
                "share_of_always_small": rounded(row["rate_rps"] / small_rps[shift.hardware]),
                **{key: value for key, value in row.items() if key != "label"},
            }
        )
    return named
