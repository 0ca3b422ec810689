"""What past requests could have earned: the bound by task, and static-large on more devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from router.catalog import Catalog
from router.types import SloKind, Task
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
MOST_KINDS = 64
"""Kinds of deadlines that are told apart to the last digit of the time between tokens."""
_LEAST_SLACK_S = 1e-3
_SEED = 1


def look_back(setting: Setting, requests: Sequence[PastRequest], most_devices: int) -> LookBack:
    """Reckons what requests could have earned.

    Args:
        setting: Devices, costs, quality.
        requests: At least one, of tasks of the setting, in any order.
        most_devices: Most devices tried for the largest tier alone.
    """
    names = [task.name for task in setting.catalog.tasks]
    parts = dict.fromkeys(names, 0.0)
    setting, requests, origin_K = by_kind(setting, requests)
    workload = workload_of(setting, requests)
    static = StaticLarge(setting, workload, safety=True, seed=_SEED, warm_up_s=0.0)
    found: list[tuple[int, float]] = []
    for count in device_counts(most_devices):
        found.append((count, static.performance(count)))
        if found[-1][1] >= ENOUGH:
            break
    for k, part in zip(origin_K, task_parts(setting.config(), workload).tolist(), strict=True):
        parts[names[k]] += part
    return LookBack(parts, tuple(found))


def by_kind(
    setting: Setting, requests: Sequence[PastRequest]
) -> tuple[Setting, list[PastRequest], list[int]]:
    """Returns setting and requests in which every kind of deadline has a task of its own.

    Requests may ask for another kind than their task's, or for another time between tokens.

    Returns:
        The setting, the requests, and of which task of the first setting each task is.
    """
    tasks = list(setting.catalog.tasks)
    index = {task.name: k for k, task in enumerate(tasks)}
    origin_K = list(range(len(tasks)))
    found = {(k, task.slo_kind, _interval_s(task)): task.name for k, task in enumerate(tasks)}
    asked = [(index[each.task], *_event(each, tasks[index[each.task]])) for each in requests]
    if len(set(asked)) > MOST_KINDS:
        # Later due times only loosen the bound.
        asked = [(k, kind, _octave_s(interval_s)) for k, kind, interval_s in asked]
    named = []
    for each, kind_of in zip(requests, asked, strict=True):
        if kind_of not in found:
            k, kind, interval_s = kind_of
            found[kind_of] = f"{tasks[k].name} {len(tasks)}"  # no task's: their names have no space
            other = replace(tasks[k], name=found[kind_of], slo_kind=kind)
            tasks.append(replace(other, token_interval_s=interval_s or other.token_interval_s))
            origin_K.append(k)
        named.append(each._replace(task=found[kind_of]))
    quality_KT = np.ascontiguousarray(setting.catalog.quality_KT[origin_K])
    arrays = setting.fleet.arrays
    quality_KC = np.ascontiguousarray(quality_KT[:, arrays.tier_C])
    fleet = replace(setting.fleet, arrays=arrays._replace(quality_KC=quality_KC))
    catalog = Catalog(setting.catalog.tiers, tuple(tasks), quality_KT)
    return replace(setting, catalog=catalog, fleet=fleet, task_share=()), named, origin_K


def _event(request: PastRequest, task: Task) -> tuple[SloKind, float]:
    """Returns what a request's deadline was for, and the time between due times of tokens."""
    kind = request.slo_kind or task.slo_kind
    if kind is not SloKind.PER_TOKEN:
        return kind, 0.0
    return kind, request.token_interval_s or task.token_interval_s


def _interval_s(task: Task) -> float:
    return task.token_interval_s if task.slo_kind is SloKind.PER_TOKEN else 0.0


def _octave_s(interval_s: float) -> float:
    """Returns the power of two at or above a time, but for 0 and what is below a millisecond."""
    return 2.0 ** math.ceil(math.log2(max(interval_s, 1e-3))) if interval_s > 0.0 else 0.0


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
