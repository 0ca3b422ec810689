"""What an evaluation ran on, so that its numbers can be judged and had again."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil

from trainer.evaluation.inputs import Inputs
from trainer.evaluation.plan import Plan

PACKAGES = ("tiercel", "numpy", "scipy", "numba", "torch", "matplotlib")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Processor, memory and system."""
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers."""
    return package_versions(PACKAGES)


def commit(root: pathlib.Path | None) -> str:
    """Commit of the sources, with "+changes" if files differ from it; "unknown" outside git."""
    git = shutil.which("git")
    if root is None or git is None:
        return "unknown"

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [git, "-C", str(root), *arguments],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    head = ask("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    return f"{head}+changes" if ask("status", "--porcelain", "--untracked-files=no") else head


def now() -> str:
    """Date and time in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def setting(inputs: Inputs) -> dict[str, Any]:
    """What was held fixed, for the report."""
    own, profile = inputs.setting, inputs.profile
    return {
        "mesh": own.name,
        "profile": profile.name,
        "profile_source": profile.source,
        "profile_description": profile.description,
        "quality": inputs.quality.name,
        "quality_source": inputs.quality.source,
        "devices": len(own.fleet.devices),
        "tiers": list(own.catalog.tiers),
        "tasks": [task.name for task in own.catalog.tasks],
        "deadline_s": own.deadline_s,
        "deadlines_s": {task.name: task.default_deadline_s for task in own.catalog.tasks},
        "lengths": dataclasses.asdict(own.lengths),
        "workloads": list(inputs.workloads),
        "traces": list(inputs.traces),
    }


def plan(chosen: Plan) -> dict[str, Any]:
    """How much of each part was run."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(chosen).items()
    }


def cpu_model() -> str:
    """Name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of what matters of the Python side."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
