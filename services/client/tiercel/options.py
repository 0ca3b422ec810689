"""Keyword arguments that several calls share."""

from __future__ import annotations

from typing import Literal, TypedDict

OutcomeStatus = Literal["on_time", "late", "cancelled", "failed"]
"""How a request ended that the caller carried out by itself."""


class RouteOptions(TypedDict, total=False):
    """What may be said about a request beside its task; all of it is optional.

    Attributes:
        deadline_s: Time the caller gives the answer; without it the task's own deadline holds.
        max_output_tokens: Longest answer; without it the task's own limit holds.
        quality_floor: Lowest quality of a tier that may answer, 0 to 1.
        tier: The only tier that may answer.
        request_id: Id of the request; without it the router makes one.
        conversation_id: Id of the conversation that the prompt continues: it stays on the tier and
            the endpoint that served it last, unless deadline or target forbid it.
        priority: How it stands beside others when not all can have what they ask for; without it
            normal.
    """

    deadline_s: float | None
    max_output_tokens: int | None
    quality_floor: float
    tier: str
    request_id: str
    conversation_id: str
    priority: Literal["", "high", "normal", "low"]


class GenerateOptions(RouteOptions, total=False):
    """What may be said about a request that the mesh answers.

    Attributes:
        temperature: Sampling temperature, 0 takes the likeliest token.
        seed: Seed of the sampling.
        slo_kind: What the deadline is for; without it the task's own kind holds. With ``per_token``
            it is that of the first token of a stream, and each further one has its own. A stream
            with ``deadline_s`` that does not name ``first_token`` or ``per_token`` here is given up
            at its deadline, since the client does not know the task's kind.
        token_interval_s: With ``per_token``, time between the due times of two tokens, above 0 to
            60; without it the task's own holds.
    """

    temperature: float
    seed: int | None
    slo_kind: Literal["", "complete_answer", "first_token", "per_token"]
    token_interval_s: float | None


class Outcome(TypedDict, total=False):
    """What became of a request: its ticket or its request id, and what is known of the end.

    Attributes:
        ticket: The ticket's bytes (``Ticket.ticket``); give it or ``request_id``, not both.
        request_id: Id of an answered request.
        status: How it ended; needed with a ticket.
        latency_s: From the decision to the end; None means until now, which only a router on the
            machine that decided can tell: give it where several machines share a ticket key.
        output_token_count: Tokens delivered.
        quality: Quality of this very answer, 0 to 1; needed with a request id.
    """

    ticket: bytes | None
    request_id: str | None
    status: OutcomeStatus
    latency_s: float | None
    output_token_count: int
    quality: float | None
