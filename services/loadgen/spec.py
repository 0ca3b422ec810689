"""What a load run shall do, checked before anything is sent."""

from __future__ import annotations

import math
import pathlib
import random
import re
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from router.documents import parse_json, parse_toml
from router.messages import one_line
from router.types import LONGEST_TOKEN_INTERVAL_S, InvalidFileError, Priority
from services.common.addresses import parse_address
from services.common.files import read_text
from services.common.mesh_settings import HIGHEST_LIMIT_TOKENS
from services.common.prompt_sizes import MOST_PROMPT_BYTES
from services.loadgen.arrivals import (
    MAX_CV,
    MAX_DURATION_S,
    MAX_RATE_RPS,
    Arrivals,
    ArrivalsError,
    Phase,
    Process,
    draw_arrivals,
)
from services.loadgen.prompts import Prompt, draw_prompts, made_up_text
from trainer.simulation.workload import OPT_LENGTHS, Lengths

MAX_PROMPT_TOKENS = 16_384
"""Longest prompt that is made up, tokens; one of a pool may be as long as a mesh can allow."""
MAX_OUTPUT_TOKENS = HIGHEST_LIMIT_TOKENS
"""Highest limit of an answer, tokens: that of a task."""
_MOST_MISTAKES = 20
_FORM = re.compile(r"constrained-|(?:dict|literal)\[")
"""How pydantic names the forms that a field may have; nobody has written that into a spec."""
_LARGEST_SPEC_BYTES = 64 * 1024 * 1024  # it may carry a pool of prompts
_POOL_SIZE = 500
MOST_TASKS = 64
DRAWN: Literal["drawn"] = "drawn"
PromptLength = Annotated[int, Field(ge=1, le=MAX_PROMPT_TOKENS)] | Literal["drawn"]
OutputLength = Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | Literal["drawn"]
"""Tokens: a number, or drawn as the evaluation draws them."""
Name = Annotated[str, Field(min_length=1, max_length=64)]
LONGEST_DEADLINE_S = 3_600.0
DeadlineS = Annotated[float, Field(gt=0, le=LONGEST_DEADLINE_S)]


def _some_share(mix: dict[str, float]) -> dict[str, float]:
    """Refuses shares of which none is above 0; no share at all is something else."""
    if mix and not math.fsum(mix.values()) > 0:
        raise ValueError("at least one share must be above 0")
    return mix


Share = Annotated[float, Field(ge=0, le=1e9)]
TaskMix = Annotated[dict[Name, Share], pydantic.AfterValidator(_some_share)]
PriorityMix = Annotated[
    dict[Literal["high", "normal", "low"], Share], pydantic.AfterValidator(_some_share)
]


class LoadSpecError(ValueError):
    """A load spec with mistakes; the text names every field and its limit."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PhaseSpec(_Model):
    """A stretch of time with one mean rate.

    Attributes:
        name: Name in tables.
        duration_s: Length in seconds.
        rate_rps: Mean arrivals per second; 0 means a pause.
        task_mix: Share of each task in it, of tasks that the run's own mix names; empty means that
            mix.
    """

    name: Name
    duration_s: float = Field(gt=0, le=MAX_DURATION_S)
    rate_rps: float = Field(ge=0, le=MAX_RATE_RPS)
    task_mix: TaskMix = Field(default_factory=dict, max_length=MOST_TASKS)


class PromptSpec(_Model):
    """One prompt.

    Attributes:
        text: What is sent.
        answer: The only right answer, for scoring by exact match; None if it cannot be scored.
        max_output_tokens: Limit of its answer; None means the run's.
    """

    text: str = Field(min_length=1, max_length=MOST_PROMPT_BYTES)
    answer: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None


class LengthsSpec(_Model):
    """What lengths are drawn from; see ``trainer.simulation.workload.Lengths``.

    Attributes:
        prompt_median: Median prompt tokens.
        prompt_sigma: Standard deviation of their logarithm.
        prompt_max: Longest prompt, tokens.
        output_mean: Mean output tokens.
        output_spread: They are uniform over mean x (1 +- spread).
        output_max: Longest output, tokens.
    """

    prompt_median: float = Field(default=OPT_LENGTHS.prompt_median, gt=0, le=MAX_PROMPT_TOKENS)
    prompt_sigma: float = Field(default=OPT_LENGTHS.prompt_sigma, ge=0, le=4)
    prompt_max: int = Field(default=OPT_LENGTHS.prompt_max, ge=1, le=MAX_PROMPT_TOKENS)
    output_mean: float = Field(default=OPT_LENGTHS.output_mean, gt=0, le=MAX_OUTPUT_TOKENS)
    output_spread: float = Field(default=OPT_LENGTHS.output_spread, ge=0, le=1)
    output_max: int = Field(default=OPT_LENGTHS.output_max, ge=1, le=MAX_OUTPUT_TOKENS)


class LoadSpec(_Model):
    """One bounded open-loop run against routers.

    Attributes:
        router_addresses: host:port of each router; used in turn.
        phases: Rates over time.
        deadline_s: Deadline of every request, or of the requests of each task, from its intended
            send time, in seconds.
        task_mix: Share of each task; only ratios count.
        seed: Seed of arrivals, tasks and prompts.
        process: Kind of arrivals.
        cv: Coefficient of variation of ``gamma`` arrivals.
        prompts: Pool of prompts per task, used in order, over again from its end.
        lengths: What lengths are drawn from; the evaluation's unless it says more.
        prompt_tokens: Length of made-up prompts, for tasks without a pool: a number, or "drawn".
        max_output_tokens: Limit per request: a number, or "drawn"; None means the task's default.
        tier: Pins every request to one tier; empty means that the router chooses.
        quality_floor: Lowest quality accepted, 0 to 1.
        priority_mix: Share of each priority class; only ratios count. Empty means all normal.
        stream: Uses GenerateStream and records first-token times.
        token_interval_s: Makes the deadline that of the first token of a stream, and has each
            further one due so long after the one before, in seconds; None means deadlines of the
            complete answer.
        failover: Tries the next router when one is not reached, as the Python client does.
        cancel_share: Share of requests cancelled by the client.
        cancel_after_s: When, from their intended send time.
        network_allowance_s: Taken off the deadline told to the router, because the answer still has
            to come back.
        grace_s: How long beyond its deadline an answer is waited for, so that lateness is seen and
            not only cut off.
        nice: Scheduling priority asked for, -20 to 19; not being allowed to raise it is no error.
        core: Processor the generator is pinned to; None means any.
        progress_interval_s: Time between progress lines.
    """

    router_addresses: list[str] = Field(min_length=1, max_length=64)
    phases: list[PhaseSpec] = Field(min_length=1, max_length=10_000)
    deadline_s: DeadlineS | Annotated[dict[Name, DeadlineS], Field(min_length=1)]
    task_mix: TaskMix = Field(min_length=1, max_length=MOST_TASKS)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    process: Process = "poisson"
    cv: float = Field(default=1.0, gt=0, le=MAX_CV)
    prompts: dict[Name, list[PromptSpec]] = Field(default_factory=dict)
    lengths: LengthsSpec = Field(default_factory=LengthsSpec)
    prompt_tokens: PromptLength = DRAWN
    max_output_tokens: OutputLength | None = None
    tier: str = Field(default="", max_length=64)
    quality_floor: float = Field(default=0.0, ge=0, le=1)
    priority_mix: PriorityMix = Field(default_factory=dict)
    stream: bool = False
    token_interval_s: float | None = Field(default=None, gt=0, le=LONGEST_TOKEN_INTERVAL_S)
    failover: bool = True
    cancel_share: float = Field(default=0.0, ge=0, le=1)
    cancel_after_s: float = Field(default=0.05, ge=0, le=600)
    network_allowance_s: float = Field(default=0.002, ge=0, le=1)
    grace_s: float = Field(default=0.25, ge=0, le=60)
    nice: int = Field(default=-5, ge=-20, le=19)
    core: int | None = Field(default=None, ge=0, le=4_096)
    progress_interval_s: float = Field(default=0.5, ge=0.1, le=60)

    @pydantic.field_validator("router_addresses")
    @classmethod
    def _are_addresses(cls, addresses: list[str]) -> list[str]:
        return [str(parse_address(address)) for address in addresses]

    @pydantic.model_validator(mode="after")
    def _drawable(self) -> LoadSpec:
        self.arrivals()
        for place, phase in enumerate(self.phases):
            foreign = [task for task in phase.task_mix if task not in self.task_mix]
            if foreign:
                raise ValueError(
                    f"phases.{place}.task_mix: {', '.join(foreign)}: task_mix does not name it"
                )
        if isinstance(self.deadline_s, dict):
            missing = [task for task in self.task_mix if task not in self.deadline_s]
            if missing:
                raise ValueError(f"deadline_s: is missing for {', '.join(missing)}")
        if self.token_interval_s is not None:
            if not self.stream:
                raise ValueError("token_interval_s: needs stream, else all tokens come at once")
            if self.max_output_tokens is None and not self._are_limited():
                raise ValueError("token_interval_s: needs max_output_tokens, by which answers end")
        return self

    def _are_limited(self) -> bool:
        """Whether every prompt has a limit of its own."""
        given = [self.prompts.get(task, []) for task in self.task_mix]
        return all(pool and all(each.max_output_tokens for each in pool) for pool in given)

    def deadline_of(self, task: str) -> float:
        """Deadline of a task's requests, in seconds."""
        return self.deadline_s[task] if isinstance(self.deadline_s, dict) else self.deadline_s

    @property
    def longest_deadline_s(self) -> float:
        """The longest deadline of a request, in seconds."""
        return max(map(self.deadline_of, self.task_mix))

    def further_s(self, max_output_tokens: int | None) -> float:
        """Time from the first token's due time to that of the last one a limit allows, seconds."""
        if self.token_interval_s is None or max_output_tokens is None:
            return 0.0
        return (max_output_tokens - 1) * self.token_interval_s

    @property
    def longest_answer_s(self) -> float:
        """The longest time in which an answer is due as a whole, in seconds."""
        own = [each.max_output_tokens or 1 for pool in self.prompts.values() for each in pool]
        limit = self.max_output_tokens
        drawn = self.lengths.output_max if limit == DRAWN else (limit or 1)
        return self.longest_deadline_s + self.further_s(max([drawn, *own]))

    def pools(self) -> dict[str, list[Prompt]]:
        """Prompts per task of the mix: the given ones, else made-up ones."""
        return {task: self._pool(task) for task in self.task_mix}

    def priorities(self, count: int) -> list[Priority]:
        """Draws the classes of so many requests."""
        if not self.priority_mix:
            return [Priority.NORMAL] * count
        classes = [Priority[name.upper()] for name in self.priority_mix]
        share = np.array(list(self.priority_mix.values()))
        rng = np.random.default_rng([self.seed, 3])
        return [classes[i] for i in rng.choice(len(classes), size=count, p=share / share.sum())]

    def _pool(self, task: str) -> list[Prompt]:
        rng = random.Random(f"tiercel-prompts-{task}-{self.seed}")
        given = self.prompts.get(task)
        size = len(given) if given else _POOL_SIZE
        drawn = Lengths(**self.lengths.model_dump())
        prompt_N, output_N = drawn.sample(size, np.random.default_rng(rng.getrandbits(64)))
        if not given:
            fixed = None if self.prompt_tokens == DRAWN else self.prompt_tokens
            texts = [made_up_text(fixed or int(tokens), rng) for tokens in prompt_N]
            given = [PromptSpec(text=text) for text in texts]
        limits = [
            int(tokens) if self.max_output_tokens == DRAWN else self.max_output_tokens
            for tokens in output_N
        ]
        return [
            Prompt(task, each.text, each.answer, each.max_output_tokens or limit)
            for each, limit in zip(given, limits, strict=True)
        ]

    def drawn_prompts(self, arrivals: Arrivals) -> list[Prompt]:
        """Draws the prompt of every arrival."""
        index = arrivals.phase_index
        stretches = [
            (slice(*np.searchsorted(index, (place, place + 1))), phase.task_mix)
            for place, phase in enumerate(self.phases)
            if phase.task_mix
        ]
        return draw_prompts(
            self.task_mix, self.pools(), len(index), seed=self.seed, stretches=stretches
        )

    def arrivals(self) -> Arrivals:
        """Draws the arrivals.

        Raises:
            ArrivalsError: The phases together exceed a limit.
        """
        phases = [Phase(each.name, each.duration_s, each.rate_rps) for each in self.phases]
        return draw_arrivals(phases, seed=self.seed, process=self.process, cv=self.cv)


def parse_spec(fields: Any, where: str = "load spec") -> LoadSpec:
    """Checks a spec.

    Raises:
        LoadSpecError: All mistakes at once, each with its field.
    """
    if not isinstance(fields, dict):
        raise LoadSpecError(f"{where}: must be a table of fields")
    try:
        return LoadSpec.model_validate(fields)
    except pydantic.ValidationError as error:
        said: dict[str, list[str]] = {}
        for each in error.errors(include_url=False):
            parts = [str(part) for part in each["loc"]]
            field = ".".join(part for part in parts if not _FORM.match(part)) or "spec"
            said.setdefault(field, []).append(each["msg"].removeprefix("Value error, "))
        # Of a field of several forms every form says what it misses.
        lines = [one_line(f"{field}: {', or: '.join(texts)}") for field, texts in said.items()]
        raise LoadSpecError(f"{where}: " + "; ".join(lines[:_MOST_MISTAKES])) from None
    except ArrivalsError as error:
        raise LoadSpecError(f"{where}: {error}") from None


def read_spec(path: pathlib.Path) -> LoadSpec:
    """Reads a spec from a TOML or JSON file.

    Raises:
        LoadSpecError: The file cannot be read or holds mistakes.
    """
    try:
        text = read_text(path, _LARGEST_SPEC_BYTES)
        parse = parse_toml if path.suffix == ".toml" else parse_json
        return parse_spec(parse(text, str(path), _LARGEST_SPEC_BYTES), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LoadSpecError(f"{path}: cannot be read: {error}") from None
    except InvalidFileError as error:
        raise LoadSpecError(str(error)) from None
