"""How much of each part of the protocol a suite runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from trainer.simulation.setting import Setting

PAPER_LOAD_RATIO = 10.0
PAPER_WINDOW_RATIOS = {0.96: 4.1, 0.98: 2.3}
PAPER_GPU_RATIO = 3.9
"""Headline claims of arXiv 2401.07886."""
DEADLINE_S = 0.4
"""Deadline for which the lengths of the plans below are made."""
LONGEST_FACTOR = 25.0
"""Most that runs are stretched, or an evaluation takes hours: exact for deadlines up to 10 s."""


@dataclass(frozen=True)
class Plan:
    """Loads (multiples of what static-large holds), lengths and repetitions of one suite.

    Attributes:
        name: name of the suite.
        seed_count: evaluation seeds.
        sweep_loads: of the sweep with hard deadlines.
        soft_loads: of the sweep with soft deadlines.
        window_loads: of the unpredictable workloads.
        gpu_loads: of the comparison by GPUs.
        shift_shares: of what always-small holds on the shifted hardware.
        requests: of one run, about; its length follows, within the next two.
        shortest_s: shortest run, seconds.
        longest_s: longest run, seconds.
        windows_per_seed: windows of 10 s in each unpredictable workload.
        trace_windows_per_seed: the same in a resampled trace, where up to half of them are empty.
        window_bound_seed_count: seeds for which the bound of every window is computed.
        hold_seed_count: seeds of a search for the highest rate held.
        hold_s: shortest of its runs, seconds.
        pickers: run the comparison of endpoint pickers too.
    """

    name: str
    seed_count: int
    sweep_loads: tuple[float, ...]
    soft_loads: tuple[float, ...]
    window_loads: tuple[float, ...]
    gpu_loads: tuple[float, ...]
    shift_shares: tuple[float, ...]
    requests: int
    shortest_s: float
    longest_s: float
    windows_per_seed: int
    trace_windows_per_seed: int
    window_bound_seed_count: int
    hold_seed_count: int
    hold_s: float
    pickers: bool = False

    def duration_s(self, rate_rps: float) -> float:
        """Returns the length of a run at a rate, seconds."""
        return min(self.longest_s, max(self.shortest_s, self.requests / rate_rps))


def plan_for(plan: Plan, setting: Setting) -> Plan:
    """Returns a plan with runs as long as the setting's longest deadline asks for.

    What is too much for the devices shows after some deadlines only: in a run that is over before
    that, any load is held.
    """
    longest_s = max(task.default_deadline_s for task in setting.catalog.tasks)
    factor = min(LONGEST_FACTOR, max(1.0, longest_s / DEADLINE_S))
    return replace(
        plan,
        shortest_s=factor * plan.shortest_s,
        longest_s=factor * plan.longest_s,
        hold_s=factor * plan.hold_s,
    )


PLANS: Mapping[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan(
            name="quick",
            seed_count=3,
            sweep_loads=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0),
            soft_loads=(1.0, 4.0, 16.0, 25.0),
            window_loads=(0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0),
            gpu_loads=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0),
            shift_shares=(0.1, 0.35, 0.8),
            requests=6000,
            shortest_s=3.0,
            longest_s=15.0,
            windows_per_seed=7,
            trace_windows_per_seed=9,
            window_bound_seed_count=1,
            hold_seed_count=2,
            hold_s=5.0,
        ),
        Plan(
            name="full",
            seed_count=10,
            sweep_loads=(
                *(0.25, 0.375, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
                *(5.0, 6.0, 8.0, 10.0, 12.5, 16.0, 20.0, 25.0),
            ),
            soft_loads=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 25.0),
            window_loads=(0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.25, 1.5, 1.75, 2.0),
            gpu_loads=(0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 25.0),
            shift_shares=(0.05, 0.15, 0.35, 0.6, 0.8),
            requests=16_000,
            shortest_s=6.0,
            longest_s=30.0,
            windows_per_seed=20,
            # At least 200 with requests in them over ten seeds, at every load.
            trace_windows_per_seed=36,
            window_bound_seed_count=3,
            hold_seed_count=5,
            hold_s=8.0,
            pickers=True,
        ),
    )
}
"""Suites by name: `quick` for every day (minutes on two cores), `full` for the record."""

BRIEF = Plan(
    name="brief",
    seed_count=2,
    sweep_loads=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    soft_loads=(),
    window_loads=(),
    gpu_loads=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    shift_shares=(),
    requests=3000,
    shortest_s=3.0,
    longest_s=8.0,
    windows_per_seed=0,
    trace_windows_per_seed=0,
    window_bound_seed_count=0,
    hold_seed_count=1,
    hold_s=4.0,
)
"""What a first answer needs, after a training: the sweep, what is held, GPUs."""
