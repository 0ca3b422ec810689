"""How tight the bound is: beside it the price policy and a plan made with the requests in hand.

    python -m trainer.research.tightness --scenario poisson --rates-rps 101,404,1616 --seeds 2

The plan is a witness, not a policy: it gives every device one tier for the whole run, sends each
request to the tier of highest quality - lambda_tier x work, inside the tier to the device with the
least work, and takes lambdas and numbers of devices from a search on the very requests it is then
scored on. What it earns can be earned, so the best that can be earned lies between it and the
bound.

Shape letters: N requests, T tiers, D devices.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from numpy.typing import NDArray

from router.catalog import parse_quality
from router.policies.table import make_policy
from router.profile import parse_profile
from trainer.bound.performance import performance_bound
from trainer.evaluation.fluid import fluid_reference
from trainer.evaluation.scenarios import SCENARIOS
from trainer.shipped import PROFILES, QUALITY, shipped
from trainer.simulation import loop
from trainer.simulation.compiled import jit
from trainer.simulation.setting import Setting, shared_fleet_setting
from trainer.simulation.simulate import PolicySpec, make_world, result_of, simulate
from trainer.simulation.state import PROMPTS, REMAINING, World
from trainer.simulation.workload import Workload

RATES_RPS = "50.5,101,202,303,404,606,808,1212,1616,2424,3232,4040,4444"
WARM_UP_S = 1.0
TRIALS = 60
"""Trials of the plan's search per placement of tiers."""


@jit
def _run_plan(w: World, tier_N: NDArray[np.int64], role_D: NDArray[np.int64]) -> None:
    """Runs a world: each request to its tier's device with the least work ahead."""
    while True:
        i = loop.advance(w)
        if i < 0:
            return
        best = -1
        least_s = np.inf
        for c in range(len(w.candidates)):
            candidate = w.candidates[c]
            if w.fleet.tier_C[c] != tier_N[i] or role_D[candidate.device] != tier_N[i]:
                continue
            ahead_s = w.ledger_RLC[0, PROMPTS, c] * candidate.per_prompt_token_s
            ahead_s += w.ledger_RLC[0, REMAINING, c] * candidate.per_sequence_s
            ahead_s += w.ledger_RLC[0, REMAINING, c] * candidate.step_s / 8.0
            if ahead_s < least_s:
                least_s = ahead_s
                best = c
        loop.apply(w, i, best)


def planned_performance(
    setting: Setting, workload: Workload, warm_up_s: float, seed: int = 0
) -> float:
    """Returns the performance of the best plan found for exactly these requests."""
    config = setting.config(safety=True)
    quality_NT = setting.catalog.quality_KT[workload.task_N]
    profile = setting.profiles[""]
    tiers = [profile.tiers[name] for name in setting.catalog.tiers]
    work_NT = np.stack(
        [
            workload.prompt_N * t.per_prompt_token_s + workload.output_N * t.per_sequence_s
            for t in tiers
        ],
        axis=1,
    )
    rng = np.random.default_rng(seed)
    devices = range(len(setting.fleet.devices))
    best = 0.0

    def score(role_D: NDArray[np.int64], lambda_T: NDArray[np.float64]) -> float:
        score_NT = quality_NT - lambda_T * work_NT
        score_NT[:, np.setdiff1d(np.arange(len(tiers)), role_D)] = -np.inf
        world = make_world(config, workload, seed)
        _run_plan(world, score_NT.argmax(axis=1), role_D)
        return result_of(world, workload).performance(warm_up_s)

    for roles in itertools.combinations_with_replacement(range(len(tiers)), len(devices)):
        role_D = np.array(roles, np.int64)
        log_T, here = rng.normal(2.0, 0.5, len(tiers)), -1.0
        for trial in range(TRIALS):
            if trial > TRIALS // 3 and here < best - 0.03:
                break
            width = 1.5 * (1.0 - trial / TRIALS) + 0.05
            trial_T = log_T + width * rng.standard_normal(len(tiers))
            if (value := score(role_D, np.exp(trial_T))) > here:
                log_T, here = trial_T, value
        best = max(best, here)
    return best


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="poisson", choices=sorted(SCENARIOS))
    parser.add_argument("--rates-rps", default=RATES_RPS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--duration-s", type=float, default=20.0)
    parser.add_argument("--no-plan", action="store_true", help="leave out the plan, which is slow")
    arguments = parser.parse_args()
    profile_text = shipped(PROFILES, "opt-a100.toml").read_text()
    quality_text = shipped(QUALITY, "opt.toml").read_text()
    setting = shared_fleet_setting(
        "opt-a100",
        parse_profile(profile_text, "profiles/opt-a100.toml"),
        parse_quality(quality_text, "quality/opt.toml"),
    )
    price = PolicySpec.of(make_policy("price", setting.catalog, {}))
    config = setting.config(safety=True)
    print("| req/s | fluid reference | bound | price | share | plan | share |")
    print("|---|---|---|---|---|---|---|")
    for rate_rps in map(float, arguments.rates_rps.split(",")):
        rows = []
        for seed in range(901, 901 + arguments.seeds):
            rng = np.random.default_rng([seed, 7])
            make = SCENARIOS[arguments.scenario].make
            arrival_N = make(rate_rps, arguments.duration_s, rng)
            offered = setting.workload(arrival_N, arguments.duration_s, rng)
            bound = performance_bound(config, offered, warm_up_s=WARM_UP_S)
            earned = simulate(config, offered, price, seed).performance(WARM_UP_S)
            planned = np.nan
            if not arguments.no_plan:
                planned = planned_performance(setting, offered, WARM_UP_S)
            rows.append((bound, earned, planned))
        bound, earned, planned = np.mean(rows, axis=0)
        parts = [bound, earned, _share(earned, bound), planned, _share(planned, bound)]
        cells = " | ".join("-" if np.isnan(part) else f"{part:.3f}" for part in parts)
        fluid = fluid_reference(setting, rate_rps)
        print(f"| {rate_rps:.0f} | {fluid:.3f} | {cells} |", flush=True)


def _share(value: float, bound: float) -> float:
    """Returns the share of the bound; NaN, shown as a dash, where there is nothing to share."""
    return value / bound if bound > 0.0 else np.nan


if __name__ == "__main__":
    main()
