"""One request on its way through the router: what was asked, what was decided, how it ended."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

from router import pressure, profile_error
from router.explanation import Inputs
from router.seat import Stay
from router.types import Priority, Request, SloKind, Task
from services.common.telemetry import NO_SPAN, SpanIdentity
from services.common.times import to_ns
from services.router_inference.view.fleet import Target


class Outcome(enum.Enum):
    """How a request ended; every offered request ends in exactly one of the first five.

    One that its tier found bad input after all is taken for that, as if it had never been offered.
    """

    ON_TIME = "on_time"
    LATE = "late"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INVALID = "invalid"

    # Counts are kept by it: that of an enumeration is made in Python, and takes ten times as long.
    __hash__ = object.__hash__


class StepDown(enum.Enum):
    """Why a smaller tier than the largest allowed one answered."""

    NONE = "none"
    POLICY = "policy"
    RESCUE = "rescue"
    RETRY = "retry"
    UNAVAILABLE = "unavailable"
    PINNED = "pinned"


@dataclass(slots=True, kw_only=True)
class Ask:
    """A request as it came, not checked yet; None means that the client did not say.

    Attributes:
        task: task name.
        prompt: the prompt; None for a routed request, whose prompt never comes here.
        prompt_tokens: number of prompt tokens of a routed request.
        prompt_bytes: size of the message around the prompt, where a gateway carries it.
        max_output_tokens: limit of output tokens.
        temperature: sampling temperature.
        seed: sampling seed.
        deadline_s: time until the deadline, seconds.
        slo_kind: what the deadline is measured against; a number is none that we know.
        token_interval_s: time between the due times of two tokens, seconds.
        quality_floor: lowest quality accepted.
        tier: name of the only tier to use; empty = any.
        request_id: the client's id; empty = the router makes one.
        call_left_s: time until the gRPC call ends by its own time limit, seconds.
        waited_s: how long the call waited before it was seen here, as far as it says, seconds.
        is_stream: True if the answer is streamed.
        metadata: the call's metadata, for the trace context.
        client: who asks.
        by_gateway: True if a gateway carries prompt and answer, and tells how it ended.
        endpoints: names of the only endpoints to use; None = all.
        conversation_id: the client's id of the conversation that this continues; empty = none.
        priority: how it stands beside others; a number is no class that we know.
    """

    task: str
    prompt: str | None = None
    prompt_tokens: int | None = None
    prompt_bytes: int | None = None
    max_output_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    deadline_s: float | None = None
    slo_kind: SloKind | int | None = None
    token_interval_s: float | None = None
    quality_floor: float = 0.0
    tier: str = ""
    request_id: str = ""
    call_left_s: float | None = None
    waited_s: float = 0.0
    is_stream: bool = False
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    client: str = ""
    by_gateway: bool = False
    endpoints: frozenset[str] | None = None
    conversation_id: str = ""
    priority: Priority | int = Priority.NORMAL


class Arm(enum.Enum):
    """Which side of a trial's comparison a request was drawn for; most are drawn for neither."""

    CANARY = "canary"
    CONTROL = "control"


class Held(NamedTuple):
    """What targets mean for one request.

    Attributes:
        target: share of the task's hard deadlines to be met; 0: none, or a soft deadline.
        pressure: logarithm of the factor on the price of device time.
        is_small: it goes to the smallest tier, whatever the price says.
    """

    target: float = 0.0
    pressure: float = 0.0
    is_small: bool = False

    @property
    def has_target(self) -> bool:
        """True if it is held."""
        return self.target > 0.0

    @property
    def is_floored(self) -> bool:
        """True if the pressure says so: no smaller tier is left to step down to."""
        return pressure.is_floored(self.pressure)


NOT_HELD = Held()


class Standing(NamedTuple):
    """What its priority class means for one request.

    Attributes:
        priority: the class it is decided for as.
        asked: the class it asked for.
        log_price: logarithm of the factor on the price of device time.
        log_caution: logarithm of the factor on predictions at admission, beside admission's own.
        is_owed: too few of its class were admitted lately.
    """

    priority: Priority = Priority.NORMAL
    asked: Priority = Priority.NORMAL
    log_price: float = 0.0
    log_caution: float = 0.0
    is_owed: bool = False


@dataclass(slots=True, kw_only=True)
class Choice:
    """A decision and what it rests on: written once, when it is made, and never changed.

    The fleet and the loads may be others by the time this is looked at; `inputs` has what the
    decision was made on, and `router.explanation` finds its numbers again.

    Attributes:
        sequence: its number in this process, from 1.
        request_id: the request's id.
        task: name of the request's task.
        start_s: when deciding began, monotonic seconds.
        end_s: when it ended, monotonic seconds.
        decide_ns: same, wall clock, ns since 1970.
        slack_s: time left until the deadline then, seconds.
        inputs: what was seen.
        held: what its task's target meant for it.
        standing: what its priority class meant for it.
        action: row of the chosen candidate.
        predicted_s: predicted time to the deadline's event there, seconds.
        rescue_s: least time that a rescue to a smaller tier would take, seconds; infinite if none
            is allowed.
        largest_tier: index of the largest tier that was allowed.
        behavior_probability: probability with which this action was drawn, (0, 1].
        explored: True if exploration made the choice.
        fallback_reason: why the fallback decided instead of the policy; empty if it did not.
        candidates: (tier, endpoint) per row.
        target: where the chosen candidate's requests go.
        policy: name of the policy that decided.
        policy_version: its version.
        stay: what became of the request's conversation.
        slo_kind: what the request's deadline is measured against.
    """

    sequence: int
    request_id: str
    task: str
    start_s: float
    end_s: float
    decide_ns: int
    slack_s: float
    inputs: Inputs
    held: Held
    standing: Standing
    action: int
    predicted_s: float
    rescue_s: float
    largest_tier: int
    behavior_probability: float
    explored: bool
    fallback_reason: str
    candidates: tuple[tuple[str, str], ...]
    target: Target
    policy: str
    policy_version: str
    stay: Stay = Stay.NONE
    slo_kind: SloKind = SloKind.COMPLETE_ANSWER

    @property
    def device(self) -> str:
        """Name of the chosen candidate's device."""
        return self.inputs.fleet.devices[self._device]

    @property
    def profile_s(self) -> float:
        """The prediction as it would have been on a device as fast as its profile, seconds."""
        return self.predicted_s / self.inputs.slowness_D.item(self._device)

    def profiled(self, prompt_tokens: float, output_tokens: int) -> tuple[int, float]:
        """Returns the range that the request is in where its profile is judged, and `profile_s`.

        Args:
            prompt_tokens: of the request.
            output_tokens: of its answer, for which the time is told; 0 = as many as predicted.
        """
        arrays, row, inputs = self.inputs.fleet.arrays, self.action, self.inputs
        fill = profile_error.device_fill(arrays, row, inputs.own_LC[0], inputs.others_LC[0])
        prompt_s = prompt_tokens * arrays.per_prompt_token_s_C.item(row)
        fixed_s = arrays.overhead_s_C.item(row) + prompt_s
        profile_s = profile_error.actual_length_s(
            self.profile_s, fixed_s, inputs.asked.query.event_tokens, output_tokens
        )
        return profile_error.range_of(fill, prompt_tokens), profile_s

    @property
    def _device(self) -> int:
        return self.inputs.fleet.arrays.device_C.item(self.action)


@dataclass(slots=True)
class Attempt:
    """One dispatch of a request, for its span.

    Attributes:
        target: where it went.
        trace: the span handed to Triton.
        start_s: when it was sent, monotonic seconds.
        end_s: when it ended, monotonic seconds.
        result: "ok", "rescued", "cancelled", "deadline", or the reason of the failure.
        kind: "first", "rescue" or "retry".
    """

    target: Target
    trace: SpanIdentity
    start_s: float
    end_s: float = 0.0
    result: str = ""
    kind: str = "first"


@dataclass(slots=True, kw_only=True)
class Job:
    """A checked request and all that is known of it.

    Times are monotonic seconds unless they say otherwise.

    Attributes:
        request_id: its id.
        task: its task.
        request: what policies see of it, slack as of the arrival.
        prompt: the prompt; empty for routed requests.
        max_output_tokens: limit of output tokens.
        temperature: sampling temperature.
        seed: sampling seed.
        arrival_s: when it arrived.
        arrival_ns: same, wall clock, ns since 1970.
        deadline_s: its deadline.
        cutoff_s: when work on it stops at the latest.
        is_stream: True if the answer is streamed.
        is_routed: True if only the decision was asked for: its end is claimed, not seen.
        by_gateway: True if a gateway carries it: tokens are not counted.
        endpoints: names of the only endpoints to use; None = all.
        client: who asked: the authenticated client, else the address of the call's peer.
        asked_priority: the class it asked for; that of `request` is what its client may have.
        metadata: the call's metadata.
        conversation: hash of its conversation's id; empty = none.
        seat: (tier, endpoint) that served its conversation last; None = not known, or gone.
        cached_tokens: prompt tokens that it probably has cached.
        stay: what became of its conversation.
        trace: its server span; NO_SPAN until it is begun.
        held: what its task's target meant for its decision.
        arm: which side of a trial's comparison it is on; None = neither.
        load_class: of the load that was offered when it was decided for; see `router.watch`.
        is_impossible: True if it was refused for a deadline that would be out of reach with nothing
            under way, too.
        choice: its decision; None = none was made.
        target: where it was last sent, or is about to be; None without a decision.
        quality: quality of that tier on the task, or of this very answer if the client told it.
        is_rated: True if its client told it as it closed the ticket.
        attempts: every dispatch.
        dispatch_s: when it was last sent.
        first_token_s: when its first token came.
        latest_token_s: where each token is due: when that token came which is the latest against
            its due time, less what that is after the first one's.
        end_s: when it ended.
        output_tokens: tokens received.
        finish_reason: why the tier stopped.
        outcome: how it ended; None while it runs.
        reason: reason of a refusal or failure.
        is_rescued: True after a rescue.
        retry_count: retries so far.
        step_down: why a smaller tier answered.
        has_sent: True once something may have reached the client.
        is_complete: True once the answer is complete.
    """

    request_id: str
    task: Task
    request: Request
    prompt: str
    max_output_tokens: int
    temperature: float
    seed: int
    arrival_s: float
    arrival_ns: int
    deadline_s: float
    cutoff_s: float
    is_stream: bool
    is_routed: bool = False
    by_gateway: bool = False
    endpoints: frozenset[str] | None = None
    client: str = ""
    asked_priority: Priority = Priority.NORMAL
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    conversation: bytes = b""
    seat: tuple[str, str] | None = None
    cached_tokens: float = 0.0
    stay: Stay = Stay.NONE
    trace: SpanIdentity = NO_SPAN
    held: Held = NOT_HELD
    arm: Arm | None = None
    load_class: int = 0
    is_impossible: bool = False
    choice: Choice | None = None
    target: Target | None = None
    quality: float = 0.0
    is_rated: bool = False
    attempts: list[Attempt] = field(default_factory=list)
    dispatch_s: float = 0.0
    first_token_s: float = 0.0
    latest_token_s: float = 0.0
    end_s: float = 0.0
    output_tokens: int = 0
    finish_reason: str = ""
    outcome: Outcome | None = None
    reason: str = ""
    is_rescued: bool = False
    retry_count: int = 0
    step_down: StepDown = StepDown.NONE
    has_sent: bool = False
    is_complete: bool = False

    def wall_ns(self, moment_s: float) -> int:
        """Returns a monotonic moment as nanoseconds since 1970."""
        return self.arrival_ns + to_ns(moment_s - self.arrival_s)

    def cached_at(self, candidate: tuple[str, str]) -> float:
        """Returns the prompt tokens that a candidate probably has cached."""
        return self.cached_tokens if candidate == self.seat else 0.0

    def new_tokens_at(self, candidate: tuple[str, str]) -> float:
        """Returns the prompt tokens that a candidate probably has to compute."""
        return self.request.prompt_tokens - self.cached_at(candidate)

    @property
    def tier(self) -> str:
        """Tier it was last sent to, that of the answer in the end; empty without a decision."""
        return self.target.tier if self.target is not None else ""

    @property
    def endpoint(self) -> str:
        """Endpoint it was last sent to; empty without a decision."""
        return self.target.endpoint if self.target is not None else ""

    @property
    def deadline_event_s(self) -> float:
        """When what the deadline is measured against came: the end, the first or latest token.

        An answer without a token came with its end.
        """
        kind = self.request.slo_kind
        if kind is SloKind.COMPLETE_ANSWER or not self.first_token_s:
            return self.end_s
        return self.latest_token_s if kind is SloKind.PER_TOKEN else self.first_token_s

    def pace(self, now_s: float) -> None:
        """Takes in, before its tokens are counted, that a further message came of a paced answer.

        What comes in one message has come together, so its first token is the latest.
        """
        latest_s = now_s - self.output_tokens * self.request.token_interval_s
        if latest_s > self.latest_token_s:
            self.latest_token_s = latest_s
