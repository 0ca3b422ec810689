"""Tickets of `Route`: signed, self-contained, leased.

A ticket carries all that closing it needs, so that any worker with the same key can close it.
Layout: version byte,
fixed numbers, length-prefixed names, then HMAC-SHA256 (first 16 bytes) over everything before it.
"""

from __future__ import annotations

import functools
import hmac
import struct
from typing import NamedTuple

_VERSION = 3
_SIGNATURE_BYTES = 16
# version, epoch, sequence, decide s, lease s, slack s, soft decay s (0 = hard), quality, output
# tokens, count of names
_NUMBERS = struct.Struct("<BqqdddddiB")
_NAME_COUNT = 7
_MAX_TICKET_BYTES = 4096


class InvalidTicketError(ValueError):
    """The bytes are no ticket that this mesh signed."""


class Ticket(NamedTuple):
    """What a routed request's end needs to know of its decision.

    Attributes:
        router_id: process that decided.
        epoch: its epoch, ns since 1970.
        sequence: number of the decision within the epoch.
        clock_id: the monotonic clock that `decide_s` is of.
        decide_s: when it decided, by that clock, seconds.
        lease_s: how long the lease lasts from then, seconds.
        slack_s: time from the decision to the deadline, seconds.
        soft_decay_s: e-folding time of a soft reward, seconds; 0 for a hard deadline.
        quality: quality of the chosen tier on the task, 0 to 1.
        max_output_tokens: most tokens the answer may have.
        task: task name.
        tier: tier name.
        endpoint: endpoint name.
        request_id: the request's id.
        client: who asked for it.
    """

    router_id: str
    epoch: int
    sequence: int
    clock_id: str
    decide_s: float
    lease_s: float
    slack_s: float
    soft_decay_s: float
    quality: float
    max_output_tokens: int
    task: str
    tier: str
    endpoint: str
    request_id: str
    client: str


class TicketSigner:
    """Makes and reads tickets under one key."""

    def __init__(self, key: bytes) -> None:
        """Takes the key, at least 16 bytes; raises ValueError if it is shorter."""
        if len(key) < 16:
            raise ValueError(f"ticket key: must have at least 16 bytes (got {len(key)})")
        # The hash of the key alone, to go on from: that takes half the time.
        self._begun = hmac.new(key, digestmod="sha256")

    def sign(self, ticket: Ticket) -> bytes:
        """Returns the ticket's bytes."""
        (
            router_id, epoch, sequence, clock_id, decide_s, lease_s, slack_s, decay_s, quality,
            tokens, task, tier, endpoint, request_id, client,
        ) = ticket  # fmt: skip
        numbers = _NUMBERS.pack(
            _VERSION, epoch, sequence, decide_s, lease_s, slack_s, decay_s, quality, tokens,
            _NAME_COUNT,
        )  # fmt: skip
        names = _names(router_id, clock_id, task, tier, endpoint)
        body = numbers + names + _name(request_id) + _name(client)
        return body + self._signature(body)

    def read(self, data: bytes) -> Ticket:
        """Returns the ticket; raises InvalidTicketError if it was not signed under this key."""
        if not _NUMBERS.size + _SIGNATURE_BYTES < len(data) <= _MAX_TICKET_BYTES:
            raise InvalidTicketError("the ticket has a wrong length")
        body, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
        # Nothing inside is looked at before the signature holds.
        if not hmac.compare_digest(self._signature(body), signature):
            raise InvalidTicketError("the ticket was not signed by this mesh")
        (
            version, epoch, sequence, decide_s, lease_s, slack_s, decay_s, quality, tokens, count
        ) = _NUMBERS.unpack_from(body)  # fmt: skip
        if version != _VERSION:
            raise InvalidTicketError(f"the ticket has version {version}, expected {_VERSION}")
        names, offset = [], _NUMBERS.size
        for _ in range(count):
            end = offset + 2 + int.from_bytes(body[offset : offset + 2], "little")
            names.append(body[offset + 2 : end].decode())
            offset = end
        router_id, clock_id, task, tier, endpoint, request_id, client = names
        return Ticket(
            router_id=router_id,
            epoch=epoch,
            sequence=sequence,
            clock_id=clock_id,
            decide_s=decide_s,
            lease_s=lease_s,
            slack_s=slack_s,
            soft_decay_s=decay_s,
            quality=quality,
            max_output_tokens=tokens,
            task=task,
            tier=tier,
            endpoint=endpoint,
            request_id=request_id,
            client=client,
        )

    def _signature(self, body: bytes) -> bytes:
        signed = self._begun.copy()
        signed.update(body)
        return signed.digest()[:_SIGNATURE_BYTES]


@functools.lru_cache(4_096)
def _names(*names: str) -> bytes:
    """Returns names as a ticket has them; apart from the request's own they are always the same."""
    return b"".join(map(_name, names))


def _name(name: str) -> bytes:
    encoded = name.encode()
    return len(encoded).to_bytes(2, "little") + encoded
