"""One evaluation from its inputs to its report."""

from __future__ import annotations

import os
import time
from typing import Any

from router.folders import checkout
from trainer.evaluation import facts, studies
from trainer.evaluation.inputs import Inputs
from trainer.evaluation.jobs import Progress
from trainer.evaluation.plan import Plan, plan_for
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.suite import Subject, run_suite


def run_evaluation(
    inputs: Inputs,
    plan: Plan,
    *,
    seed_count: int,
    workers: int,
    command: str,
    progress: Progress,
) -> dict[str, Any]:
    """Runs every part of the protocol.

    Args:
        inputs: What is evaluated.
        plan: How much of each part is run.
        seed_count: Evaluation seeds; 0 = the plan's own number.
        workers: Processes.
        command: What was typed, for the report.
        progress: Told how much of each stage is done.

    Returns:
        The report, JSON-ready.

    Raises:
        EvaluationError: The setting is one in which nothing can be compared.
        WorkloadError: Its requests cannot be drawn.
    """
    began_s = time.monotonic()
    subject = Subject(
        inputs.setting,
        inputs.contenders,
        inputs.learned,
        inputs.workloads,
        inputs.traces,
        (inputs.profile, inputs.quality) if plan.pickers else None,
        inputs.retrained,
        inputs.is_papers,
    )
    # Set before workers start, which inherit it: two processes with two threads each fight.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    results = run_suite(subject, plan, workers=workers, seed_count=seed_count, progress=progress)
    return {
        "suite": plan.name,
        "command": command,
        "commit": facts.commit(checkout()),
        "seeds": list(evaluation_seeds(seed_count or plan.seed_count)),
        "setting": facts.setting(inputs),
        "plan": facts.plan(plan_for(plan, inputs.setting)),
        "policies": {
            name: {"kind": each.kind, "version": each.version}
            for name, each in inputs.contenders.items()
        },
        "learned": inputs.learned,
        "is_papers": inputs.is_papers,
        "notes": list(inputs.notes),
        **results,
        "crosscheck": (
            studies.done([dict(row) for row in inputs.crosscheck])
            if inputs.crosscheck
            else studies.not_run("it trains for itself: python -m trainer.research.crosscheck")
        ),
        "machine": facts.machine(),
        "versions": facts.versions(),
        "run": {
            "date": facts.now(),
            "took_s": round(time.monotonic() - began_s, 1),
            "workers": workers,
        },
    }
