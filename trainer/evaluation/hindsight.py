"""What past requests could have earned: the bound by task, and static-large on more devices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.bound.parts import task_parts
from trainer.evaluation.gpus import StaticLarge
from trainer.evaluation.past import LookBack, PastRequest
from trainer.simulation.setting import Setting
from trainer.simulation.workload import Workload

ALL_UP_TO = 8
"""Numbers of devices are tried one by one so far, then in steps of an eighth."""
MOST_TRIED = 64
ENOUGH = 0.999
"""More devices than earn this add nothing."""
_LEAST_SLACK_S = 1e-3
_SEED = 1


def look_back(setting: Setting, requests: Sequence[PastRequest], most_devices: int) -> LookBack:
    """Reckons what requests could have earned.

    Args:
        setting: Devices, costs, quality.
        requests: At least one, of tasks of the setting, in any order.
        most_devices: Most devices tried for the largest tier alone.
    """
    workload = workload_of(setting, requests)
    static = StaticLarge(setting, workload, safety=True, seed=_SEED, warm_up_s=0.0)
    found: list[tuple[int, float]] = []
    for count in device_counts(most_devices):
        found.append((count, static.performance(count)))
        if found[-1][1] >= ENOUGH:
            break
    parts_K = task_parts(setting.config(), workload)
    names = [task.name for task in setting.catalog.tasks]
    return LookBack(dict(zip(names, parts_K.tolist(), strict=True)), tuple(found))


def workload_of(setting: Setting, requests: Sequence[PastRequest]) -> Workload:
    """Returns requests as the simulator takes them, the first at time 0.

    What was cached of a prompt, and what could have been, is left out of it.
    """
    index = {task.name: k for k, task in enumerate(setting.catalog.tasks)}
    ordered = sorted(requests, key=lambda each: each.arrival_s)
    first_s = ordered[0].arrival_s
    room = max(tier.prefix_cache_tokens for tier in setting.profiles[""].tiers.values())
    arrival_N = np.array([each.arrival_s - first_s for each in ordered])
    return Workload(
        arrival_N=arrival_N,
        task_N=np.array([index[each.task] for each in ordered], np.int64),
        prompt_N=np.array(
            [float(max(1, e.prompt_tokens - min(e.cached_tokens, room))) for e in ordered]
        ),
        output_N=np.array([each.output_tokens for each in ordered], np.int64),
        slack_N=np.array([max(_LEAST_SLACK_S, each.slack_s) for each in ordered]),
        duration_s=float(arrival_N[-1]) + _LEAST_SLACK_S,
        name="past",
    )


def device_counts(most: int) -> list[int]:
    """Returns the numbers of devices to try, ascending, the last one `most` or close to it."""
    counts: list[int] = []
    count = 1
    while count <= most and len(counts) < MOST_TRIED:
        counts.append(count)
        count += max(1, count // ALL_UP_TO)
    return counts
