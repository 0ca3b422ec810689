"""The same requests through a live router and through the simulator, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.dqn.snapshot import load_snapshot
from router.fleet import EndpointSpec, build_fleet
from router.home import WHOLE, Share
from router.policies.dqn import DqnPolicy
from router.policies.table import make_policy
from router.policy import Policy
from router.profile import LatencyProfile, TierProfile
from router.reserve import SHARES
from router.safety import SafetyLimits
from router.types import RewardKind, SloKind, Task
from services.common.errors import DomainError
from services.router_inference.job import Job
from services.router_inference.machine_code import MachineCode
from tests.fakes.virtual_time import run_virtual
from tests.twin.device import Device
from tests.unit.router.machine import compiled_bind
from tests.unit.services.router_inference.parts import FakePool, make_rig
from trainer.simulation import state
from trainer.simulation.simulate import (
    SOFT_GRACE,
    FleetEvent,
    PolicySpec,
    SimulationConfig,
    simulate,
)
from trainer.simulation.workload import Times, Workload, make_workload

TIERS = ("small", "medium", "large")
DECAY_S = 0.125
TASKS = (
    Task("easy", 0.4),
    Task("difficult", 0.4),
    Task("patient", 0.4, reward_kind=RewardKind.SOFT, soft_decay_s=DECAY_S),
    Task("chatty", 0.4, slo_kind=SloKind.FIRST_TOKEN),
)
QUALITY = QualityTable(
    "twin",
    "assumed",
    {
        "easy": {"small": 0.8, "medium": 0.95, "large": 1.0},
        "difficult": {"small": 0.4, "medium": 0.8, "large": 1.0},
        "patient": {"small": 0.6, "medium": 0.9, "large": 1.0},
        "chatty": {"small": 0.6, "medium": 0.9, "large": 1.0},
    },
    {},
)
# The shape of the OPT ladder, with batches so small that some hundred requests are an overload.
PROFILE = LatencyProfile(
    "twin",
    "assumed",
    {
        "small": TierProfile(0.0014, 0.00001, 0.0000045, max_batch=8),
        "medium": TierProfile(0.0039, 0.00003, 0.000024, max_batch=8),
        "large": TierProfile(0.0105, 0.00008, 0.000084, max_batch=8),
    },
)
SHARED = (TIERS, TIERS)
"""Two devices with every tier on each: a rescue hardly ever pays, as the tiers share the time."""
APART = (("medium", "large"), ("small",))
"""The small tier on a device of its own: there rescues pay."""
Placement = tuple[tuple[str, ...], ...]
LIMITS = SafetyLimits(optimism=0.7, margin=1.25, guard_s=0.005, pessimism=1.75)
_GRID = 2.0**30
_LEAST_GAP_S = 2.0**-17


@dataclass(frozen=True)
class Setting:
    """What a workload meets in both worlds.

    Attributes:
        placement: tiers of each device.
        safety: safety net on.
        slow: factor on the devices' times beside their profile, which routers do not know.
        target: of every task; 0 = none.
        reserve: what room is kept for, as routers' settings say it.
        home: the router's stretch of the devices.
    """

    placement: Placement = SHARED
    safety: bool = True
    slow: float = 1.0
    target: float = 0.99
    reserve: str = "none"
    home: Share = WHOLE

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, with their target."""
        return tuple(replace(task, target=self.target) for task in TASKS)


class Story(NamedTuple):
    """What became of one request.

    Attributes:
        action: first choice, a candidate's row; -1 if it was refused.
        end: how it ended.
        tier: tier that answered or was last tried; -1 if it was refused.
        is_rescued: it was sent to a smaller tier under way.
    """

    action: int
    end: str
    tier: int
    is_rescued: bool


@dataclass(frozen=True)
class Told:
    """All that two worlds are compared by.

    Attributes:
        stories: one per request.
        first_reward_N: what each decision earned.
        reward_N: what was delivered.
        latency_N: from arrival to end, seconds.
    """

    stories: list[Story]
    first_reward_N: NDArray[np.float64]
    reward_N: NDArray[np.float64]
    latency_N: NDArray[np.float64]


def workload(
    arrival_N: Times, task_share: tuple[float, ...], deadline_s: float, seed: int
) -> Workload:
    """Returns requests at these times, the first one at zero.

    Every time is a multiple of 2^-30 s, so that sums and differences of arrivals and deadlines are
    exact whichever way they are written. No two requests arrive at once: their order would be the
    event loop's.
    """
    arrival_N = np.round((arrival_N - arrival_N.min()) * _GRID) / _GRID
    arrival_N += np.arange(len(arrival_N)) * _LEAST_GAP_S
    return make_workload(
        arrival_N,
        float(arrival_N.max()),
        rng=np.random.default_rng([seed, 1]),
        deadline_s=round(deadline_s * _GRID) / _GRID,
        task_share=task_share,
    )


def policy_of(name: str, snapshot: bytes) -> Policy:
    """Returns a new policy by name; `dqn` from its snapshot."""
    if name == "dqn":
        return DqnPolicy(load_snapshot(snapshot))
    return make_policy(name, Catalog.build(TIERS, TASKS, QUALITY), {})


def simulated(offered: Workload, policy: Policy, world: Setting) -> Told:
    """Runs a workload through the simulator."""
    catalog = Catalog.build(TIERS, world.tasks, QUALITY)
    endpoints = [
        EndpointSpec(f"e{i}", "", f"e{i}", {tier: tier for tier in tiers})
        for i, tiers in enumerate(world.placement)
    ]
    profiles = {"": PROFILE}
    events = tuple(FleetEvent(0.0, i, "slow", world.slow) for i in range(len(endpoints)))
    fleet = build_fleet(catalog, endpoints, profiles)
    config = SimulationConfig(
        fleet,
        catalog,
        profiles,
        safety=world.safety,
        limits=LIMITS,
        events=events,
        hold_targets=world.safety,
        reserve=SHARES[world.reserve],
        homes=(world.home,),
    )
    result = simulate(config, offered, PolicySpec.of(policy), seed=1)
    ends = {state.CANCELLED: "late", state.REFUSED: "refused"}
    stories = [
        Story(
            int(result.action_N[i]),
            ends.get(int(result.status_N[i]), "on_time" if result.on_time_N[i] else "late"),
            int(result.tier_N[i]),
            bool(result.rescued_N[i]),
        )
        for i in range(len(offered))
    ]
    return Told(stories, result.first_reward_N, result.reward_N, result.latency_N)


def lived(offered: Workload, policy: Policy, world: Setting) -> Told:
    """Runs a workload through the parts of a live router."""
    return run_virtual(_live(offered, policy, world), start_s=0.0)


async def _live(offered: Workload, policy: Policy, world: Setting) -> Told:
    names = [f"r{i}" for i in range(len(offered))]
    lengths = offered.output_N.tolist()
    pool, endpoints = FakePool(), []
    for i, tiers in enumerate(world.placement):
        costs = {tier: PROFILE.tiers[tier] for tier in tiers}
        address = f"127.0.0.1:{9000 + i}"
        pool.tiers[address] = Device(costs, lengths.__getitem__, world.slow)
        endpoints.append({"name": f"e{i}", "address": address, "tiers": tiers})
    rig = make_rig(
        endpoint_count=len(endpoints),
        tasks=world.tasks,
        quality=QUALITY,
        profile=PROFILE,
        pool=pool,
        machine_code=MachineCode(compiled_bind()),
        mesh={"bytes_per_token": 1.0, "endpoints": endpoints},
        safety_net=world.safety,
        reserve=world.reserve,
        safety_optimism=LIMITS.optimism,
        safety_margin=LIMITS.margin,
        safety_guard_s=LIMITS.guard_s,
        safety_pessimism=LIMITS.pessimism,
        soft_late_s=SOFT_GRACE * DECAY_S,
        # What a live router does beside: it learns how slow each device is, and leaves endpoints
        # alone that are silent for long.
        learn_slowness=False,
        silent_eject_s=300.0,
    )
    rig.core.slot.guard.replace(policy)
    rig.core.view.fleet.move_home(world.home)
    jobs: list[Job] = []
    tasks: list[asyncio.Task[Any]] = []

    def arrive(i: int) -> None:
        job = rig.job(
            task=TASKS[offered.task_N[i]].name,
            prompt="x" * int(offered.prompt_N[i]),
            deadline_s=float(offered.slack_N[i]),
            request_id=names[i],
            seed=i,  # tells the device which request it is
            max_output_tokens=64,
            is_stream=TASKS[offered.task_N[i]].slo_kind is SloKind.FIRST_TOKEN,
        )
        jobs.append(job)
        tasks.append(asyncio.ensure_future(rig.answer(job)))

    loop = asyncio.get_running_loop()
    for i, arrival_s in enumerate(offered.arrival_N.tolist()):
        loop.call_at(arrival_s, partial(arrive, i))
    await asyncio.sleep(offered.duration_s + 60.0)
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, BaseException) and not isinstance(end, DomainError):
            raise end
    rig.assert_settled()
    rewards = {
        entry.outcome.request_id: (entry.outcome.reward, entry.outcome.delivered_reward)
        for entry in await rig.records()
        if entry.HasField("outcome")
    }
    reward_N2 = np.array([rewards.get(name, (0.0, 0.0)) for name in names])
    latency_N = np.array([job.end_s - job.arrival_s for job in jobs])
    return Told([_story(job) for job in jobs], reward_N2[:, 0], reward_N2[:, 1], latency_N)


def _story(job: Job) -> Story:
    assert job.outcome is not None
    if job.choice is None or job.target is None:
        return Story(-1, job.outcome.value, -1, False)
    action, tier = job.choice.action, job.target.tier_index
    return Story(action, job.outcome.value, tier, job.is_rescued)
