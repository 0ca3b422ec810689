"""All cases of the matrix, in the order of the page."""

from __future__ import annotations

from tests.faults.case import Case
from tests.faults.cases import (
    clock,
    disk,
    door_links,
    doors,
    mistakes,
    network,
    processes,
    redis,
    triton,
)

CASES: list[Case] = [
    *processes.CASES,
    *mistakes.CASES,
    *doors.CASES,
    *redis.CASES,
    *triton.CASES,
    *network.CASES,
    *door_links.CASES,
    *clock.CASES,
    *disk.CASES,
]
