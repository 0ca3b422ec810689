"""Workloads of conversations: each request carries all that was said before.

A conversation is a chain of turns. The prompt of a turn is that of the turn before, its answer, and
what the user adds; so prompts grow, and most of a prompt has been computed before.

Shape letters: N requests, V conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.workload import Lengths, Workload, WorkloadError

_WARM_UP_TURNS = 4.0
"""Conversations that began so many mean lengths before the start are over by then, nearly all."""

_FIRST, _ADDED = Lengths(prompt_median=39.0), Lengths(prompt_median=10.6)


@dataclass(frozen=True, slots=True)
class Talk:
    """What conversations are like.

    Attributes:
        turns: mean number of turns; it is drawn from a geometric distribution, >= 1.
        pause_s: mean time between two turns, from request to request, exponential, seconds.
        lengths: of the first prompt and of every answer.
        added: of what the user adds in each further turn; its outputs are not looked at.
    """

    turns: float = 5.0
    pause_s: float = 2.0
    lengths: Lengths = _FIRST
    added: Lengths = _ADDED


OPT_TALK = Talk()
"""Prompts of 124 tokens in the mean, as the evaluation's: 44 at first, and 20 more each turn."""


def converse(
    rate_rps: float,
    duration_s: float,
    *,
    rng: np.random.Generator,
    deadline_s: Sequence[float],
    task_share: Sequence[float],
    talk: Talk = OPT_TALK,
    name: str = "conversations",
) -> Workload:
    """Returns conversations that begin as a Poisson process, in the middle of their traffic.

    Args:
        rate_rps: mean rate of requests, per second.
        duration_s: length of the period, seconds.
        rng: source of randomness.
        deadline_s: deadline per task.
        task_share: share of each task; a conversation is all of one.
        talk: what they are like.
        name: for tables.

    Raises:
        WorkloadError: a number is out of range.
    """
    if not (rate_rps > 0.0 and duration_s > 0.0):
        raise WorkloadError("rate_rps and duration_s must be above 0")
    if not (talk.turns >= 1.0 and talk.pause_s > 0.0):
        raise WorkloadError("turns must be at least 1 and pause_s above 0")
    before_s = _WARM_UP_TURNS * talk.turns * talk.pause_s
    count = int(rng.poisson(rate_rps / talk.turns * (before_s + duration_s)))
    begin_V = np.sort(rng.random(count)) * (before_s + duration_s) - before_s
    turns_V = rng.geometric(1.0 / talk.turns, count)
    share_K = np.asarray(task_share, dtype=np.float64)
    task_V = rng.choice(len(share_K), size=count, p=share_K / share_K.sum())

    conversation_N = np.repeat(np.arange(count), turns_V)
    first_N = (np.cumsum(turns_V) - turns_V)[conversation_N]
    number_N = np.arange(len(conversation_N)) - first_N
    prompt_N, output_N = talk.lengths.sample(len(conversation_N), rng)
    added_N, _ = talk.added.sample(len(conversation_N), rng)
    pause_N = rng.exponential(talk.pause_s, len(conversation_N))
    # Of each turn: what it adds to the prompt of the turn before, and to its time.
    more_N = np.where(number_N == 0, prompt_N, added_N + np.roll(output_N, 1))
    later_N = np.where(number_N == 0, begin_V[conversation_N], pause_N)
    whole_N = np.minimum(_within(more_N, first_N), talk.lengths.prompt_max)
    arrival_N = _within(later_N, first_N)

    kept_N = np.flatnonzero((arrival_N >= 0.0) & (arrival_N < duration_s))
    kept_N = kept_N[np.argsort(arrival_N[kept_N], kind="stable")]
    task_N = task_V[conversation_N[kept_N]].astype(np.int64)
    _, named_N = np.unique(conversation_N[kept_N], return_inverse=True)
    return Workload(
        arrival_N[kept_N],
        task_N,
        whole_N[kept_N],
        output_N[kept_N],
        np.asarray(deadline_s, dtype=np.float64)[task_N],
        duration_s,
        name,
        named_N.astype(np.int64),
    )


def _within(values_N: NDArray[np.float64], first_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns running sums inside each conversation, whose first turns are at `first_N`."""
    sums_N = np.cumsum(values_N)
    return sums_N - sums_N[first_N] + values_N[first_N]
