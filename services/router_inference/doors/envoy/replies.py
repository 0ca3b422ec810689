"""What a gateway is answered, as messages of Envoy's external processor."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from services.common.errors import (
    DeadlineExceededError,
    DomainError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.router_inference.doors.envoy.convert import (
    CHOSEN_MODEL,
    CONVERSATION,
    DEADLINE,
    DESTINATION,
    FLOOR,
    MS_PER_S,
    NAMESPACE,
    OUTPUT_TOKENS,
    PRIORITY,
    REASON,
    REQUEST_ID,
    RETRIES,
    SLO_KIND,
    TASK,
    TIER,
)
from tiercel.envoy.v3 import external_processor_pb2 as pb2

TOLD_NAMESPACE = "tiercel"
"""Of what a gateway may tell its client of an answer."""
_FIELDS = {
    "prompt_bytes": "content-length", "task": TASK, "tier": TIER, "deadline": DEADLINE,
    "quality_floor": FLOOR, "max_output_tokens": OUTPUT_TOKENS, "slo_kind": SLO_KIND,
    "request_id": REQUEST_ID, "conversation_id": CONVERSATION, "priority": PRIORITY,
}  # fmt: skip
_STATUS: Mapping[type[DomainError], HTTPStatus] = {
    InvalidArgumentError: HTTPStatus.BAD_REQUEST,
    PermissionDeniedError: HTTPStatus.FORBIDDEN,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ResourceExhaustedError: HTTPStatus.TOO_MANY_REQUESTS,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceededError: HTTPStatus.REQUEST_TIMEOUT,
}
REASON_TOO_LARGE = "MESSAGE_TOO_LARGE"
"""Reason of a message beyond the server's own limit."""
_PIECE_BYTES = 60_000
"""Most bytes of a body in one answer: a gateway shall hold little at a time."""
Answer: TypeAlias = pb2.ProcessingResponse | bytes
"""A message, or its bytes where they are put together of what was answered before."""
_OVERWRITE = pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_MOST_KEPT, _MOST_KEPT_HEADERS = 1_024, 4_096


class Stop(NamedTuple):
    """One of those that a request may be sent to.

    Attributes:
        address: `ip:port` of its endpoint.
        tier: name of the tier.
        endpoint: name of the endpoint.
    """

    address: str
    tier: str
    endpoint: str


class Chosen(NamedTuple):
    """Where a request goes, and who says so.

    Attributes:
        stops: who serves it, then those that may take it instead.
        model: what the first one calls its model.
        policy: name of the policy that chose.
        policy_version: its version.
        is_single: True if gateways reach one address only.
        kind: field of the part of the request that this answers.
    """

    stops: tuple[Stop, ...]
    model: str
    policy: str
    policy_version: str
    is_single: bool
    kind: str


def sent_to(
    addresses: Iterable[str],
    headers: Iterable[tuple[str, str]] = (),
    told: Sequence[tuple[str, str]] = (),
    kind: str = "request_headers",
) -> pb2.ProcessingResponse:
    """Returns where a request goes.

    Args:
        addresses: `ip:port` of its endpoint, then of those that may take it instead.
        headers: headers it gets.
        told: metadata for the gateway's answer to its client.
        kind: field of the part of the request that this answers.
    """
    response = pb2.ProcessingResponse()
    answer = getattr(response, kind).response
    value = ",".join(addresses)
    mutation = answer.header_mutation
    _set(mutation, DESTINATION, value)
    for name, text in headers:
        _set(mutation, name, text)
    answer.clear_route_cache = True
    entry = response.dynamic_metadata.fields[NAMESPACE].struct_value
    entry.fields[DESTINATION].string_value = value
    if told:
        fields = response.dynamic_metadata.fields[TOLD_NAMESPACE].struct_value.fields
        for name, text in told:
            fields[name].string_value = text
    return response


def sent_on(
    chosen: Chosen, headers: Iterable[tuple[str, str]], traced: Iterable[tuple[str, str]] = ()
) -> bytes:
    """Returns where a request goes that was decided for.

    Two messages whose bytes follow each other are one message with the fields of both, so what
    answers have in common is not put together again.

    Args:
        chosen: what was decided.
        headers: headers that it gets beside those of the decision.
        traced: likewise, those that no other request gets.
    """
    kind = chosen.kind
    parts = [_sent_on(chosen)]
    parts += [_kept_setting(kind, name, text) for name, text in headers]
    parts += [_setting(kind, name, text) for name, text in traced]
    return b"".join(parts)


def _setting(kind: str, name: str, text: str) -> bytes:
    """Returns the answer to a part of a request that only sets a header."""
    response = pb2.ProcessingResponse()
    _set(getattr(response, kind).response.header_mutation, name, text)
    return bytes(response.SerializeToString())


_kept_setting = functools.lru_cache(_MOST_KEPT_HEADERS)(_setting)


@functools.lru_cache(_MOST_KEPT)
def _sent_on(chosen: Chosen) -> bytes:
    """Returns what all such answers have in common."""
    first = chosen.stops[0]
    told = [("policy", chosen.policy), ("policy_version", chosen.policy_version)]
    addresses: dict[str, None] = {}
    for address, tier, endpoint in chosen.stops:
        if address not in addresses:
            addresses[address] = None
            told += [(f"tier {address}", tier), (f"endpoint {address}", endpoint)]
    # Beyond the list a gateway would choose by itself, perhaps a server without the model.
    retries = max(len(addresses) - 1, int(chosen.is_single))
    added = [(CHOSEN_MODEL, chosen.model), (TIER, first.tier), (RETRIES, str(retries))]
    return bytes(sent_to(addresses, added, told, chosen.kind).SerializeToString())


def timeout_ms(left_s: float) -> str:
    """Returns the time a gateway is to give a request; it has no zero, which would be for ever."""
    return str(max(1, math.ceil(left_s * MS_PER_S)))


def with_headers(headers: Iterable[tuple[str, str]]) -> pb2.ProcessingResponse:
    """Returns the answer to an answer's headers: these are added."""
    response = pb2.ProcessingResponse()
    mutation = response.response_headers.response.header_mutation
    for name, text in headers:
        _set(mutation, name, text)
    return response


@functools.cache
def unchanged(kind: str) -> bytes:
    """Returns the answer to a part of an exchange that changes nothing; `kind` is its field."""
    response = pb2.ProcessingResponse()
    getattr(response, kind).SetInParent()
    return bytes(response.SerializeToString())


def passed_on(kind: str, message: Any, *, is_echoed: bool) -> Answer:
    """Returns the answer to a part of an exchange that changes nothing.

    Args:
        kind: field of the part.
        message: the part.
        is_echoed: True if only what is sent back goes on.
    """
    if not is_echoed:
        return unchanged(kind)
    response = pb2.ProcessingResponse()
    piece = getattr(response, kind).response.body_mutation.streamed_response
    piece.body = message.body
    piece.end_of_stream = message.end_of_stream
    return response


def with_body(whole: bytes, body: bytes) -> pb2.ProcessingResponse:
    """Returns the answer to a whole body, given as bytes, with another body in its place."""
    response = pb2.ProcessingResponse.FromString(whole)
    answer = response.request_body.response
    answer.body_mutation.body = body
    _set(answer.header_mutation, "content-length", str(len(body)))
    return response


def sent_back(body: bytes, *, is_last: bool) -> Iterator[pb2.ProcessingResponse]:
    """Yields the answers to the pieces of a body that goes on only if it is sent back.

    Args:
        body: all of it.
        is_last: True if nothing of the request comes after it.
    """
    for start in range(0, max(1, len(body)), _PIECE_BYTES):
        response = pb2.ProcessingResponse()
        piece = response.request_body.response.body_mutation.streamed_response
        piece.body = body[start : start + _PIECE_BYTES]
        piece.end_of_stream = is_last and start + _PIECE_BYTES >= len(body)
        yield response


def refusal(
    error: DomainError, names: Mapping[str, str] = MappingProxyType({})
) -> pb2.ProcessingResponse:
    """Returns the answer to a client whose request goes nowhere.

    Args:
        error: why.
        names: what gave each field of the request, where that was no header.
    """
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), None)
    text = error.message
    if isinstance(error, InvalidArgumentError):
        known = {**_FIELDS, **names}
        named = [(known.get(name, name), what) for name, what in error.violations]
        text = "; ".join(f"{name}: {what}" for name, what in named)
        too_large = error.field == "prompt_bytes" or error.reason == REASON_TOO_LARGE
        if too_large and len(named) == 1:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    response = pb2.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = status or HTTPStatus.INTERNAL_SERVER_ERROR
    # Triton's form of an error.
    answer.body = json.dumps({"error": text}).encode()
    answer.details = error.reason.lower()
    _set(answer.headers, "content-type", "application/json")
    _set(answer.headers, REASON, error.reason)
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        _set(answer.headers, "retry-after", str(max(1, math.ceil(retry_after_s))))
    return response


def _set(mutation: pb2.HeaderMutation, name: str, text: str) -> None:
    option = mutation.set_headers.add(append_action=_OVERWRITE)
    option.header.key = name
    option.header.raw_value = text.encode()
