"""Whose CPU time it was: of a process, of those below it, of the whole machine."""

from __future__ import annotations

import resource
import time
from typing import Any

import psutil

_CPU_CLOCK_OF_A_PROCESS = 2


def process_cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far, ended ones included, exact to nanoseconds.

    Raises:
        OSError: It has ended. (Linux.)
    """
    # Number of another process's CPU clock, as the C library's clock_getcpuclockid makes it.
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_A_PROCESS)


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process and all those below it; one that has just ended counts as nothing.

    Raises:
        psutil.NoSuchProcess: The process at the top has ended.
    """
    total_s = 0.0
    for each in (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))):
        try:
            total_s += process_cpu_s(each)
        except OSError:
            continue
    return total_s


def ended_children_cpu_s() -> float:
    """CPU seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def busy_share(before: Any, after: Any) -> float:
    """Share of the machine's CPU time that was not idle between two `psutil.cpu_times()`."""
    idle_s = after.idle + after.iowait - before.idle - before.iowait
    # Sums of floats, and a count of idle time that may run backwards by a tick.
    return min(1.0, max(0.0, 1.0 - float(idle_s / (sum(after[:8]) - sum(before[:8])))))
