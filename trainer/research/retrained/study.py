"""What a policy would gain by being retrained for each shift of the evaluation's protocol.

For every shift training goes on from the given snapshot, on episodes of that shift alone. Whichever
of the two, snapshot or result, earns more on validation streams of the shift stands for "a policy
retrained for the shift"; evaluation streams have no say in it. Then both answer the very requests
of the protocol's shifts, and their performance is compared seed by seed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from router.catalog import Catalog, QualityTable
from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from trainer.evaluation.cases import CaseResult
from trainer.evaluation.gpus import SERVES_NOTHING
from trainer.evaluation.jobs import Context, Progress, Runner
from trainer.evaluation.plan import Plan, plan_for
from trainer.evaluation.policies import baseline, learned, specs, yardsticks
from trainer.evaluation.rates import Rates, measured_rates
from trainer.evaluation.rows import Row, measured, ratio_of_means, rounded
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.shifts import Shift, shift_cases, shifted_settings, shifts_of
from trainer.learning.offline.config import Budget, OfflineConfig
from trainer.learning.offline.policy_iteration import PolicyIteration
from trainer.learning.offline.validation import score
from trainer.research.retrained.scenarios import ShiftScenarios, shift_scenarios, training_seed
from trainer.simulation.scenarios import Mesh
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import PolicySpec

ORIGINAL, RETRAINED = "original", "retrained"


@dataclass(frozen=True)
class Task:
    """What is retrained, and how long.

    Attributes:
        snapshot: the snapshot's bytes.
        setting: the nominal setting.
        quality: its quality table.
        plan: the plan whose shifts are met.
        rounds: rounds of training per shift.
        seed: of the training.
        seed_count: evaluation seeds; 0: the plan's own number.
        shifts: names of the shifts; empty: all.
        config: how each run learns; None: as shipped policies did.
    """

    snapshot: bytes
    setting: Setting
    quality: QualityTable
    plan: Plan
    rounds: int
    seed: int = 1
    seed_count: int = 0
    shifts: tuple[str, ...] = ()
    config: OfflineConfig | None = None


@dataclass(frozen=True)
class RetrainJob:
    """Retrains for one shift.

    Attributes:
        scenarios: its episodes.
        mesh: what the policy serves.
        snapshot: what training starts from.
        rounds: rounds of training.
        seed: of the training.
        shares: of `small_rps`: the rates of validation.
        small_rps: what always-small holds on the shift's hardware.
        config: how the run learns; None: the defaults.
    """

    scenarios: ShiftScenarios
    mesh: Mesh
    snapshot: bytes
    rounds: int
    seed: int
    shares: tuple[float, ...]
    small_rps: float
    config: OfflineConfig | None

    @property
    def cost(self) -> float:
        """The same for all: what a round takes hardly depends on the shift."""
        return float(self.rounds)

    def run(self, context: Context) -> Trained:
        """Trains, and keeps what is better on the shift's validation streams."""
        del context
        torch.set_num_threads(1)
        start_s = time.process_time()
        validation = self.scenarios.validation(self.shares, self.small_rps)
        run = PolicyIteration(
            self.mesh,
            self.config,
            seed=self.seed,
            initial=self.snapshot,
            scenarios=self.scenarios,
            validation=validation,
        )
        for _ in run.steps(Budget(seconds=1.0, rounds=self.rounds), lambda: 0.0):
            pass
        blob = run.snapshot()
        catalog = self.mesh.catalog
        before = score(dqn_spec(self.snapshot, catalog), validation)["performance"]
        after = score(dqn_spec(blob, catalog), validation)["performance"]
        better = after > before
        facts: Row = {
            "shift": self.scenarios.shift.name,
            "rounds": self.rounds,
            "seed": self.seed,
            "samples": load_snapshot(blob, SCHEMA).transition_count,
            "validation_original": rounded(before),
            "validation_trained": rounded(after),
            "kept": RETRAINED if better else ORIGINAL,
        }
        cpu_s = time.process_time() - start_s
        return Trained(blob if better else self.snapshot, facts, cpu_s)


@dataclass(frozen=True)
class Trained:
    """What one job made.

    Attributes:
        snapshot: the policy that stands for the retrained one.
        facts: about its training; a function of the job.
        cpu_s: processor time, seconds.
    """

    snapshot: bytes
    facts: Row
    cpu_s: float


def dqn_spec(blob: bytes, catalog: Catalog) -> PolicySpec:
    """Returns a snapshot's policy; raises SnapshotError if it is damaged or no `dqn`."""
    load_snapshot(blob, SCHEMA)
    return learned(blob, catalog, "snapshot")[0].spec


def chosen_shifts(setting: Setting, names: Sequence[str]) -> list[Shift]:
    """Returns the protocol's shifts by name, or all; raises LookupError for an unknown name."""
    known = shifts_of(shifted_settings(setting))
    unknown = [name for name in names if name not in {shift.name for shift in known}]
    if unknown:
        listed = ", ".join(repr(shift.name) for shift in known)
        raise LookupError(f"unknown shift {unknown[0]!r}; known: {listed}")
    return [shift for shift in known if not names or shift.name in names]


def run_study(task: Task, *, workers: int = 1, progress: Progress | None = None) -> dict[str, Any]:
    """Retrains for every shift and compares; JSON values only.

    All but `cpu_s` is a function of the task, whatever the number of workers.

    Raises:
        EvaluationError: static-large or always-small holds no rate at all.
        SnapshotError: the snapshot is damaged, of another schema or catalog, or no `dqn`.
        LookupError: an unknown shift.
    """
    catalog = task.setting.catalog
    task = replace(task, plan=plan_for(task.plan, task.setting))
    shifts = chosen_shifts(task.setting, task.shifts)
    seeds = evaluation_seeds(task.seed_count or task.plan.seed_count)
    settings = shifted_settings(task.setting)
    own = {name: baseline(name, catalog) for name in yardsticks(catalog)}
    original = dqn_spec(task.snapshot, catalog)
    context = Context(settings, specs(own))
    with Runner(context, workers, progress) as runner:
        rates = measured_rates(runner, context, catalog, shifts, task.plan, seeds)
        jobs = [_job(task, shift, settings, rates) for shift in shifts]
        trained: list[Trained] = runner.run("retraining", jobs)
    names = {shift.name: f"{RETRAINED} {shift.name}" for shift in shifts}
    policies = {ORIGINAL: original}
    for shift, each in zip(shifts, trained, strict=True):
        policies[names[shift.name]] = dqn_spec(each.snapshot, catalog)
    cases = [
        replace(case, bounded=False)
        for shift in shifts
        for case in shift_cases(
            shift,
            task.plan,
            seeds,
            (ORIGINAL, names[shift.name]),
            small_rps=rates.small_rps[shift.hardware],
            unit_rps=rates.large_rps[""],
        )
    ]
    with Runner(Context(settings, policies), workers, progress) as runner:
        results = runner.run("comparing", cases)
    return {
        "snapshot_version": load_snapshot(task.snapshot, SCHEMA).version,
        "setting": task.setting.facts(),
        "plan": task.plan.name,
        "seeds": list(seeds),
        "rounds": task.rounds,
        "seed": task.seed,
        "load_unit_rps": rounded(rates.large_rps[""]),
        "rows": compared_rows(results, shifts, rates.small_rps),
        "training": [each.facts for each in trained],
        "cpu_s": [round(each.cpu_s, 1) for each in trained],
    }


def _job(task: Task, shift: Shift, settings: Mapping[str, Setting], rates: Rates) -> RetrainJob:
    small_rps = rates.small_rps[shift.hardware]
    scenarios = shift_scenarios(shift, settings[shift.setting], task.plan, small_rps)
    nominal = task.setting
    mesh = Mesh.build(
        profile=nominal.profiles[""],
        quality=task.quality,
        tasks=nominal.catalog.tasks,
        deadline_s=nominal.deadline_s,
        devices=len(nominal.fleet.devices),
        max_rate_rps=scenarios.high_rps,
        lengths=nominal.lengths,
    )
    return RetrainJob(
        scenarios,
        mesh,
        task.snapshot,
        task.rounds,
        training_seed(task.seed, shift.name),
        task.plan.shift_shares,
        small_rps,
        task.config,
    )


def compared_rows(
    results: Sequence[CaseResult], shifts: Sequence[Shift], small_rps: Mapping[str, float]
) -> list[Row]:
    """Returns a row per shift, load and net: both performances and the ratio of means, in pairs.

    The ratio is None where the retrained policy too serves less than SERVES_NOTHING: the load is
    then beyond everybody, and there is nothing to be near to.

    Args:
        results: cases of two policies each, the original one first.
        shifts: the shifts.
        small_rps: what always-small holds, by hardware.
    """
    by_name = {shift.name: shift for shift in shifts}
    groups: dict[tuple[str, float, bool], list[CaseResult]] = {}
    for result in results:
        for net in result.case.nets:
            groups.setdefault((result.case.label, result.case.load, net), []).append(result)
    rows = []
    for (name, load, net), found in groups.items():
        case = found[0].case
        before, after = ([r.outcomes[policy, net] for r in found] for policy in case.policies)
        own, other = ([o.performance for o in side] for side in (before, after))
        ratio: Row = {"ratio": None, "ratio_ci95": None}
        if np.mean(other) >= SERVES_NOTHING:
            ratio = measured("ratio", ratio_of_means(own, other))
        rows.append(
            {
                "shift": name,
                "family": by_name[name].family,
                "load": rounded(load),
                "share_of_always_small": rounded(case.rate_rps / small_rps[by_name[name].hardware]),
                "safety_net": net,
                **measured("performance", own),
                **measured("retrained_performance", other),
                **ratio,
                **measured("availability", (o.availability for o in before)),
                **measured("retrained_availability", (o.availability for o in after)),
            }
        )
    return rows
