"""The rates that loads are multiples of, measured before anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router.catalog import Catalog
from trainer.evaluation.cases import TRACE_PREFIX
from trainer.evaluation.hold import HoldJob, first_rate_rps
from trainer.evaluation.jobs import Context, Runner
from trainer.evaluation.plan import Plan
from trainer.evaluation.policies import yardsticks
from trainer.evaluation.rows import Row
from trainer.evaluation.shifts import NOMINAL, Shift


class EvaluationError(ValueError):
    """The protocol cannot be run on this setting; the message says why."""


@dataclass(frozen=True)
class Rates:
    """What loads are multiples of.

    Attributes:
        large_rps: highest rate static-large holds, safety net off, by setting.
        small_rps: highest rate always-small holds, safety net off, by setting.
    """

    large_rps: Mapping[str, float]
    small_rps: Mapping[str, float]

    def unit_rows(self, held: Mapping[str, float], policy: str) -> list[Row]:
        """Returns rates a policy holds, by setting, in units of load."""
        return [
            {
                "setting": name or NOMINAL,
                "policy": policy,
                "safety_net": False,
                "rate_rps": round(rps, 3),
                "load": round(rps / self.large_rps[""], 4),
            }
            for name, rps in held.items()
        ]


def measured_rates(
    runner: Runner,
    context: Context,
    catalog: Catalog,
    shifts: Sequence[Shift],
    plan: Plan,
    seeds: Sequence[int],
) -> Rates:
    """Returns the rates, a function of context, plan and seeds.

    Args:
        runner: what runs the searches; of the same context.
        context: settings and traces by name; static-large and always-small among its policies.
        catalog: tiers, lowest quality first.
        shifts: shifts whose hardware needs a rate of always-small's.
        plan: how long each search looks.
        seeds: evaluation seeds; the plan says how many of them are used.

    Raises:
        EvaluationError: static-large or always-small holds no rate at all.
    """
    small, large, _ = yardsticks(catalog)
    settings = context.settings
    large_in = ["", *(TRACE_PREFIX + name for name in context.traces)]
    small_in = list(dict.fromkeys(shift.hardware for shift in shifts))
    pairs = [(large, catalog.tiers[-1], name) for name in large_in]
    pairs += [(small, catalog.tiers[0], name) for name in small_in]
    jobs = [
        HoldJob(
            policy,
            safety=False,
            seeds=tuple(seeds[: plan.hold_seed_count]),
            duration_s=plan.hold_s,
            start_rps=first_rate_rps(settings[name], tier),
            setting=name,
        )
        for policy, tier, name in pairs
    ]
    held = runner.run("capacities", jobs)
    for (policy, _, name), rps in zip(pairs, held, strict=True):
        if rps <= 0.0:
            raise EvaluationError(
                f"{policy} holds no rate in setting {name or NOMINAL!r}: too few answers are "
                f"inside the deadline of {settings[name].deadline_s:g} s even on idle devices; "
                "give a longer deadline"
            )
    return Rates(
        dict(zip(large_in, held[: len(large_in)], strict=True)),
        dict(zip(small_in, held[len(large_in) :], strict=True)),
    )
