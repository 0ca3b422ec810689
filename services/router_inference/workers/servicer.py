"""The router's service where several workers answer it."""

from __future__ import annotations

import struct
from typing import Any

from services.common.access.guard import ticket_holder
from services.common.errors import DomainError, FailedPreconditionError, NotFoundError
from services.router_inference.doors import convert
from services.router_inference.doors.servicer import Context, RouterInferenceServicer
from services.router_inference.path.leases import REASON_CLOSED
from services.router_inference.workers.exchange import ALL
from services.router_inference.workers.place import Place
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

USE_POLICY = "UsePolicy"
_PASSED_ON = (USE_POLICY, "ExplainDecision", "ReportOutcome")
_CLOSED = b"closed already"
_ACTIVATION = struct.Struct("<q")


class WorkerServicer(RouterInferenceServicer):
    """Passes on what concerns another worker, or all."""

    def __init__(self, *, place: Place, **parts: Any) -> None:
        """Takes its place, and the parts of a router's service."""
        super().__init__(**parts)
        self._place = place
        self._exchange = place.exchange
        place.exchange.answer_with(self._answer, _PASSED_ON)

    async def ReportOutcome(
        self, request: pb2.ReportOutcomeRequest, context: Context
    ) -> pb2.ReportOutcomeResponse:
        """Closes a ticket at the worker that gave it out, or takes late feedback where it can."""
        message, method = _known_part(request), "ReportOutcome"
        if request.WhichOneof("subject") == "request_id":
            try:
                return await super().ReportOutcome(request, context)
            except NotFoundError:
                client = self._client_of(context)
                if await self._exchange.ask(ALL, method, client, message) is None:
                    raise
            return pb2.ReportOutcomeResponse()
        owner = self._place.number_of(*self._leases.owner(request.ticket))
        if owner:
            answer = await self._exchange.ask(owner, method, ticket_holder(), message)
            if answer == _CLOSED:
                raise FailedPreconditionError("the ticket is closed already", reason=REASON_CLOSED)
            if answer is not None:
                return pb2.ReportOutcomeResponse()
        # It is this worker's, a report that claims too much, or of a worker that is gone.
        return await super().ReportOutcome(request, context)

    async def ExplainDecision(
        self, request: pb2.ExplainDecisionRequest, context: Context
    ) -> pb2.ExplainDecisionResponse:
        """Explains a decision of whichever worker took it."""
        try:
            return await super().ExplainDecision(request, context)
        except NotFoundError:
            message = _known_part(request)
            answer = await self._exchange.ask(ALL, "ExplainDecision", "", message)
            if answer is None:
                raise
            return pb2.ExplainDecisionResponse.FromString(answer)

    async def UsePolicy(
        self, request: pb2.UsePolicyRequest, context: Context
    ) -> pb2.UsePolicyResponse:
        """Uses a policy in every worker, and in those that follow them."""
        response = await super().UsePolicy(request, context)
        # By name: what was used before may be something else in the others.
        told = pb2.UsePolicyRequest(policy=response.policy)
        message = _ACTIVATION.pack(self._slot.activation) + _known_part(told)
        await self._exchange.ask(ALL, USE_POLICY, "", message)
        return response

    async def _answer(self, method: str, client: str, message: bytes) -> bytes | None:
        """Answers a sibling; None where this worker has nothing to say."""
        try:
            if method == USE_POLICY:
                return self._use(message)
            if method == "ExplainDecision":
                asked = pb2.ExplainDecisionRequest.FromString(message)
                found = self._explained(asked.request_id)
                return found.SerializeToString()
            return self._reported(client, pb2.ReportOutcomeRequest.FromString(message))
        except DomainError:
            return None

    def _use(self, message: bytes) -> bytes:
        (activation,) = _ACTIVATION.unpack_from(message)
        self._slot.use(pb2.UsePolicyRequest.FromString(message[_ACTIVATION.size :]).policy)
        # What was promoted before the sibling was told this must not undo it here.
        self._slot.activation = max(self._slot.activation, activation)
        return b""

    def _reported(self, client: str, request: pb2.ReportOutcomeRequest) -> bytes:
        if request.WhichOneof("subject") == "request_id":
            self._leases.feedback(client, request.request_id, convert.feedback_quality(request))
            return b""
        try:
            self._leases.close(request.ticket, convert.report(request), client)
        except FailedPreconditionError as error:
            if error.reason != REASON_CLOSED:
                raise
            return _CLOSED
        return b""


def _known_part(request: Any) -> bytes:
    """Returns a request's bytes without fields of another version, which may be megabytes."""
    request.DiscardUnknownFields()
    return bytes(request.SerializeToString())
