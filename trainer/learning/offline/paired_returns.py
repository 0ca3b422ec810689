"""Marginal returns by paired rollouts: what each action is worth, measured on the same future.

What one decision changes is a few hundredths of a request's quality; the sum over the hundreds
of requests that its deadline spans varies by a hundred times as much. So the world is copied at a
decision, every action of interest is tried in a copy, and all copies meet the same arrivals,
lengths and draws (common random numbers) under the policy of the moment. Differences between the
returns are then the actions' differences, own reward and harm to others included, little else.

    y_a = own reward + sum of rewards of other requests due within the horizon, action a taken now

It is an n-step return that spans the horizon, for every action at once; with a horizon of two
deadlines what is left at its end is common to all. Tasks may have longer deadlines than that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.dqn.snapshot import Weights
from router.policies.dqn import PRICE_DEFAULTS_P
from router.reward import answer_reward
from trainer.learning.offline.config import OfflineConfig
from trainer.learning.offline.samples import PairedSamples
from trainer.simulation import loop
from trainer.simulation.compiled import jit
from trainer.simulation.engine import settle
from trainer.simulation.scenarios import Mesh, Scenario
from trainer.simulation.simulate import SOFT_GRACE, PolicySpec, make_world
from trainer.simulation.state import FAILED, RUNNING, WAITING, World

_NEVER = 2**62
"""A request that never comes."""


@jit
def _advance_to(
    w: World,
    i: int,
    action: int,
    explores: bool,
    target: int,
    end_s: float,
    row: int,
    params_P: np.ndarray,
    weights: Weights,
) -> tuple[int, int]:
    """Carries a decision out (if `i` >= 0) and runs on to the next one that is asked for.

    That is the first decision of request `target` or of a later one; features and predictions are
    filled there, and (request, the policy's action) is returned. (-1, -1) means that `end_s` or
    the end of the workload came first. The only function compiled here: compiling is dear.
    """
    clock = w.clock[0]
    if i >= 0:
        if explores:
            action = loop.explore(w, i, action)
        loop.apply(w, i, action)
    while True:
        j = loop.advance(w)
        if j < 0 or clock.now_s > end_s:
            return -1, -1
        stops = j >= target and w.requests[j].attempt == 0
        q = loop.query_for(w, j, clock.now_s)
        chosen = loop.decide(w, j, row, q, params_P, weights, stops)
        if stops:
            return j, chosen
        if chosen < 0:
            settle(w, j, FAILED, clock.now_s)
            continue
        if explores and w.requests[j].attempt == 0:
            chosen = loop.explore(w, j, chosen)
        loop.apply(w, j, chosen)


def _worth(
    world: World, i: int, start_s: float, end_s: float, miss_cost: float, discount_tau_s: float
) -> float:
    """Returns what the requests due between two times brought, misses charged, later ones less.

    Request `i`, which was decided for, counts however late it is due: else all that is learned of
    a long deadline would be the harm to others. Where the end comes first it is taken as in time.
    """
    requests = world.requests
    # Deadlines differ by task; arrivals are sorted, so a generous range is cut out first.
    low, high = np.searchsorted(requests["arrival_s"], (start_s - 4.0 * (end_s - start_s), end_s))
    part, own = requests[low:high], i - int(low)
    arrival_s, due_s = part["arrival_s"], part["deadline_s"]
    reward = _earned(world, part)
    counts = (due_s > start_s) & (due_s <= end_s)
    if not counts[own]:
        counts[own] = True
        if part["status"][own] in (WAITING, RUNNING) and part["attempt"][own] == 1:
            reward[own] = _quality(world, part[own])
    discount = np.exp(-np.maximum(0.0, arrival_s - start_s) / discount_tau_s)
    worth = discount * (reward - miss_cost * (reward <= 0.0))
    return float(worth[counts].sum())


def _earned(world: World, part: NDArray[np.void]) -> NDArray[np.float64]:
    """Returns what requests earned their first choice, as far as that is known by now.

    Where the deadline is that of the first token it is known while the answer still goes on.
    """
    earned: NDArray[np.float64] = part["first_reward"].copy()
    is_told = (part["first_token"] != 0) & (part["status"] == RUNNING) & (part["attempt"] == 1)
    is_told &= part["first_token_s"] <= world.clock["now_s"][0]
    for k in np.flatnonzero(is_told):
        request = part[k]
        overhead_s = world.candidates["overhead_s"][request["candidate"]]
        late_s = request["first_token_s"] + overhead_s - request["deadline_s"]
        earned[k] = answer_reward(_quality(world, request), late_s, request["decay_s"])
    return earned


def _quality(world: World, request: Any) -> float:
    """Returns the quality of the tier a request is at."""
    return float(world.fleet.quality_KC[request["task"], request["candidate"]])


def _grace_s(requests: NDArray[np.void]) -> float:
    """Returns how long after deadlines it may still come out what requests earn, seconds.

    A soft deadline's answer may come, and earn, a while after it. Where each token is due, the last
    one decides; a stream that goes on after that is late.
    """
    tokens_s = (requests["output"] - 1) * requests["interval_s"]
    return float((tokens_s + SOFT_GRACE * requests["decay_s"]).max(initial=0.0))


_BY_PART = ("requests", "heap_s", "heap_id", "pending_N")
_NEVER_CHANGED = (
    "cancel_N",
    "slots_DS",
    "fleet_events",
    "record_CF",
    "record_allowed_C",
    "record_id",
)


def _arrays(part: Any) -> list[NDArray[Any]]:
    """Returns the arrays of a world's field, which may be a tuple of such fields."""
    if isinstance(part, tuple):
        return [array for each in part for array in _arrays(each)]
    return [part]


class _Copy:
    """A second world, refilled from the first: only what can differ is copied."""

    def __init__(self, scenario: Scenario, source: World) -> None:
        own = make_world(scenario.config, scenario.workload, scenario.seed)
        self.world = own._replace(base_P=source.base_P.copy())
        self._source = source
        self._low = 0
        self._pairs: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for name in World._fields:
            if name not in _BY_PART + _NEVER_CHANGED:
                mine, theirs = (_arrays(getattr(world, name)) for world in (self.world, source))
                self._pairs.extend(zip(mine, theirs, strict=True))

    def refill(self) -> World:
        """Returns the copy in the state of its source."""
        own, source = self.world, self._source
        touched = int(own.clock["arrivals"][0])  # by the last future
        for old, new in self._pairs:
            np.copyto(old, new)
        clock = source.clock[0]
        heap, pending = int(clock["heap"]), int(clock["pending"])
        own.heap_s[:heap], own.heap_id[:heap] = source.heap_s[:heap], source.heap_id[:heap]
        own.pending_N[:pending] = source.pending_N[:pending]
        # What was over the last time is the same in both; what has not arrived is untouched.
        arrivals = int(clock["arrivals"])
        is_open = source.requests["status"][:arrivals] <= RUNNING
        low = int(is_open.argmax()) if is_open.any() else arrivals
        part = slice(min(low, self._low), max(touched, arrivals))
        own.requests[part] = source.requests[part]
        self._low = low
        return own


def paired_samples(
    scenario: Scenario,
    policy: PolicySpec,
    rng: np.random.Generator,
    *,
    future: PolicySpec | None = None,
    sample_count: int,
    horizon_s: float,
    epsilon: float,
    mix_T: tuple[float, ...],
    miss_cost: float = 0.0,
    discount_tau_s: float = math.inf,
    base_P: NDArray[np.float64] = PRICE_DEFAULTS_P,
) -> PairedSamples:
    """Runs a scenario under a policy and measures actions at some of its decisions.

    Args:
        scenario: where.
        policy: what drives the episode, and so chooses the states that are met.
        rng: chooses the decisions and one of the actions.
        future: what drives the futures; None: the same policy.
        sample_count: decisions to measure, at most.
        horizon_s: time the returns span, seconds; two deadlines or more.
        epsilon: share of the episode's own decisions drawn from `mix_T`; the futures explore not.
        mix_T: tier mix of that exploration.
        miss_cost: what a miss costs beside its reward of zero, in units of quality.
        discount_tau_s: time constant by which later arrivals count less, seconds.
        base_P: parameters of the price that is corrected, and its scheduled price's table: what
            features are computed by where the policy that drives reads none.
    """
    workload = scenario.workload
    world = make_world(scenario.config, scenario.workload, scenario.seed)
    world = world._replace(base_P=np.array(base_P))
    world.clock["epsilon"] = epsilon
    world.mix_T[:] = mix_T
    copy = _Copy(scenario, world)
    grace_s = _grace_s(world.requests)
    params_P, weights = policy.params_P.copy(), policy.weights
    future = future or policy
    last = int(np.searchsorted(workload.arrival_N, workload.duration_s - horizon_s))
    targets = np.sort(rng.integers(0, max(1, last), size=sample_count))
    rows: list[tuple[NDArray[Any], ...]] = []
    i, action = -1, -1
    for target in np.unique(targets):
        if target <= i:
            continue
        i, action = _advance_to(
            world, i, action, True, int(target), np.inf, policy.row, params_P, weights
        )
        if i < 0 or i >= last:
            break
        if action < 0:
            break
        tried_C = _actions(world, action, rng)
        if tried_C.sum() < 2:
            continue
        return_C = np.zeros(len(tried_C), np.float32)
        start_s = float(world.clock["now_s"][0])
        end_s = start_s + horizon_s
        for c in np.flatnonzero(tried_C):
            branch = copy.refill()
            after_P = future.params_P.copy()
            _advance_to(
                branch,
                i,
                int(c),
                False,
                _NEVER,
                end_s + grace_s,
                future.row,
                after_P,
                future.weights,
            )
            return_C[c] = _worth(branch, i, start_s, end_s, miss_cost, discount_tau_s)
        rows.append((world.features_CF.copy(), world.allowed_C.copy(), tried_C, return_C))
    if not rows:
        return _no_samples(*world.features_CF.shape)
    x, allowed, tried, returns = (np.stack(part) for part in zip(*rows, strict=True))
    return PairedSamples(x, allowed.astype(bool), tried.astype(bool), returns)


def _no_samples(count: int, features: int) -> PairedSamples:
    mask, number = np.zeros((0, count), bool), np.zeros((0, count), np.float32)
    return PairedSamples(np.zeros((0, count, features), np.float32), mask, mask, number)


def episode_samples(
    mesh: Mesh,
    scenario: Scenario,
    episode: PolicySpec,
    future: PolicySpec,
    rng: np.random.Generator,
    config: OfflineConfig,
    base_P: NDArray[np.float64] = PRICE_DEFAULTS_P,
) -> PairedSamples:
    """Returns the samples of one episode driven by `episode`, futures by `future`.

    `base_P` is that of `paired_samples`.
    """
    # Futures of busy scenarios are long; they get fewer of them, for the same time.
    rate_rps = len(scenario.workload) / scenario.workload.duration_s
    horizon_s = config.horizon_deadlines * mesh.deadline_s
    tiers = len(mesh.catalog.tiers)
    decisions = rate_rps * horizon_s * (tiers + 1)
    affordable = max(8, int(config.decisions_per_episode / max(decisions, 1.0)))
    explores = rng.random() < config.explored_episodes
    return paired_samples(
        scenario,
        episode,
        rng,
        future=future,
        sample_count=min(config.samples_per_episode, affordable),
        horizon_s=horizon_s,
        epsilon=config.epsilon if explores else 0.0,
        mix_T=tuple(rng.dirichlet(np.full(tiers, 0.7)).tolist()),
        miss_cost=config.miss_cost,
        discount_tau_s=config.discount_deadlines * mesh.deadline_s,
        base_P=base_P,
    )


SERIOUS_GAP = 0.5
"""Candidates this far below the best in price score are tried only now and then."""


def _actions(world: World, action: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Returns what is tried: the policy's action, its rivals, and one of all at random.

    The rivals are each tier's best candidate and the best one on another device, by the price
    score; mostly only where they are in the race.
    """
    allowed_C, fleet = world.allowed_C, world.fleet
    score_C = np.where(allowed_C, world.scratch.seen.score_C, -np.inf)
    tried_C = np.zeros(len(allowed_C), bool)
    groups = [fleet.tier_C == tier for tier in range(len(world.mix_T))]
    groups.append(fleet.device_C != fleet.device_C[action])
    for group_C in groups:
        rows = np.flatnonzero(allowed_C & group_C)
        if len(rows):
            row = rows[np.argmax(score_C[rows])]
            tried_C[row] = score_C[row] > score_C.max() - SERIOUS_GAP or rng.random() < 0.2
    tried_C[action] = True
    tried_C[rng.choice(np.flatnonzero(allowed_C))] |= bool(rng.random() < 0.3)
    return tried_C
