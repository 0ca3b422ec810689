"""A small plan, and runs nobody had to wait for."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from services.live.compare import RUN, WARM_UP, LiveRun, Plan
from services.live.run import Measured
from services.loadgen.records import COLUMNS, LATE, NAMED, ON_TIME, RunRecords
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped

PLAN = Plan(
    profile=shipped(PROFILES, "opt-a100.toml"),
    quality=shipped(QUALITY, "opt.toml"),
    snapshot=shipped(POLICIES, "opt-a100.safetensors"),
    policies=("price", "static-small"),
    loads=(1.0, 4.0),
    devices=4,
    routers=1,
    seeds=1,
    seconds=10.0,
    time_scale=20.0,
    cpu_limit=0.7,
)


def live_run(*, busy: float = 0.5, latency_s: float = 4.0, **changed: Any) -> LiveRun:
    """Returns a run of price of four requests: one of the warm-up, two in time, one late."""
    columns = {name: np.zeros(4, dtype) for name, dtype in COLUMNS.items()}
    columns["phase"][1:] = 1
    columns["latency_s"][:] = [1.0, latency_s, latency_s, 8.0]
    columns["status"][:] = [ON_TIME, ON_TIME, ON_TIME, LATE]
    columns["quality"][:] = 0.75
    columns["answered"][:] = [True, True, True, False]
    names = dict.fromkeys(NAMED, ("price",)) | {"phase": (WARM_UP, RUN), "tier": ("small",)}
    records = RunRecords(columns, names, {"deadline_s": 8.0})
    tasks = ("hellaswag", "piqa", "copa", "openbookqa")
    run = LiveRun(
        load=4.0,
        rate_rps=800.0,
        time_scale=20.0,
        policy="price",
        seed=0,
        spec=PLAN.spec(("127.0.0.1:1",), tasks, 20.0, 800.0, 0),
        measured=Measured(records, 30.0, {"triton": 0.2}, busy, 0.004),
    )
    return dataclasses.replace(run, **changed)
