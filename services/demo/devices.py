"""How many devices static-large would need to earn what a policy earned on one.

There is one device to measure on. So this part is simulated, on the profile and the quality that
the demo has just measured, over the arrivals of the replay. The same simulation of static-large on
one device stands beside its measured replay: that is how far to trust it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from router.catalog import Catalog, QualityTable
from router.profile import LatencyProfile
from router.types import Task
from services.demo.replay import PolicyRun
from services.demo.verdict import REFERENCE_POLICY
from trainer.evaluation.gpus import StaticLarge
from trainer.reference_tiers import tasks as reference_tasks
from trainer.simulation.setting import OwnMesh
from trainer.simulation.workload import OPT_LENGTHS, Workload

_EXAMPLES = 500


def static_large_devices(
    runs: Sequence[PolicyRun],
    best: str,
    *,
    profile: LatencyProfile,
    quality: QualityTable,
    tiers: Sequence[str],
    deadline_s: float,
    burst_factor: float,
    seed: int,
) -> dict[str, Any]:
    """Finds the fewest devices.

    Args:
        runs: The replays.
        best: The policy whose performance is the goal; one of them.
        profile: As measured.
        quality: As measured.
        tiers: Tier names, lowest quality first.
        deadline_s: Of every request.
        burst_factor: Rate of the burst over what static-large holds on one device.
        seed: Of lengths and simulation.

    Returns:
        JSON-ready: ``policy``, its ``performance``, devices ``needed`` (None if ``most_tried`` are
        too few), and of static-large on one device the performance ``simulated_on_one`` and
        ``measured_on_one`` (None if it was not replayed).
    """
    by_policy = {run.policy: run for run in runs}
    replay, static = by_policy[best], by_policy.get(REFERENCE_POLICY)
    names = replay.records.names["task"]
    tasks = tuple(Task(name, deadline_s) for name in names)
    catalog = Catalog.build(tuple(tiers), tasks, quality)
    mesh = OwnMesh("demo", catalog, quality, profile, (tuple(tiers),), OPT_LENGTHS)
    workload = _workload(replay, names, deadline_s, seed)
    reckoned = StaticLarge(mesh.setting(), workload, safety=True, seed=seed, warm_up_s=0.0)
    goal = replay.summary["total"]["performance"]
    # Twice what the burst needs: more devices than that add nothing.
    most = math.ceil(2.0 * burst_factor) + 4
    return {
        "policy": best,
        "performance": round(goal, 5),
        "needed": reckoned.fewest_devices(goal, most),
        "most_tried": most,
        "simulated_on_one": round(reckoned.performance(1), 5),
        "measured_on_one": (
            round(static.summary["total"]["performance"], 5) if static is not None else None
        ),
    }


def _workload(run: PolicyRun, names: Sequence[str], deadline_s: float, seed: int) -> Workload:
    """The replay's own arrivals and tasks, with lengths drawn from the tasks' examples."""
    columns = run.records.columns
    order = np.argsort(columns["intended_s"], kind="stable")
    task_N = columns["task"][order].astype(np.int64)
    rng = np.random.default_rng(seed)
    prompt_N, output_N = np.ones(len(order)), np.ones(len(order), np.int64)
    for index, name in enumerate(names):
        examples = reference_tasks.eval_set(name, _EXAMPLES, seed)
        mine_N = task_N == index
        drawn = rng.integers(0, len(examples), int(mine_N.sum()))
        prompt_N[mine_N] = np.array([len(each.prompt) for each in examples])[drawn]
        output_N[mine_N] = np.array([len(each.answer) + 1 for each in examples])[drawn]
    return Workload(
        arrival_N=columns["intended_s"][order],
        task_N=task_N,
        prompt_N=prompt_N,
        output_N=output_N,
        slack_N=np.full(len(order), deadline_s),
        duration_s=float(run.records.meta["duration_s"]),
        name="demo",
    )
