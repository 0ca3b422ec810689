"""The same requests through a live router and through the simulator, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.dqn.snapshot import load_snapshot
from router.fleet import EndpointSpec, build_fleet
from router.home import WHOLE, Share, equal_share
from router.policies.dqn import DqnPolicy
from router.policies.table import make_policy
from router.policy import Policy
from router.profile import LatencyProfile, TierProfile
from router.reserve import SHARES
from router.safety import SafetyLimits
from router.seat import Stay
from router.types import Priority, RewardKind, SloKind, Task
from services.common.errors import DomainError
from services.router_inference.job import Job
from services.router_inference.machine_code import MachineCode
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tests.fakes.virtual_time import run_virtual
from tests.twin.device import Device
from tests.twin.exchange import Exchange
from tests.unit.router.machine import compiled_bind
from tests.unit.services.router_inference.parts import FakePool, Rig, make_rig
from trainer.simulation import state
from trainer.simulation.simulate import (
    SOFT_GRACE,
    FleetEvent,
    PolicySpec,
    SimulationConfig,
    SimulationResult,
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
    Task("reader", 0.4, slo_kind=SloKind.PER_TOKEN, token_interval_s=0.015),
)
QUALITY = QualityTable(
    "twin",
    "assumed",
    {
        "easy": {"small": 0.8, "medium": 0.95, "large": 1.0},
        "difficult": {"small": 0.4, "medium": 0.8, "large": 1.0},
        "patient": {"small": 0.6, "medium": 0.9, "large": 1.0},
        "chatty": {"small": 0.6, "medium": 0.9, "large": 1.0},
        "reader": {"small": 0.6, "medium": 0.9, "large": 1.0},
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
BEFORE_S = 17.0 / 64.0
"""When the first request comes where routers tell each other something before, seconds; not at a
moment at which they do."""


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
        cache: room of every tier for prefixes, tokens.
        talks: requests are those of conversations.
        classes: share of high, normal and low priority; empty: all are normal.
        interval_s: time between two tokens that read along.
        hopeless: share of hard deadlines that no device could meet, idle or not.
        routers: how many share the requests; each has its part of the devices as its home.
        report_s: time between what several routers tell each other, seconds.
        late_s: time until they have heard it, seconds.
    """

    placement: Placement = SHARED
    safety: bool = True
    slow: float = 1.0
    target: float = 0.99
    reserve: str = "none"
    home: Share = WHOLE
    cache: int = 0
    talks: bool = False
    classes: tuple[float, ...] = ()
    interval_s: float = 0.015
    hopeless: float = 0.0
    routers: int = 1
    report_s: float = 0.0625
    late_s: float = 0.03125

    @property
    def homes(self) -> tuple[Share, ...]:
        """Each router's stretch of the devices."""
        if self.routers == 1:
            return (self.home,)
        return tuple(equal_share(rank, self.routers) for rank in range(self.routers))

    @property
    def profile(self) -> LatencyProfile:
        """The costs of the tiers."""
        tiers = {
            name: replace(tier, prefix_cache_tokens=self.cache)
            for name, tier in PROFILE.tiers.items()
        }
        return replace(PROFILE, tiers=tiers)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, with their target."""
        return tuple(
            replace(task, target=self.target, token_interval_s=self.interval_s) for task in TASKS
        )


class Story(NamedTuple):
    """What became of one request.

    Attributes:
        action: first choice, a candidate's row; -1 if it was refused.
        end: how it ended.
        tier: tier that answered or was last tried; -1 if it was refused.
        is_rescued: it was sent to a smaller tier under way.
        stay: what became of its conversation.
        cached: prompt tokens that were taken for cached where it was sent last.
    """

    action: int
    end: str
    tier: int
    is_rescued: bool
    stay: Stay = Stay.NONE
    cached: float = 0.0


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
    arrival_N: Times,
    task_share: tuple[float, ...],
    deadline_s: float,
    seed: int,
    *,
    talks: bool = False,
) -> Workload:
    """Returns requests at these times, the first one at zero.

    Every time is a multiple of 2^-30 s, so that sums and differences of arrivals and deadlines are
    exact whichever way they are written. No two requests arrive at once: their order would be the
    event loop's.
    """
    arrival_N = np.round((arrival_N - arrival_N.min()) * _GRID) / _GRID
    arrival_N += np.arange(len(arrival_N)) * _LEAST_GAP_S
    offered = make_workload(
        arrival_N,
        float(arrival_N.max()),
        rng=np.random.default_rng([seed, 1]),
        deadline_s=round(deadline_s * _GRID) / _GRID,
        task_share=task_share,
    )
    return _talking(offered, np.random.default_rng([seed, 2])) if talks else offered


def with_hopeless(offered: Workload, share: float, rng: np.random.Generator) -> Workload:
    """Returns it with deadlines out of reach for some requests of a hard one."""
    is_hard_N = np.array([task.reward_kind is RewardKind.HARD for task in TASKS])[offered.task_N]
    is_hopeless_N = is_hard_N & (rng.random(len(offered)) < share)
    slack_N = np.where(is_hopeless_N, 2.0**-12, offered.slack_N)
    return replace(offered, slack_N=slack_N)


def only(offered: Workload, is_there_N: NDArray[np.bool_]) -> Workload:
    """Returns some of the requests of a workload, each at its time."""
    rows: dict[str, Any] = {
        field.name: value[is_there_N]
        for field in fields(offered)
        if isinstance(value := getattr(offered, field.name), np.ndarray)
    }
    return replace(offered, **rows)


def through(offered: Workload, routers: int, rng: np.random.Generator) -> Workload:
    """Returns it with each request coming through one of several routers.

    They have heard of each other before the first request comes.
    """
    return replace(
        offered,
        arrival_N=offered.arrival_N + BEFORE_S,
        duration_s=offered.duration_s + BEFORE_S,
        router_N=rng.integers(routers, size=len(offered)),
    )


def _talking(offered: Workload, rng: np.random.Generator) -> Workload:
    """Returns the requests as those of conversations, so many that some are always going on.

    Every tenth request has none. Prompts grow by what was said before.
    """
    count = max(1, len(offered) // 6)
    conversation_N = rng.integers(count, size=len(offered))
    conversation_N[rng.random(len(offered)) < 0.1] = -1
    prompt_N = offered.prompt_N.copy()
    said = np.zeros(count)
    for i, conversation in enumerate(conversation_N):
        if conversation >= 0:
            prompt_N[i] += said[conversation]
            said[conversation] = min(1500.0, prompt_N[i] + offered.output_N[i])
    return replace(offered, prompt_N=prompt_N, conversation_N=conversation_N)


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
    profiles = {"": world.profile}
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
        homes=world.homes,
        routers=world.routers,
        report_interval_s=world.report_s,
        staleness_s=world.late_s,
    )
    result = simulate(config, offered, PolicySpec.of(policy), seed=1)
    ends = {state.CANCELLED: "late", state.REFUSED: "refused"}
    stories = [
        Story(
            int(result.action_N[i]),
            ends.get(int(result.status_N[i]), "on_time" if result.on_time_N[i] else "late"),
            int(result.tier_N[i]),
            bool(result.rescued_N[i]),
            *_talk(result, i),
        )
        for i in range(len(offered))
    ]
    return Told(stories, result.first_reward_N, result.reward_N, result.latency_N)


def _talk(result: SimulationResult, i: int) -> tuple[Stay, float]:
    """Returns what became of a request's conversation, of one that was decided."""
    if result.action_N[i] < 0:
        return Stay.NONE, 0.0
    return Stay(int(result.stay_N[i])), float(result.expected_N[i])


def lived(offered: Workload, policy: Policy, world: Setting) -> Told:
    """Runs a workload through the parts of a live router."""
    return run_virtual(_live(offered, policy, world), start_s=0.0)


def _router(
    rank: int, world: Setting, policy: Policy, pool: FakePool, endpoints: list[dict[str, Any]]
) -> Rig:
    """Returns one of the routers, at its home."""
    rig = make_rig(
        endpoint_count=len(endpoints),
        tasks=world.tasks,
        quality=QUALITY,
        profile=world.profile,
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
        place=Place(router_id=f"r{rank}", epoch=1 + rank, siblings=NoSiblings()),
    )
    rig.core.slot.guard.replace(policy)
    rig.core.view.fleet.move_home(world.homes[rank])
    return rig


async def _live(offered: Workload, policy: Policy, world: Setting) -> Told:
    names = [f"r{i}" for i in range(len(offered))]
    lengths, talks = offered.output_N.tolist(), [-1] * len(offered)
    if offered.conversation_N is not None:
        talks = offered.conversation_N.tolist()
    place_N = [0] * len(offered) if offered.place_N is None else offered.place_N.tolist()
    pool, endpoints = FakePool(), []
    for i, tiers in enumerate(world.placement):
        costs = {tier: world.profile.tiers[tier] for tier in tiers}
        address = f"127.0.0.1:{9000 + i}"
        pool.tiers[address] = Device(costs, lengths.__getitem__, world.slow, talks.__getitem__)
        endpoints.append({"name": f"e{i}", "address": address, "tiers": tiers})
    rigs = [_router(rank, world, policy, pool, endpoints) for rank in range(world.routers)]
    if world.routers > 1:
        exchange = Exchange(rigs, world.homes, world.report_s, world.late_s)
        exchange.plan(offered.duration_s + 1.0)
    router_N = [0] * len(offered) if offered.router_N is None else offered.router_N.tolist()
    jobs: list[Job] = []
    tasks: list[asyncio.Task[Any]] = []

    def arrive(i: int) -> None:
        rig = rigs[router_N[i]]
        job = rig.job(
            task=TASKS[offered.task_N[i]].name,
            prompt="x" * int(offered.prompt_N[i]),
            deadline_s=float(offered.slack_N[i]),
            request_id=names[i],
            seed=i,  # tells the device which request it is
            max_output_tokens=64,
            conversation_id=f"talk {talks[i]}" if talks[i] >= 0 else "",
            priority=Priority(place_N[i]),
            is_stream=TASKS[offered.task_N[i]].slo_kind is not SloKind.COMPLETE_ANSWER,
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
    rewards: dict[str, tuple[float, float]] = {}
    for rig in rigs:
        rig.assert_settled()
        for entry in await rig.records():
            if entry.HasField("outcome"):
                ended = entry.outcome
                rewards[ended.request_id] = ended.reward, ended.delivered_reward
    reward_N2 = np.array([rewards.get(name, (0.0, 0.0)) for name in names])
    latency_N = np.array([job.end_s - job.arrival_s for job in jobs])
    return Told([_story(job) for job in jobs], reward_N2[:, 0], reward_N2[:, 1], latency_N)


def _story(job: Job) -> Story:
    assert job.outcome is not None
    if job.choice is None or job.target is None:
        return Story(-1, job.outcome.value, -1, False)
    action, tier = job.choice.action, job.target.tier_index
    cached = job.cached_at(job.target.candidate)
    return Story(action, job.outcome.value, tier, job.is_rescued, job.choice.stay, cached)
