"""Marginal returns by paired rollouts: what each action is worth, measured on the same future.

What one decision changes is a few hundredths of a request's quality; the sum over the hundreds
of requests that its deadline spans varies by a hundred times as much. So the world is copied at a
decision, every action of interest is tried in a copy, and all copies meet the same arrivals, lengths
and draws (common random numbers) under the policy of the moment. Differences between the returns
are then the actions' differences, own reward and harm to others included, and little else.

    y_a = sum of rewards of requests due within the horizon, action a taken now

It is an n-step return that spans the horizon, for every action at once; with a horizon of two
deadlines what is left at its end is common to all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Weights
from trainer.scenario import Scenario
from trainer.simulation import loop
from trainer.simulation.compiled import jit
from trainer.simulation.engine import settle
from trainer.simulation.simulate import PolicySpec, make_world
from trainer.simulation.state import FAILED, World


class PairedSamples(NamedTuple):
    """Decisions with the return of every action tried.

    Attributes:
        x_BCF: features.
        allowed_BC: candidates allowed.
        tried_BC: candidates whose return was measured; at least two per row.
        return_BC: the returns; 0 where not tried.
    """

    x_BCF: NDArray[np.float32]
    allowed_BC: NDArray[np.bool_]
    tried_BC: NDArray[np.bool_]
    return_BC: NDArray[np.float32]


@jit
def _run_until(w: World, kind: int, params_P: np.ndarray, weights: Weights, target: int) -> int:
    """Runs to the first decision of request `target` or a later one; -1 at the end."""
    while True:
        i = loop.advance(w)
        if i < 0:
            return -1
        if i >= target and w.requests[i].attempt == 0:
            return i
        now_s = w.clock[0].now_s
        q = loop.query_for(w, i, now_s)
        action = loop.decide(w, kind, q, params_P, weights, False)
        if action < 0:
            settle(w, i, FAILED, now_s)
            continue
        if w.requests[i].attempt == 0:
            action = loop.explore(w, i, action)
        loop.apply(w, i, action)


@jit
def _decide_here(w: World, i: int, kind: int, params_P: np.ndarray, weights: Weights) -> int:
    """Returns the policy's action at a decision and fills features and predictions."""
    q = loop.query_for(w, i, w.clock[0].now_s)
    return loop.decide(w, kind, q, params_P, weights, True)


@jit
def _worth(w: World, k: int, miss_cost: float) -> float:
    """Returns what a request brought: its first choice's reward, less the cost of a miss."""
    reward = w.requests[k].first_reward
    if reward <= 0.0:
        return -miss_cost
    return float(reward)


@jit
def _roll_out(
    w: World,
    i: int,
    action: int,
    kind: int,
    params_P: np.ndarray,
    weights: Weights,
    horizon_s: float,
    miss_cost: float,
) -> float:
    """Takes the action, runs on for the horizon and returns the rewards due within it."""
    start_s = w.clock[0].now_s
    end_s = start_s + horizon_s
    loop.apply(w, i, action)
    while True:
        j = loop.advance(w)
        if j < 0 or w.clock[0].now_s > end_s:
            break
        q = loop.query_for(w, j, w.clock[0].now_s)
        chosen = loop.decide(w, kind, q, params_P, weights, False)
        if chosen < 0:
            settle(w, j, FAILED, w.clock[0].now_s)
            continue
        loop.apply(w, j, chosen)
    total = 0.0
    for k in range(i, -1, -1):
        if w.requests[k].arrival_s < start_s - 4.0 * horizon_s:
            break
        if start_s < w.requests[k].deadline_s <= end_s:
            total += _worth(w, k, miss_cost)
    for k in range(i + 1, len(w.requests)):
        if w.requests[k].arrival_s > end_s:
            break
        if w.requests[k].deadline_s <= end_s:
            total += _worth(w, k, miss_cost)
    return total


def _leaves(world: World) -> list[NDArray[np.generic]]:
    leaves: list[NDArray[np.generic]] = []
    for part in world:
        leaves.extend(part if isinstance(part, tuple) else (part,))
    return leaves


class _Copy:
    """A second world of the same shape, refilled from the first at little cost."""

    def __init__(self, scenario: Scenario) -> None:
        self.world = make_world(scenario.config, scenario.workload, scenario.seed)
        self._leaves = _leaves(self.world)

    def refill(self, source: World) -> World:
        for own, new in zip(self._leaves, _leaves(source), strict=True):
            np.copyto(own, new)
        self.world.clock["epsilon"] = 0.0
        return self.world


def paired_samples(
    scenario: Scenario,
    policy: PolicySpec,
    rng: np.random.Generator,
    *,
    sample_count: int,
    horizon_s: float,
    epsilon: float,
    mix_T: tuple[float, ...],
    miss_cost: float = 0.0,
) -> PairedSamples:
    """Runs a scenario under a policy and measures actions at some of its decisions.

    Args:
        scenario: where.
        policy: how the episode and the futures are driven.
        rng: chooses the decisions and one of the actions.
        sample_count: decisions to measure, at most.
        horizon_s: time the returns span, seconds; two deadlines or more.
        epsilon: share of the episode's own decisions drawn from `mix_T`; the futures explore not.
        mix_T: tier mix of that exploration.
        miss_cost: what a miss costs beside its reward of zero, in units of quality.
    """
    workload = scenario.workload
    world = make_world(scenario.config, scenario.workload, scenario.seed)
    world.clock["epsilon"] = epsilon
    world.mix_T[:] = mix_T
    copy = _Copy(scenario)
    params_P, weights = policy.params_P.copy(), policy.weights
    last = int(np.searchsorted(workload.arrival_N, workload.duration_s - horizon_s))
    targets = np.sort(rng.integers(0, max(1, last), size=sample_count))
    rows: list[tuple[NDArray[np.float32], ...]] = []
    reached = -1
    for target in targets:
        if target <= reached:
            continue
        i = _run_until(world, policy.kind, params_P, weights, int(target))
        if i < 0 or i >= last:
            break
        reached = i
        action = _decide_here(world, i, policy.kind, params_P, weights)
        tried_C = _actions(world, action, rng)
        return_C = np.zeros(len(tried_C), np.float32)
        if tried_C.sum() > 1:
            for c in np.flatnonzero(tried_C):
                future = copy.refill(world)
                return_C[c] = _roll_out(
                    future, i, int(c), policy.kind, params_P.copy(), weights, horizon_s, miss_cost
                )
            rows.append((world.features_CF.copy(), world.allowed_C.copy(), tried_C, return_C))
        # The episode itself goes on with an action of its own, explored or not.
        loop.apply(world, i, int(loop.explore(world, i, action)))
    if not rows:
        count, features = world.features_CF.shape
        empty = np.zeros((0, count), bool)
        return PairedSamples(
            np.zeros((0, count, features), np.float32), empty, empty, np.zeros((0, count), "f4")
        )
    x, allowed, tried, returns = (np.stack(part) for part in zip(*rows, strict=True))
    return PairedSamples(x, allowed.astype(bool), tried.astype(bool), returns)


def _actions(world: World, action: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Returns what is tried: the policy's action, each tier's fastest candidate, a random one."""
    allowed_C = world.allowed_C
    tried_C = np.zeros(len(allowed_C), bool)
    tried_C[action] = True
    for tier in range(len(world.mix_T)):
        rows = np.flatnonzero(allowed_C & (world.fleet.tier_C == tier))
        if len(rows):
            tried_C[rows[np.argmin(world.predicted_C[rows])]] = True
    tried_C[rng.choice(np.flatnonzero(allowed_C))] = True
    return tried_C
