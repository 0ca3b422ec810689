"""A small subject and plan: two devices, two tasks, a whole protocol in about a second."""

from __future__ import annotations

from router.catalog import parse_quality
from router.dqn.snapshot import zero_weights
from router.features import FEATURE_COUNT
from tests.unit.router import fleets
from trainer.evaluation import policies
from trainer.evaluation.plan import Plan
from trainer.evaluation.policies import Contender
from trainer.evaluation.setting import Setting, shared_fleet_setting
from trainer.evaluation.suite import Subject
from trainer.simulation.simulate import PolicySpec
from trainer.simulation.workload import Lengths

QUALITY = parse_quality(
    'name = "test"\n[quality.easy]\nsmall = 0.8\nmedium = 0.95\nlarge = 1.0\n'
    "[quality.hard]\nsmall = 0.4\nmedium = 0.8\nlarge = 1.0\n",
    "test",
)
PLAN = Plan(
    name="tiny",
    seed_count=2,
    sweep_loads=(0.5, 4.0),
    soft_loads=(2.0,),
    window_loads=(0.5, 2.0),
    gpu_loads=(1.0, 4.0),
    shift_shares=(0.1,),
    requests=300,
    shortest_s=1.5,
    longest_s=3.0,
    windows_per_seed=1,
    trace_windows_per_seed=1,
    window_bound_seed_count=1,
    hold_seed_count=1,
    hold_s=2.0,
)


def setting() -> Setting:
    """Returns two devices with three tiers."""
    return shared_fleet_setting(
        "test", fleets.profile(), QUALITY, device_count=2, lengths=Lengths(prompt_sigma=0.0)
    )


def contenders() -> dict[str, Contender]:
    """Returns the yardsticks and a learned policy that has learned nothing."""
    own = setting()
    found = {
        name: policies.baseline(name, own.catalog) for name in policies.yardsticks(own.catalog)
    }
    spec = PolicySpec.dqn(zero_weights(FEATURE_COUNT, 4))
    found |= {c.name: c for c in policies.with_zeroed(Contender("dqn", spec, "v", "learned"))}
    return found


def subject() -> Subject:
    """Returns the setting with its contenders."""
    return Subject(setting(), contenders(), "dqn", workloads=("gamma-cv4",))
