"""What the calls return."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer and what the router says about it.

    Attributes:
        text: The answer without the prompt; empty in the last event of a stream.
        request_id: The request's id.
        tier: Tier that answered.
        endpoint: Endpoint that answered.
        policy: Name of the policy that decided.
        policy_version: Its version.
        on_time: Whether it made its deadline, by the router's clock.
        quality: Quality of the tier on the task, 0 to 1.
        output_token_count: Tokens in the answer.
        dispatch_s: From arrival at the router to the last dispatch to Triton.
        first_token_s: To the first token; None if there was none.
        total_s: To the complete answer.
        early_s: By how much the deadline was made; negative if it was missed. None, like the next
            four, if the router does not tell.
        queue_s: Of ``total_s``, what was waited for: at the router, with candidates that were given
            up, and for others at the tier.
        prefill_s: Of it, the prompt and the first token.
        decode_s: Of it, the further tokens.
        hop_s: Of it, what lies between router and device.
        conversation_stay: What became of the request's conversation: ``kept`` on its tier and
            endpoint, ``new``, or why it moved (``closed``, ``deadline``, ``target``, ``worth``);
            empty if the request named none.
        cached_prompt_token_count: Prompt tokens that the router took for cached there.
        step_down: Why a smaller tier answered (``policy``, ``rescue``, ...); empty if none did.
        finish_reason: ``stop`` or ``length``; empty if unknown.
        rescued: Whether it was rescued.
        retry_count: Retries on other endpoints.
        trace_id: Trace the call belongs to, 32 hex digits; empty without one.
    """

    text: str
    request_id: str
    tier: str
    endpoint: str
    policy: str
    policy_version: str
    on_time: bool
    quality: float
    output_token_count: int
    dispatch_s: float
    first_token_s: float | None
    total_s: float
    step_down: str
    finish_reason: str
    rescued: bool
    retry_count: int
    trace_id: str = ""
    early_s: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    hop_s: float | None = None
    conversation_stay: str = ""
    cached_prompt_token_count: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer: text to append and the number of tokens in it."""

    text: str
    token_count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A decision of ``Route`` for clients with their own data path.

    Attributes:
        ticket: Opaque bytes for ``report_outcome``.
        request_id: The request's id.
        tier: Tier chosen.
        endpoint: Endpoint chosen.
        address: The endpoint's gRPC address.
        model_name: Triton model to call there.
        lease_expire_unix_s: When the lease ends, seconds since 1970.
        predicted_latency_s: Predicted time to the answer; None if the policy predicts none.
        quality: Quality of the tier on the task, 0 to 1.
        policy: Name of the policy that decided.
        policy_version: Its version.
    """

    ticket: bytes
    request_id: str
    tier: str
    endpoint: str
    address: str
    model_name: str
    lease_expire_unix_s: float
    predicted_latency_s: float | None
    quality: float
    policy: str
    policy_version: str
