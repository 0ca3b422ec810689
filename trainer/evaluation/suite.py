"""The whole protocol: what runs, in which order, and the report that comes of it.

1. The rates that loads are multiples of: what static-large holds, what always-small holds.
2. All cases, side by side: sweep (hard and soft deadlines), unpredictable workloads, GPUs, shifts.
3. The highest rate each policy holds, searched where its sweep broke off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from router.catalog import QualityTable
from router.profile import LatencyProfile
from router.types import RewardKind
from trainer.evaluation import studies
from trainer.evaluation.answer import answer, best_policy
from trainer.evaluation.cases import TRACE_PREFIX, WINDOW_S, Case
from trainer.evaluation.fluid import FluidJob
from trainer.evaluation.gpus import GpuJob, gpu_rows
from trainer.evaluation.headlines import headlines
from trainer.evaluation.hold import HoldJob
from trainer.evaluation.jobs import Context, Job, Progress, Runner
from trainer.evaluation.pickers import PickerJob
from trainer.evaluation.plan import Plan, plan_for
from trainer.evaluation.policies import REGRET_BASELINE, Contender, specs, yardsticks
from trainer.evaluation.rates import Rates, measured_rates
from trainer.evaluation.regret import coping_points, gap_rows, regret_point_rows, regret_rows
from trainer.evaluation.rows import Row, labelled, ratio_rows, score_rows, violations
from trainer.evaluation.scenarios import WARM_UP_S
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.shifts import shift_cases, shift_rows, shifted_settings, shifts_of
from trainer.evaluation.windows import (
    window_bound_hold_rows,
    window_bound_rows,
    window_count_rows,
    window_hold_rows,
    window_rows,
)
from trainer.simulation.setting import HOLDS, Setting
from trainer.traces.fit import TraceModel
from trainer.traces.resample import trace_setting

SOFT = "soft"
RETRAINED_ASIDE = "it trains for itself: python -m trainer.research.retrained"
UNPREDICTABLE = ("gamma-cv4", "gamma-cv8", "markov")
"""Unpredictable arrival processes unless others are asked for; traces come on top."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        setting: fleet, tasks, deadline.
        contenders: policies by name, in the order of the tables; the yardsticks among them.
        learned: the learned policy the headlines are about; empty if there is none.
        workloads: unpredictable arrival processes, names in SCENARIOS.
        traces: fitted arrival traces by name.
        study: profile and quality table of the comparison of endpoint pickers; None: not run.
        retrained: the learned policy beside policies retrained for each shift, as a study.
        is_papers: the setting is the one that the paper's claims are about.
    """

    setting: Setting
    contenders: Mapping[str, Contender]
    learned: str = ""
    workloads: tuple[str, ...] = UNPREDICTABLE
    traces: Mapping[str, TraceModel] = field(default_factory=dict)
    study: tuple[LatencyProfile, QualityTable] | None = None
    retrained: Row = field(default_factory=lambda: studies.not_run(RETRAINED_ASIDE))
    is_papers: bool = True


def soft(setting: Setting) -> Setting:
    """Returns the setting with soft deadlines: a late answer earns less instead of nothing."""
    tasks = tuple(replace(t, reward_kind=RewardKind.SOFT) for t in setting.catalog.tasks)
    return replace(setting, catalog=replace(setting.catalog, tasks=tasks))


def run_suite(
    subject: Subject,
    plan: Plan,
    *,
    workers: int = 1,
    seed_count: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Runs the protocol and returns the report's results, JSON values only.

    Args:
        subject: what is evaluated.
        plan: how much of it.
        workers: processes; the results do not depend on their number.
        seed_count: evaluation seeds; 0: the plan's own number.
        progress: told what runs and how much of it is done.

    Raises:
        EvaluationError: static-large or always-small holds no rate at all.
        WorkloadError: next to no request of a trace fits its deadline.
    """
    suite = _Suite(subject, plan, evaluation_seeds(seed_count or plan.seed_count))
    with Runner(suite.context, workers, progress) as runner:
        return suite.run(runner)


class _Suite:
    """One run of the protocol."""

    def __init__(self, subject: Subject, plan: Plan, seeds: tuple[int, ...]) -> None:
        self._subject = subject
        self._plan = plan = plan_for(plan, subject.setting)
        self._seeds = seeds
        self._hold_seeds = seeds[: plan.hold_seed_count]
        settings = shifted_settings(subject.setting)
        self._shifts = shifts_of(settings)
        settings[SOFT] = soft(subject.setting)
        for name, model in subject.traces.items():
            settings[TRACE_PREFIX + name] = trace_setting(model, subject.setting)
        self.context = Context(settings, specs(subject.contenders), subject.traces)
        self._tiers = subject.setting.catalog.tiers
        self._small, self._large, _ = yardsticks(subject.setting.catalog)
        self._all = tuple(subject.contenders)
        # A zeroed twin is there to show what was learned, which the regret does.
        self._main = tuple(n for n, each in subject.contenders.items() if each.kind != "zeroed")

        # Other learned policies are shown, but the learned one is held against hand-made ones.
        self._not_baselines = [
            n for n, each in subject.contenders.items() if each.kind in ("learned", "zeroed")
        ]

    def run(self, runner: Runner) -> dict[str, Any]:
        """Returns the report's results."""
        rates = measured_rates(
            runner,
            self.context,
            self._subject.setting.catalog,
            self._shifts,
            self._plan,
            self._seeds,
        )
        names = dict.fromkeys((self._subject.learned or REGRET_BASELINE, REGRET_BASELINE))
        gpu_jobs = self._gpu_jobs(rates, tuple(names))
        study = self._subject.study
        found = _run_parts(
            runner,
            "policies",
            {
                "sweep": self._sweep_cases(rates),
                "soft": self._soft_cases(rates),
                "windows": self._window_cases(rates),
                "shifts": [
                    case
                    for shift in self._shifts
                    for case in shift_cases(
                        shift,
                        self._plan,
                        self._seeds,
                        self._all,
                        small_rps=rates.small_rps[shift.hardware],
                        unit_rps=rates.large_rps[""],
                    )
                ],
                "gpus": gpu_jobs,
                "fluid": [FluidJob(load * rates.large_rps[""]) for load in self._plan.sweep_loads],
                "picker": [PickerJob(*study, self._seeds)] if study is not None else [],
            },
        )
        fluid = dict(zip(self._plan.sweep_loads, found["fluid"], strict=True))
        sweep = score_rows(found["sweep"], self._tiers, fluid)
        windows = window_rows(found["windows"])
        window_bounds = window_bound_rows(found["windows"])
        shifts = shift_rows(score_rows(found["shifts"], self._tiers), self._shifts, rates.small_rps)
        families = {shift.name: shift.family for shift in self._shifts}
        points = coping_points(shifts, self._small)
        devices = len(self._subject.setting.fleet.devices)
        report: dict[str, Any] = {
            "load_unit": rates.unit_rows(rates.large_rps, self._large)[0],
            "load_units": rates.unit_rows(rates.large_rps, self._large),
            "always_small": rates.unit_rows(rates.small_rps, self._small),
            "sweep": labelled(sweep, "deadline", "hard"),
            "soft": labelled(score_rows(found["soft"], self._tiers), "deadline", "soft"),
            "load_ratio": self._load_ratio(runner, rates, sweep),
            "windows": windows,
            "window_bounds": window_bounds,
            "window_bound_loads": window_bound_hold_rows(window_bounds),
            "window_counts": window_count_rows(windows),
            "window_loads": window_hold_rows(windows),
            "per_gpu": gpu_rows(gpu_jobs, found["gpus"], devices),
            "shifts": shifts,
            "regret": regret_rows(found["shifts"], families, REGRET_BASELINE),
            "regret_where_small_copes": regret_rows(
                found["shifts"], families, REGRET_BASELINE, points
            ),
            "regret_points": regret_point_rows(found["shifts"], families, REGRET_BASELINE, points),
            "beside_baselines": gap_rows(
                found["sweep"], self._subject.learned, self._not_baselines
            ),
            "not_baselines": self._not_baselines,
            "violations": violations([*found["sweep"], *found["soft"], *found["shifts"]]),
            "iterations_vary": _iterations_vary(self._subject.setting),
        }
        pickers = found["picker"]
        reason = "it is part of the full suite"
        report["picker"] = studies.done(pickers[0]) if pickers else studies.not_run(reason)
        report["retrained"] = self._subject.retrained
        report["headlines"] = headlines(
            report,
            self._subject.learned,
            self._large,
            self._small,
            is_papers=self._subject.is_papers,
        )
        report["answer"] = self._answer(runner, rates, report)
        return report

    def _answer(self, runner: Runner, rates: Rates, report: dict[str, Any]) -> Row:
        """Answers what is asked first; counts the GPUs of the best policy if nobody has yet."""
        zeroed = [name for name in self._all if name not in self._main]
        best = best_policy(report["sweep"], zeroed, self._small, self._subject.learned)
        if all(row["policy"] != best for row in report["per_gpu"]):
            jobs = self._gpu_jobs(rates, [best], nets=(True,))
            counts = runner.run("GPUs of the best", jobs)
            devices = len(self._subject.setting.fleet.devices)
            report["per_gpu"] += gpu_rows(jobs, counts, devices)
        return answer(report, best, self._large)

    def _case(self, suite: str, load: float, rates: Rates, seed: int, **changes: Any) -> Case:
        """Returns a case whose load is in units of its own setting."""
        unit_rps = rates.large_rps.get(changes.get("setting", ""), rates.large_rps[""])
        rate_rps = load * unit_rps
        duration_s = self._plan.duration_s(rate_rps)
        case = Case(suite, "poisson", load, rate_rps, seed, duration_s, self._main)
        return replace(case, **changes)

    def _sweep_cases(self, rates: Rates) -> list[Case]:
        return [
            self._case("sweep", load, rates, seed)
            for load in self._plan.sweep_loads
            for seed in self._seeds
        ]

    def _soft_cases(self, rates: Rates) -> list[Case]:
        return [
            self._case("soft", load, rates, seed, setting=SOFT)
            for load in self._plan.soft_loads
            for seed in self._seeds
        ]

    def _window_cases(self, rates: Rates) -> list[Case]:
        traces = [TRACE_PREFIX + name for name in self._subject.traces]
        counts = dict.fromkeys(self._subject.workloads, self._plan.windows_per_seed)
        counts |= dict.fromkeys(traces, self._plan.trace_windows_per_seed)
        bound_seeds = self._seeds[: self._plan.window_bound_seed_count]
        return [
            self._case(
                "windows",
                load,
                rates,
                seed,
                label=name,
                scenario=name,
                setting=name if name in traces else "",
                duration_s=WARM_UP_S + WINDOW_S * count,
                windowed=True,
                bounded=seed in bound_seeds,
            )
            for name, count in counts.items()
            for load in self._plan.window_loads
            for seed in self._seeds
        ]

    def _gpu_jobs(
        self, rates: Rates, names: Sequence[str], nets: Sequence[bool] = (False, True)
    ) -> list[GpuJob]:
        points = [(load, load * rates.large_rps[""]) for load in self._plan.gpu_loads]
        return [
            GpuJob(name, net, load, rate_rps, seed, self._plan.duration_s(rate_rps))
            for name in names
            for net in nets
            for load, rate_rps in points
            for seed in self._seeds
        ]

    def _load_ratio(self, runner: Runner, rates: Rates, sweep: Sequence[Row]) -> list[Row]:
        """Searches the highest rate each policy holds, above all rates of the sweep it holds."""
        pairs = [(name, net) for name in self._main for net in (False, True)]
        unit_rps = rates.large_rps[""]
        jobs, reached = [], []
        for name, net in pairs:
            curve = sorted(
                (row["load"], row["availability"])
                for row in sweep
                if row["policy"] == name and row["safety_net"] is net
            )
            kept = 0
            while kept < len(curve) and curve[kept][1] >= HOLDS:
                kept += 1
            reached.append(curve[kept - 1][0] if kept else 0.0)
            start_rps = curve[max(kept - 1, 0)][0] * unit_rps
            high_rps = curve[kept][0] * unit_rps if 0 < kept < len(curve) else 0.0
            jobs.append(
                HoldJob(name, net, self._hold_seeds, self._plan.hold_s, start_rps, high_rps)
            )
        held = runner.run("highest loads", jobs)
        return ratio_rows(pairs, held, reached, unit_rps, self._large)


def _iterations_vary(setting: Setting) -> bool:
    """Returns whether a run may be lucky with its iterations, which the bound does not cover."""
    tiers = (tier for each in setting.profiles.values() for tier in each.tiers.values())
    return any(tier.iteration_cv > 0.0 for tier in tiers)


def _run_parts(
    runner: Runner, text: str, parts: Mapping[str, Sequence[Job]]
) -> dict[str, list[Any]]:
    """Runs all jobs of all parts together and returns their results by part."""
    results = iter(runner.run(text, [job for jobs in parts.values() for job in jobs]))
    return {name: [next(results) for _ in jobs] for name, jobs in parts.items()}
