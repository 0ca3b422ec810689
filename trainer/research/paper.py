"""Training of the paper's policy: plain Double DQN, one-step targets, discount per request.

    python -m trainer.research.paper --seed 1 --out policies/opt-a100.dqn-paper.safetensors

"Learned Best-Effort LLM Serving" (arXiv 2401.07886) states: Double DQN, a 2-layer MLP, state =
task, batch per model, arrival rate, action = model, a reward by the deadline, a simulation of 4
GPUs, bursty arrivals. It does not state, so these are our choices: every constant below; the
episodes (a random load over the whole range; Poisson, gamma gaps of CV 4 and 8, Markov-modulated
rates); the reward (quality if on time, else 0); uniform exploration that fades; and that the best
network on validation seeds is kept. Nothing of what makes `dqn` work is used here: time is not in
the discount, targets span one request, exploration is uniform.

Rewards are scaled by 1 - gamma, so that values are of the size of a quality.

Shape letters: B batch, I inputs, H hidden units, K tasks, T tiers, N requests.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router.dqn.paper_snapshot import (
    POLICY,
    PaperSnapshot,
    PaperWeights,
    feature_names,
    flat,
    save_paper_snapshot,
)
from router.policies import paper, scores
from trainer.learning.checkpoint import write_atomically
from trainer.learning.descent import Descent, arrays_of
from trainer.learning.network import Parameters
from trainer.research.tuning import (
    TuningCase,
    TuningError,
    add_setting_options,
    make_case,
    run_command,
    score,
    setting_of,
)
from trainer.simulation import loop
from trainer.simulation.compiled import jit, twin
from trainer.simulation.dice import uniform
from trainer.simulation.engine import settle
from trainer.simulation.setting import Setting, unit_rate_rps
from trainer.simulation.simulate import PolicySpec, make_world
from trainer.simulation.state import FAILED, World

_paper, _scores = twin(paper), twin(scores)

Progress = Callable[[float, dict[str, float]], None]


@dataclass(frozen=True)
class PaperConfig:
    """What the paper leaves open.

    Attributes:
        requests: simulated requests to train on.
        hidden_count: hidden units.
        discount: per request.
        learning_rate: of Adam.
        batch_size: transitions per gradient step.
        requests_per_step: simulated requests per gradient step.
        replay_count: transitions kept.
        sync_steps: gradient steps between two copies to the target network.
        epsilon_end: exploration left after `fade_share` of the requests; it starts at 1.
        fade_share: share of the requests over which exploration fades, linearly.
        episode_requests: requests per episode, about.
        shortest_s: shortest episode, seconds.
        lowest_load: lowest load of an episode, in units of what the largest tier holds.
        highest_load: highest one.
        validations: how often the network is scored on the validation cases.
    """

    requests: int = 6_000_000
    hidden_count: int = 64
    discount: float = 0.99
    learning_rate: float = 1e-3
    batch_size: int = 256
    requests_per_step: int = 64
    replay_count: int = 400_000
    sync_steps: int = 500
    epsilon_end: float = 0.02
    fade_share: float = 0.5
    episode_requests: int = 4_000
    shortest_s: float = 2.0
    lowest_load: float = 0.2
    highest_load: float = 25.0
    validations: int = 20


VALIDATION_SEED = 700_500
EPISODE_KINDS = ("poisson", "poisson", "gamma-cv4", "gamma-cv8", "markov")
"""Arrival processes of the episodes, equally likely each time they are named."""


class RequestSteps(NamedTuple):
    """One-step transitions, each from a request to the next one.

    Attributes:
        x_BI: state.
        action_B: tier.
        reward_B: quality if on time, else 0.
        next_x_BI: state at the next request.
    """

    x_BI: NDArray[np.float32]
    action_B: NDArray[np.int64]
    reward_B: NDArray[np.float32]
    next_x_BI: NDArray[np.float32]


@jit
def _best_of_tier(w: World, tier: int) -> int:
    """Returns the allowed candidate of the highest score, of one tier or (-1) of any."""
    best = -1
    for c in range(len(w.decided.score_C)):
        open_to = w.allowed_C[c] and (tier < 0 or w.fleet.tier_C[c] == tier)
        if open_to and (best < 0 or w.decided.score_C[c] > w.decided.score_C[best]):
            best = c
    return best


@jit
def _run_episode(
    w: World, params_P: np.ndarray, epsilon: float, x_NI: np.ndarray, action_N: np.ndarray
) -> None:
    """Runs a world to its end, a uniform tier with probability epsilon; keeps state and tier."""
    tasks = len(w.fleet.quality_KC)
    tiers = x_NI.shape[1] - tasks - 1
    clock = w.clock[0]
    while True:
        i = loop.advance(w)
        if i < 0:
            return
        q = loop.query_for(w, i, clock.now_s)
        _scores.predict(w.fleet, w.seen, q, w.decided)
        _paper.score(w.fleet, w.seen, w.allowed_C, q, params_P, w.decided)
        forced = -1
        if uniform(w) < epsilon:
            forced = int(uniform(w) * tiers)
        best = _best_of_tier(w, forced)
        if best < 0:  # the tier drawn is not there
            best = _best_of_tier(w, -1)
        if best < 0:
            settle(w, i, FAILED, clock.now_s)
            continue
        x_NI[i, q.task] = 1.0
        for t in range(tiers):
            x_NI[i, tasks + t] = _paper.tier_batch(w.fleet, w.seen, t)
        x_NI[i, tasks + tiers] = _paper.rate_input(q.rate_short_rps)
        action_N[i] = w.fleet.tier_C[best]
        loop.apply(w, i, best)


def collect(
    setting: Setting, weights: PaperWeights, config: PaperConfig, epsilon: float, seed: int
) -> RequestSteps:
    """Returns the transitions of one random episode."""
    rng = np.random.default_rng([seed, 5])
    span = math.log(config.highest_load / config.lowest_load)
    load = config.lowest_load * math.exp(span * rng.random())
    case = make_case(
        setting,
        load * unit_rate_rps(setting),
        seed=seed,
        scenario=EPISODE_KINDS[int(rng.integers(len(EPISODE_KINDS)))],
        requests=config.episode_requests,
        shortest_s=config.shortest_s,
        longest_s=60.0,
        reference=1.0,
    )
    world = make_world(case.config, case.workload, case.seed)
    count = len(case.workload)
    x_NI = np.zeros((count, len(feature_names(setting.catalog))), np.float32)
    action_N = np.full(count, -1, np.int64)
    _run_episode(world, flat(weights), epsilon, x_NI, action_N)
    decided = np.flatnonzero(action_N >= 0)
    x_NI, action_N = x_NI[decided], action_N[decided]
    reward_N = world.requests["first_reward"][decided].astype(np.float32)
    # Nothing is known of what follows the last request of an episode.
    return RequestSteps(x_NI[:-1], action_N[:-1], reward_N[:-1], x_NI[1:])


class PaperLearner:
    """Double DQN with one-step targets, and its replay."""

    def __init__(self, input_count: int, tier_count: int, config: PaperConfig, seed: int) -> None:
        """Starts from random layers (He et al., arXiv 1502.01852)."""
        self._config = config
        self._rng = np.random.default_rng([seed, 6])
        hidden = config.hidden_count
        arrays = (
            self._rng.normal(size=(input_count, hidden)) * math.sqrt(2.0 / input_count),
            np.zeros(hidden),
            self._rng.normal(size=(hidden, tier_count)) * 0.1 / math.sqrt(hidden),
            np.full(tier_count, 0.5),
        )
        self._q = Descent(
            dict(zip(PaperWeights._fields, arrays, strict=True)),
            partial(torch.optim.Adam, lr=config.learning_rate, foreach=True),
            target_rate=0.0,
            gradient_norm_limit=math.inf,
        )
        size = config.replay_count
        self.replay = RequestSteps(
            np.zeros((size, input_count), np.float32),
            np.zeros(size, np.int64),
            np.zeros(size, np.float32),
            np.zeros((size, input_count), np.float32),
        )
        self._filled = self._next = 0

    @property
    def step_count(self) -> int:
        """Steps done."""
        return self._q.step_count

    def add(self, new: RequestSteps) -> None:
        """Puts transitions into the replay, over the oldest ones."""
        count = min(len(new.reward_B), self._config.replay_count)
        rows = (self._next + np.arange(count)) % self._config.replay_count
        parts: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(self.replay, new, strict=True))
        for kept, part in parts:
            kept[rows] = part[:count]
        self._next = int(self._next + count) % self._config.replay_count
        self._filled = min(self._config.replay_count, self._filled + count)

    def step(self) -> float:
        """Does one gradient step on a uniform batch and returns the loss."""
        config = self._config
        rows = self._rng.integers(self._filled, size=config.batch_size)
        x_BI, action_B, reward_B, next_x_BI = (torch.from_numpy(p[rows]) for p in self.replay)
        with torch.no_grad():
            best_B1 = forward(self._q.online, next_x_BI).argmax(dim=1, keepdim=True)
            value_B = forward(self._q.target, next_x_BI).gather(1, best_B1).squeeze(1)
            td_target_B = (1.0 - config.discount) * reward_B + config.discount * value_B
        chosen_B = forward(self._q.online, x_BI).gather(1, action_B.unsqueeze(1)).squeeze(1)
        loss = self._q.step(torch.nn.functional.mse_loss(chosen_B, td_target_B))
        if self.step_count % config.sync_steps == 0:
            self._q.sync()
        return loss

    def weights(self) -> PaperWeights:
        """Returns the online network."""
        return PaperWeights(**arrays_of(self._q.online))


def forward(p: Parameters, x_BI: Tensor) -> Tensor:
    """Returns q_BT, as `router.policies.paper` computes it for one state."""
    return torch.relu(x_BI @ p["w1_IH"] + p["b1_H"]) @ p["w2_HT"] + p["b2_T"]


def paper_spec(weights: PaperWeights) -> PolicySpec:
    """Returns the policy of a network as the simulator takes it."""
    return PolicySpec(POLICY, flat(weights), name=POLICY)


def train_paper(
    setting: Setting,
    *,
    seed: int,
    config: PaperConfig | None = None,
    progress: Progress | None = None,
) -> bytes:
    """Trains the paper's policy and returns its snapshot; a function of its arguments alone.

    Args:
        setting: fleet, tasks, deadline.
        seed: of everything drawn.
        config: what the paper leaves open.
        progress: told the share done, and score, epsilon and loss, at every validation.

    Raises:
        TuningError: the budget is not positive.
    """
    torch.set_num_threads(1)
    config = config or PaperConfig()
    if config.requests < 1:
        raise TuningError(f"requests must be at least 1 (got {config.requests})")
    names = feature_names(setting.catalog)
    learner = PaperLearner(len(names), len(setting.catalog.tiers), config, seed)
    cases = _validation_cases(setting)
    best, best_score = learner.weights(), -math.inf
    simulated, owed, validated, loss, episode = 0, 0.0, 0, 0.0, 0
    while simulated < config.requests:
        done = simulated / config.requests
        epsilon = max(
            config.epsilon_end, 1.0 - (1.0 - config.epsilon_end) * done / config.fade_share
        )
        drawn = collect(setting, learner.weights(), config, epsilon, 1_000_000 * seed + episode)
        episode += 1
        learner.add(drawn)
        simulated += len(drawn.reward_B)
        owed += len(drawn.reward_B) / config.requests_per_step
        while owed >= 1.0:
            loss += 0.01 * (learner.step() - loss)
            owed -= 1.0
        if simulated * config.validations >= (validated + 1) * config.requests:
            validated += 1
            found = score(paper_spec(learner.weights()), cases)
            if found > best_score:
                best, best_score = learner.weights(), found
            if progress is not None:
                progress(done, {"score": found, "epsilon": epsilon, "loss": loss})
    return save_paper_snapshot(
        PaperSnapshot(
            best,
            names,
            training={
                "method": "Double DQN, one-step targets, discount per request",
                "seed": seed,
                "simulated_requests": simulated,
                "step_count": learner.step_count,
                **asdict(config),
            },
            evaluation={"validation_score": best_score},
            fleet={
                "profile": setting.profiles[""].name,
                "tiers": list(setting.catalog.tiers),
                "tasks": [task.name for task in setting.catalog.tasks],
                "device_count": len(setting.fleet.devices),
                "deadline_s": setting.deadline_s,
            },
        )
    )


def _validation_cases(setting: Setting) -> list[TuningCase]:
    """Returns a few cases over the range, on seeds used for nothing else."""
    plan = [("poisson", load) for load in (0.5, 1.0, 1.6, 4.0, 10.0, 20.0)]
    plan += [("gamma-cv4", 1.6), ("markov", 4.0)]
    unit_rps = unit_rate_rps(setting)
    return [
        make_case(
            setting,
            load * unit_rps,
            seed=VALIDATION_SEED + index,
            scenario=scenario,
            requests=2000,
            shortest_s=2.0,
        )
        for index, (scenario, load) in enumerate(plan)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Trains the paper's policy for a profile and writes its snapshot."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.paper",
        description="Trains the paper's policy in the simulator.",
    )
    add_setting_options(parser)
    parser.add_argument("--requests", type=int, default=PaperConfig.requests, help="to simulate")
    parser.add_argument("--seed", type=int, default=1, help="seed of everything drawn")
    parser.add_argument("--out", type=Path, default=Path("build/train/dqn-paper.safetensors"))
    options = parser.parse_args(arguments)

    def show(done: float, facts: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4f}" for name, value in facts.items())
        print(f"{100 * done:3.0f} %  {text}", flush=True)

    def work() -> None:
        config = PaperConfig(requests=options.requests)
        setting = setting_of(options)
        blob = train_paper(setting, seed=options.seed, config=config, progress=show)
        write_atomically(options.out, blob)
        print(f"{options.out}: {len(blob)} bytes")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
