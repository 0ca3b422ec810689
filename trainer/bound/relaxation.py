"""What serving a request costs at least, and when: the relaxation behind the performance bound.

Notation. A request i that earns its reward from candidate c is admitted to one iteration of c and
takes part in `o_i` consecutive iterations of c, its run R_i (`trainer.simulation.engine`); prompt
and output tokens are p_i and o_i, the candidate's costs are step, sequence (per iteration), prompt
(per token) and overhead, and B_i is the time from its arrival to the last moment that earns the
reward, less the overhead. For a deadline on the first token only the first iteration counts
(o_i = 1). Where each token is due, the last one's due time is taken for the whole run, and the
others' are left out. Iterations of one device never overlap.

**Lemma (step sharing).** Let g_i = prompt p_i + sequence and E_i = B_i - o_i (step + sequence) +
sequence. At every iteration x of c, the requests U(x) that earn their reward and have x in their
run satisfy sum_{i in U(x)} g_i <= max_{i in U(x)} E_i, and the same holds for the sum over any
subset of U(x) with the maximum over that subset.

*Proof.* Take a subset and its member a admitted first. Every other member was admitted at or after
a's admission and not after x, hence at an iteration of R_a, since x is in R_a and a run is
consecutive. So all its members' prompts, and at least one sequence cost of each, are paid in
iterations of R_a, beside o_a steps and a's other o_a - 1 sequence costs. All of it lies between a's
arrival and the end of B_a: sum g_i + o_a step + (o_a - 1) sequence <= B_a. QED. What other tiers do
on the device only adds to the left side, so nothing is assumed about them.

**Shares.** Let levels E^1, E^2, ... and weights theta_0 + theta_1 + ... = 1, all >= 0, be any
numbers. Charge request i the share

    s_i = theta_0 / max_batch + theta_1 (p_i + o_i) / max_kv_tokens
          + sum_{l > 1: E_i <= E^l} theta_l g_i / E^l

of the step of every iteration of its run. The shares charged at one iteration sum to at most 1: the
first term since a batch has at most max_batch members, the second since a batch's prompts and
answers fit the tier's room for keys and values, the l-th by the lemma for the members with
E_i <= E^l. So the device time of an iteration, step + sequence |batch| + prompt (tokens admitted),
is at least what its requests are charged, and request i is charged in all

    cost_i = prompt p_i + sequence o_i + step o_i s_i

inside its own window, from its arrival to the end of B_i. Requests that are cancelled, rescued or
late only take time away. Hence what any policy achieves is a solution of this relaxation: every
request picks at most one candidate, occupies `cost_i` of its device's time inside its window, and
the charges on a device never exceed the time it is there. It is far weaker than the truth in
places (a request's iterations need not be in order, devices of one kind are pooled, tiers that
share a device are charged as if each had it alone), so nothing about the schedule is assumed.

**Devices that change.** On a slowed device an iteration takes `slow` times as long, fixed when it
starts. With speed 1 / slow, all of the above holds in units of work at full speed if B_i in E_i is
multiplied by the highest speed, and the time available is replaced by the integral of the highest
speed over the last max B_i seconds, zero while the device is lost (iterations cut off by a loss
serve nobody).

**Prefix caches.** Of a request in a conversation, what another one of it may have left in a
candidate's cache costs nothing there: whole blocks, all but one token at most, as far as the cache
has room. The lemma holds with p_i as the tokens left to compute, since those are paid at least.

**Soft deadlines.** A request may pick between windows: lateness up to l_v at the reward of the
least lateness of that bracket, l_{v-1}. The last bracket ends where the simulator cancels. Streams
are not cancelled: they may be answered after it, at no charge and the reward of its end.

Shape letters: N requests, J (request, window) pairs, O options (kinds of candidate), G groups of
like devices, M cells of time, W distinct windows, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.seat import BLOCK_TOKENS
from router.types import RewardKind, SloKind
from trainer.bound.devices import options_of, top_speed
from trainer.simulation.simulate import SOFT_GRACE, SimulationConfig
from trainer.simulation.workload import Workload

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVELS = 4
"""Most levels of E; more than one pays where deadlines differ."""
SOFT_BRACKETS = 8
"""Brackets of lateness of a soft deadline; more are tighter and slower."""
_LEAST_COST_S = 1e-12
"""Keeps a profile without costs from dividing by zero."""
_ROUNDING = 1e-9
"""Relative room left for rounding in the simulator's sums of times."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How the steps are charged to those that share them.

    Attributes:
        level_LO: levels E^l of each option, seconds, > 0.
        weight_LO: weights theta, >= 0, columns summing to 1: that of the batch limit, that of the
            room for keys and values, those of the levels.
    """

    level_LO: Floats
    weight_LO: Floats

    def moved(self, term: int, option: int, step: float) -> Shares:
        """Returns the shares with a part `step` of an option's weight moved to one term."""
        weight_LO = self.weight_LO.copy()
        weight_LO[:, option] *= 1.0 - step
        weight_LO[term, option] += step
        return Shares(self.level_LO, weight_LO)


@dataclass(frozen=True)
class Jobs:
    """The requests as jobs: every (request, window) pair and what each option costs it.

    Attributes:
        start_N1: jobs of request i are start_N1[i] to start_N1[i + 1].
        release_J: arrival, seconds.
        end_J: last moment of device time that can earn the reward, seconds.
        value_JO: reward of an option; 0 where the request could not even be served alone.
        fixed_JO: prompt and sequence cost, seconds of work at full speed.
        steps_JO: cost of the steps of its run, seconds of work at full speed.
        share_JO: g_i, seconds.
        budget_JO: E_i, seconds.
        tokens_J: prompt and output tokens.
        step_O: step of each option, seconds.
        batch_O: max_batch.
        room_O: max_kv_tokens, infinite where there is no limit.
        group_O: group of each option.
        devices_G: devices of each group.
        memory_s: longest window, seconds.
    """

    start_N1: Integers
    release_J: Floats
    end_J: Floats
    value_JO: Floats
    fixed_JO: Floats
    steps_JO: Floats
    share_JO: Floats
    budget_JO: Floats
    tokens_J: Floats
    step_O: Floats
    batch_O: Floats
    room_O: Floats
    group_O: Integers
    devices_G: tuple[tuple[int, ...], ...]
    memory_s: float

    @property
    def request_count(self) -> int:
        """Number of requests."""
        return len(self.start_N1) - 1

    def cost_JO(self, shares: Shares) -> Floats:
        """Returns the cost of each option, seconds of work at full speed."""
        weight_LO = shares.weight_LO
        share_JO = weight_LO[0] / self.batch_O
        share_JO = share_JO + self.tokens_J[:, None] * (weight_LO[1] / self.room_O)
        for level_O, weight_O in zip(shares.level_LO, weight_LO[2:], strict=True):
            inside_JO = self.budget_JO <= level_O
            share_JO += np.where(inside_JO, self.share_JO * (weight_O / level_O), 0.0)
        cost_JO: Floats = np.maximum(self.fixed_JO + self.steps_JO * share_JO, _LEAST_COST_S)
        return cost_JO

    def level_LO(self) -> Floats:
        """Returns levels E^l of each option: the highest that occurs per length of window.

        Windows of like length are merged, so that there are at most LEVELS.
        """
        length_J = np.round(self.end_J - self.release_J, 6)
        places = np.linspace(0.0, 1.0, LEVELS + 1)[1:]
        edge_L = np.unique(np.quantile(length_J, places, method="lower"))
        rows = [self.budget_JO[length_J <= edge].max(axis=0, initial=0.0) for edge in edge_L]
        level_LO: Floats = np.maximum(np.stack(rows), _LEAST_COST_S)
        return level_LO

    def every(self, n: int) -> Jobs:
        """Returns every n-th request, each with all its jobs."""
        index_N = np.arange(0, len(self.start_N1) - 1, n)
        count_N = (self.start_N1[1:] - self.start_N1[:-1])[index_N]
        start_N1 = np.concatenate([[0], np.cumsum(count_N)]).astype(np.int64)
        job_J = np.repeat(self.start_N1[index_N] - start_N1[:-1], count_N)
        job_J += np.arange(start_N1[-1])
        names = ["release_J", "end_J", "value_JO", "fixed_JO", "steps_JO", "share_JO", "budget_JO"]
        names.append("tokens_J")
        rows = {name: getattr(self, name)[job_J] for name in names}
        return replace(self, start_N1=start_N1, **rows)


def make_jobs(config: SimulationConfig, workload: Workload, chosen_N: NDArray[np.bool_]) -> Jobs:
    """Returns the jobs of the chosen requests of a workload."""
    options, devices_G = options_of(config)
    index_N = np.flatnonzero(chosen_N)
    task_N = workload.task_N[index_N]
    tasks = config.catalog.tasks
    first_K = np.array([t.slo_kind is SloKind.FIRST_TOKEN for t in tasks])
    paced_K = np.array(
        [t.token_interval_s if t.slo_kind is SloKind.PER_TOKEN else 0.0 for t in tasks]
    )
    is_streamed_K = first_K | (paced_K > 0.0)
    brackets = [
        _brackets(t.soft_decay_s if t.reward_kind is RewardKind.SOFT else 0.0, is_streamed)
        for t, is_streamed in zip(tasks, is_streamed_K, strict=True)
    ]
    count_K = np.array([len(b) for b in brackets])
    start_N1 = np.concatenate([[0], np.cumsum(count_K[task_N])]).astype(np.int64)
    request_J = np.repeat(np.arange(len(index_N)), count_K[task_N])
    bracket_J = np.arange(len(request_J)) - start_N1[request_J]
    table_KV3 = np.zeros((len(tasks), int(count_K.max(initial=1)), 3))
    for k, rows in enumerate(brackets):
        table_KV3[k, : len(rows)] = rows
    task_J = task_N[request_J]
    late_J, factor_J, charged_J = table_KV3[task_J, bracket_J].T
    pick_J = index_N[request_J]
    prompt_J = workload.prompt_N[pick_J]
    output_J = np.where(first_K[task_J], 1.0, np.maximum(1.0, workload.output_N[pick_J]))
    slack_J = workload.slack_N[pick_J] + (output_J - 1.0) * paced_K[task_J]
    length_J = (slack_J + late_J) * (1.0 + _ROUNDING) + _ROUNDING
    release_J = workload.arrival_N[pick_J]
    tokens_J = prompt_J + workload.output_N[pick_J]
    names = ("step_s", "sequence_s", "prompt_token_s", "overhead_s", "max_batch", "room")
    step_O, sequence_O, token_O, overhead_O, batch_O, room_O = (
        np.array([getattr(option, name) for option in options], dtype=np.float64) for name in names
    )
    group_O = np.array([option.group for option in options], dtype=np.int64)
    speed_G = np.array([top_speed(config.events, devices[0]) for devices in devices_G])
    budget_JO = (length_J[:, None] - overhead_O) * speed_G[group_O]
    quality_KO = np.array([option.quality for option in options]).reshape(-1, len(tasks)).T
    kept_O = np.array([option.prefix_room for option in options], dtype=np.float64)
    computed_JO = prompt_J[:, None] - _most_cached_JO(workload, pick_J, kept_O)
    fixed_JO = computed_JO * token_O + output_J[:, None] * sequence_O
    steps_JO = output_J[:, None] * step_O
    is_charged_J1 = charged_J[:, None] > 0.0
    possible_JO = (fixed_JO + steps_JO <= budget_JO) | ~is_charged_J1
    possible_JO &= tokens_J[:, None] <= room_O
    spare_JO = budget_JO - steps_JO - (output_J[:, None] - 1.0) * sequence_O
    return Jobs(
        start_N1=start_N1,
        release_J=release_J,
        end_J=release_J + length_J - overhead_O.min(initial=0.0 if not options else np.inf),
        value_JO=np.where(possible_JO, quality_KO[task_J] * factor_J[:, None], 0.0),
        fixed_JO=np.where(is_charged_J1, fixed_JO, 0.0),
        steps_JO=np.where(is_charged_J1, steps_JO, 0.0),
        share_JO=computed_JO * token_O + sequence_O,
        budget_JO=np.where(possible_JO & is_charged_J1, spare_JO, 0.0),
        tokens_J=tokens_J,
        step_O=step_O,
        batch_O=batch_O,
        room_O=room_O,
        group_O=group_O,
        devices_G=devices_G,
        memory_s=float(length_J.max(initial=0.0)),
    )


def _most_cached_JO(workload: Workload, pick_J: Integers, kept_O: Floats) -> Floats:
    """Returns how much of the prompts of requests `pick_J` may have been cached, tokens."""
    if workload.conversation_N is None:
        return np.zeros((len(pick_J), len(kept_O)))
    _, which_N, count_V = np.unique(
        workload.conversation_N, return_inverse=True, return_counts=True
    )
    follows_N = (workload.conversation_N >= 0) & (count_V[which_N] > 1)
    most_J = np.where(follows_N, workload.prompt_N - 1.0, 0.0)[pick_J]
    most_JO = np.minimum(most_J[:, None], kept_O)
    cached_JO: Floats = np.floor(most_JO / BLOCK_TOKENS) * BLOCK_TOKENS
    return cached_JO


def _brackets(decay_s: float, is_streamed: bool) -> list[tuple[float, float, float]]:
    """Returns (latest lateness, factor on the quality, 1 = it is charged) of each bracket."""
    if decay_s <= 0.0:
        return [(0.0, 1.0, 1.0)]
    late = np.linspace(0.0, SOFT_GRACE * decay_s, SOFT_BRACKETS + 1)
    factor = np.exp(-np.concatenate([[0.0], late[:-1]]) / decay_s)
    found = [(*each, 1.0) for each in zip(late.tolist(), factor.tolist(), strict=True)]
    if is_streamed:
        found.append((SOFT_GRACE * decay_s, math.exp(-SOFT_GRACE), 0.0))
    return found
