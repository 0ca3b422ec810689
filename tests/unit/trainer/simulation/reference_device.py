"""One device in plain Python, written for the eye: what the compiled engine must agree with.

Every sequence carries its tokens one by one, the room in use is counted afresh at every iteration,
and nothing is filed ahead. Slow, and meant to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from router.profile import TierProfile


@dataclass(eq=False)
class Asked:
    """One request: what it asks for, and how it ended."""

    arrival_s: float
    prompt: int
    output: int
    deadline_s: float
    tier: int
    made: int = 0
    status: str = ""
    end_s: float = math.nan

    @property
    def held(self) -> int:
        """Tokens of room it needs: its prompt and its whole answer."""
        return self.prompt + self.output


@dataclass
class Tier:
    """Queue and batch of one tier; `peak` is the most room that was ever in use."""

    profile: TierProfile
    queue: list[Asked] = field(default_factory=list)
    batch: list[Asked] = field(default_factory=list)
    peak: int = 0

    @property
    def room(self) -> float:
        """Tokens there are."""
        limit = self.profile.max_kv_tokens
        return math.inf if limit is None else limit

    def used(self) -> int:
        """Tokens in use."""
        return sum(each.held for each in self.batch)

    def admit(self) -> int:
        """Moves what fits from queue to batch, in order; returns the prompt tokens admitted."""
        tokens = 0
        while self.queue and len(self.batch) < self.profile.max_batch:
            head = self.queue[0]
            too_long = tokens + head.prompt > self.profile.max_prompt_tokens_per_step
            if (too_long and tokens > 0) or self.used() + head.held > self.room:
                break
            tokens += head.prompt
            self.batch.append(self.queue.pop(0))
        self.peak = max(self.peak, self.used())
        return tokens


class Device:
    """Tiers that take turns by iteration."""

    def __init__(self, profiles: Sequence[TierProfile]) -> None:
        """Makes an idle device."""
        self.tiers = [Tier(profile) for profile in profiles]
        self.active: Tier | None = None
        self.end_s = math.inf
        self.last = 0
        self.alive = True

    def run(self, requests: Sequence[Asked], lost_s: float = math.inf) -> None:
        """Works the requests off; the device dies at `lost_s` and takes what it holds along."""
        todo = sorted(requests, key=lambda each: each.arrival_s)
        while True:
            late_s = min(
                (e.deadline_s for t in self.tiers for e in t.queue + t.batch), default=math.inf
            )
            next_s = todo[0].arrival_s if todo else math.inf
            now_s = min(self.end_s, late_s, next_s, lost_s)
            if now_s == math.inf:
                return
            if now_s == self.end_s:
                self._finish(now_s)
            elif now_s == late_s:
                self._cancel(now_s)
            elif now_s == lost_s:
                self._lose(now_s)
                lost_s = math.inf
            else:
                self._arrive(todo.pop(0), now_s)

    def _arrive(self, request: Asked, now_s: float) -> None:
        tier = self.tiers[request.tier]
        if not self.alive:
            request.status, request.end_s = "failed", now_s
        elif request.held > tier.room:
            request.status, request.end_s = "refused", now_s
        else:
            tier.queue.append(request)
            if self.active is None:
                self._start(now_s)

    def _start(self, now_s: float) -> None:
        self.active, self.end_s = None, math.inf
        for k in range(1, len(self.tiers) + 1):
            place = (self.last + k) % len(self.tiers)
            tier = self.tiers[place]
            if tier.queue or tier.batch:
                tokens = tier.admit()
                cost = tier.profile
                taken_s = cost.step_s + cost.per_sequence_s * len(tier.batch)
                self.end_s = now_s + taken_s + cost.per_prompt_token_s * tokens
                self.active, self.last = tier, place
                return

    def _finish(self, now_s: float) -> None:
        assert self.active is not None
        for each in self.active.batch:
            each.made += 1
            if each.made == each.output:
                each.status, each.end_s = "answered", now_s
        self.active.batch = [each for each in self.active.batch if not each.status]
        self._start(now_s)

    def _cancel(self, now_s: float) -> None:
        for tier in self.tiers:
            for each in tier.queue + tier.batch:
                if each.deadline_s <= now_s:
                    each.status, each.end_s = "cancelled", now_s
            tier.queue = [each for each in tier.queue if not each.status]
            tier.batch = [each for each in tier.batch if not each.status]

    def _lose(self, now_s: float) -> None:
        self.alive, self.active, self.end_s = False, None, math.inf
        for tier in self.tiers:
            for each in tier.queue + tier.batch:
                each.status, each.end_s = "failed", now_s
            tier.queue, tier.batch = [], []
