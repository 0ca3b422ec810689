"""Checks what a client asked for, all mistakes at once, and turns it into a job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.catalog import Catalog
from router.estimators import OutputLengthPredictor
from router.types import (
    LONGEST_TOKEN_INTERVAL_S,
    NO_TIER_PIN,
    Priority,
    Request,
    RewardKind,
    SloKind,
    Task,
)
from services.common.checks import Checks
from services.common.errors import InvalidArgumentError, NotFoundError
from services.router_inference.job import Ask, Job

MAX_REQUEST_ID_CHARACTERS = 128
MAX_CONVERSATION_ID_CHARACTERS = 128
MAX_TEMPERATURE = 2.0
_SHORTEST_SLACK_S = 1e-3
MAX_SEED = 2**63 - 1
_EVENT = {SloKind.COMPLETE_ANSWER: "complete answer", SloKind.FIRST_TOKEN: "first token"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_prompt_bytes: longest prompt, bytes of UTF-8.
        max_output_tokens: highest limit of output tokens.
        max_deadline_s: longest deadline, seconds.
        lease_s: lease of a ticket, which bounds the deadline of a routed request, seconds.
        soft_late_s: how long after its deadline a soft request is still worked on, seconds.
        bytes_per_token: bytes of prompt per token, for the estimate of prompt tokens.
        default_task: task of requests that name none; empty refuses them.
    """

    max_prompt_bytes: int
    max_output_tokens: int
    max_deadline_s: float
    lease_s: float
    soft_late_s: float
    bytes_per_token: float
    default_task: str = ""


class Validator:
    """Makes jobs of what was asked."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        limits: Limits,
        lengths: OutputLengthPredictor,
        new_id: Callable[[], str],
        new_seed: Callable[[], int],
        conversation_key: Callable[[str], bytes] = lambda _: b"",
    ) -> None:
        """Takes catalog, limits, length predictor, sources of request ids and seeds, and a hash.

        The hash is of conversation ids, empty for an empty one; without it ids mean nothing.
        """
        self._conversation_key = conversation_key
        self._lengths = lengths
        self._new_id = new_id
        self._new_seed = new_seed
        self.configure(catalog, limits)

    def configure(self, catalog: Catalog, limits: Limits) -> None:
        """Takes other tasks and limits for the requests to come."""
        self._catalog = catalog
        self._limits = limits
        self._most_prompt_tokens = max(1, int(limits.max_prompt_bytes / limits.bytes_per_token))
        self._lengths.add({task.name: task.expected_output_tokens for task in catalog.tasks})
        self._task_index = {task.name: index for index, task in enumerate(catalog.tasks)}
        self._tier_index = {name: index for index, name in enumerate(catalog.tiers)}

    @property
    def max_prompt_bytes(self) -> int:
        """Longest prompt, bytes."""
        return self._limits.max_prompt_bytes

    def tasks(self) -> tuple[Sequence[str], str]:
        """Returns the names of the tasks, and of that of requests that name none (or empty)."""
        return tuple(self._task_index), self._limits.default_task

    def job(self, ask: Ask, now_s: float, now_ns: int, prefix: str = "spec.") -> Job:
        """Returns the job.

        Args:
            ask: what was asked.
            now_s: when it arrived, monotonic seconds.
            now_ns: same, ns since 1970.
            prefix: path of the fields in the request message.

        Raises:
            InvalidArgumentError: with every field that is wrong.
            NotFoundError: the task or the tier is not known.
        """
        ask.task = ask.task or self._limits.default_task
        prompt_tokens = self._check(ask, prefix)
        task_index = self._task_index.get(ask.task)
        if task_index is None:
            raise NotFoundError("task", ask.task, self._task_index)
        task = self._catalog.tasks[task_index]
        tier_pin = NO_TIER_PIN
        if ask.tier:
            found = self._tier_index.get(ask.tier)
            if found is None:
                raise NotFoundError("tier", ask.tier, self._tier_index)
            tier_pin = found
        if ask.quality_floor > 0.0:
            self._check_floor(ask, task_index, tier_pin, prefix)
        slack_s = self._slack_s(ask, task.default_deadline_s)
        output_limit = min(
            ask.max_output_tokens or task.default_max_output_tokens, self._limits.max_output_tokens
        )
        slo_kind = self._slo_kind(ask, task, prefix)
        interval_s = 0.0
        if slo_kind is SloKind.PER_TOKEN:
            interval_s = ask.token_interval_s or task.token_interval_s
        request = Request(
            task_index,
            max(_SHORTEST_SLACK_S, slack_s),
            prompt_tokens,
            self._lengths.predict(task.name, output_limit),
            ask.quality_floor,
            tier_pin,
            slo_kind,
            task.reward_kind,
            task.soft_decay_s,
            ask.priority if isinstance(ask.priority, Priority) else Priority.NORMAL,
            interval_s,
        )
        deadline_s = now_s + slack_s
        return Job(
            request_id=ask.request_id or self._new_id(),
            task=task,
            request=request,
            prompt=ask.prompt or "",
            max_output_tokens=output_limit,
            temperature=ask.temperature,
            seed=ask.seed if ask.seed is not None else self._new_seed(),
            arrival_s=now_s,
            arrival_ns=now_ns,
            deadline_s=deadline_s,
            cutoff_s=self._cutoff_s(ask, request, now_s, deadline_s),
            is_stream=ask.is_stream,
            is_routed=ask.prompt is None and not ask.by_gateway,
            by_gateway=ask.by_gateway,
            endpoints=ask.endpoints,
            client=ask.client,
            asked_priority=request.priority,
            metadata=ask.metadata,
            conversation=self._conversation_key(ask.conversation_id)
            if ask.conversation_id
            else b"",
        )

    def _slo_kind(self, ask: Ask, task: Task, prefix: str) -> SloKind:
        """Returns what the deadline is measured against.

        Raises:
            InvalidArgumentError: an interval between tokens is given, and nothing else would have
                their times counted.
        """
        slo_kind = ask.slo_kind if isinstance(ask.slo_kind, SloKind) else task.slo_kind
        if ask.token_interval_s is not None and slo_kind is not SloKind.PER_TOKEN:
            what = f"is given, but the deadline is that of the {_EVENT[slo_kind]}"
            raise InvalidArgumentError(f"{prefix}token_interval", what, "slo_kind per_token")
        if not ask.is_stream and (ask.prompt is not None or ask.by_gateway):
            # Without streaming the first token reaches the client together with the last one.
            return SloKind.COMPLETE_ANSWER
        if ask.by_gateway and slo_kind is SloKind.PER_TOKEN:
            return SloKind.FIRST_TOKEN  # the only one of which a gateway tells
        return slo_kind

    def _cutoff_s(self, ask: Ask, request: Request, now_s: float, deadline_s: float) -> float:
        """Returns when work stops: at a hard deadline, after a soft one, with the call at last."""
        cutoff_s = deadline_s
        if request.slo_kind is not SloKind.COMPLETE_ANSWER:
            # A stream with a late token goes on: its client reads along.
            cutoff_s = now_s + self._limits.max_deadline_s
        elif request.reward_kind is RewardKind.SOFT:
            cutoff_s = deadline_s + self._limits.soft_late_s
        if ask.call_left_s is not None:
            cutoff_s = min(cutoff_s, now_s + ask.call_left_s)
        return cutoff_s

    def _slack_s(self, ask: Ask, default_s: float) -> float:
        """Returns the time until the request's deadline, else the task's.

        A call's own time limit is set by libraries, not wished for by people: no deadline, but
        nothing goes beyond its end. What a call waited before it was seen here is spent, since a
        deadline is the caller's. So it may be below 0.
        """
        asked_s = default_s if ask.deadline_s is None else ask.deadline_s
        slack_s = asked_s - ask.waited_s
        return slack_s if ask.call_left_s is None else min(slack_s, ask.call_left_s)

    def _check(self, ask: Ask, prefix: str) -> float:
        """Returns the number of prompt tokens.

        Raises:
            InvalidArgumentError: With every field that is wrong.
        """
        limits, checks, prompt_tokens = self._limits, Checks(prefix), 1.0
        if ask.prompt is not None:
            # The cheap bound first: UTF-8 has at least one byte per character.
            size = len(ask.prompt)
            if size <= limits.max_prompt_bytes and not ask.prompt.isascii():
                size = len(ask.prompt.encode("utf-8", "replace"))
            if not 1 <= size <= limits.max_prompt_bytes:
                what = "is empty" if size == 0 else f"has {size} bytes or more"
                checks.require(False, "prompt", what, f"1 to {limits.max_prompt_bytes} bytes")
            prompt_tokens = max(1.0, size / limits.bytes_per_token)
        elif ask.prompt_bytes is not None:
            checks.count("prompt_bytes", ask.prompt_bytes, limits.max_prompt_bytes)
            prompt_tokens = max(1.0, ask.prompt_bytes / limits.bytes_per_token)
        elif ask.prompt_tokens is not None:
            checks.count("prompt_token_count", ask.prompt_tokens, self._most_prompt_tokens, low=1)
            prompt_tokens = float(max(1, ask.prompt_tokens))
        if not ask.task:
            checks.require(
                False, "task", "is empty, and there is no default task", "a task of the mesh"
            )
        if ask.max_output_tokens is not None:
            checks.count("max_output_tokens", ask.max_output_tokens, limits.max_output_tokens, 1)
        if ask.deadline_s is not None:
            self._check_deadline(ask, ask.deadline_s, checks)
        if ask.token_interval_s is not None:
            most_s, given_s = LONGEST_TOKEN_INTERVAL_S, ask.token_interval_s
            good = 0.0 < given_s <= most_s
            checks.require(good, "token_interval", f"is {given_s:g} s", f"above 0 to {most_s:g} s")
        # What was not asked for is right as it is.
        if ask.quality_floor:
            checks.number("quality_floor", ask.quality_floor, 0.0, 1.0)
        if ask.temperature:
            checks.number("sampling.temperature", ask.temperature, 0.0, MAX_TEMPERATURE)
        if ask.seed is not None:
            checks.count("sampling.seed", ask.seed, MAX_SEED)
        if isinstance(ask.slo_kind, int):
            checks.require(False, "slo_kind", f"is {ask.slo_kind}", "a named value")
        if type(ask.priority) is not Priority:
            checks.require(False, "priority", f"is {ask.priority}", "a named value")
        if ask.request_id:
            checks.text("request_id", ask.request_id, MAX_REQUEST_ID_CHARACTERS)
        if ask.conversation_id:
            checks.text("conversation_id", ask.conversation_id, MAX_CONVERSATION_ID_CHARACTERS)
        checks.raise_if_any()
        return prompt_tokens

    def _check_deadline(self, ask: Ask, deadline_s: float, checks: Checks) -> None:
        most_s = self._limits.max_deadline_s
        if ask.prompt is None and not ask.by_gateway:
            # One that ends after its ticket's lease could never be reported on.
            most_s = min(most_s, self._longest_lease_s(ask.task))
        if not 0.0 < deadline_s <= most_s:
            what = f"is {deadline_s:g} s" + (", already past" if deadline_s < 0.0 else "")
            checks.require(False, "deadline", what, f"above 0 to {most_s:g} s")

    def _longest_lease_s(self, task: str) -> float:
        index = self._task_index.get(task)
        if index is None:
            return self._limits.lease_s
        return max(self._limits.lease_s, self._catalog.tasks[index].default_deadline_s)

    def _check_floor(self, ask: Ask, task_index: int, tier_pin: int, prefix: str) -> None:
        """Raises InvalidArgumentError if no tier can reach the floor, whatever its load."""
        row_T = self._catalog.quality_KT[task_index]
        best = float(row_T.max() if tier_pin == NO_TIER_PIN else row_T[tier_pin])
        if ask.quality_floor > best:
            who = f"tier {ask.tier}" if ask.tier else "any tier"
            raise InvalidArgumentError(
                f"{prefix}quality_floor",
                f"is {ask.quality_floor:g}, above the quality of {who} on task {ask.task}",
                f"0 to {best:g}",
                reason="QUALITY_FLOOR_NOT_REACHABLE",
            )
