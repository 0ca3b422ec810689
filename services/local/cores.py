"""Who runs on which processor of this machine."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Sequence

TIER_NICE = 5
TRAINER_NICE = 10
GENERATOR_NICE = -5


@dataclasses.dataclass(frozen=True, slots=True)
class CoreLayout:
    """Processors and priorities of an embedded mesh.

    Attributes:
        service_cores: Where router, monitor, trainer, Redis and load generator run.
        device_cores: Where Triton and all its tiers run: one processor plays the device whose time
            they share. Same as ``service_cores`` on a machine with a single processor.
        tier_nice: Nice level of Triton and its tiers.
        trainer_nice: Nice level of the trainer.
    """

    service_cores: tuple[int, ...]
    device_cores: tuple[int, ...]
    tier_nice: int
    trainer_nice: int = TRAINER_NICE


def plan_cores(available: Sequence[int], *, can_raise_priority: bool) -> CoreLayout:
    """Gives the last processor to the tiers and the others to everything else.

    Args:
        available: Processors this process may use, at least one.
        can_raise_priority: Whether the load generator may take a raised priority.
    """
    cores = tuple(sorted(available))
    if len(cores) > 1:
        return CoreLayout(cores[:-1], cores[-1:], tier_nice=0)
    return CoreLayout(cores, cores, tier_nice=0 if can_raise_priority else TIER_NICE)


def machine_layout() -> CoreLayout:
    """Plans for the processors this process may use."""
    return plan_cores(
        sorted(os.sched_getaffinity(0)), can_raise_priority=can_raise_priority(GENERATOR_NICE)
    )


def can_raise_priority(nice: int) -> bool:
    """Says whether this user may run a process at a (negative) nice level."""
    if os.geteuid() == 0:
        return True
    ceiling, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return ceiling == resource.RLIM_INFINITY or 20 - ceiling <= nice
