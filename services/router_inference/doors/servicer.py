"""The router's gRPC service: convert, call, convert."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import grpc.aio

from router.explanation import Explainer
from services.common.access.guard import ticket_holder
from services.common.checks import MAX_NAME_CHARACTERS, Checks
from services.common.clock import Clock
from services.common.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
)
from services.common.time_limits import TimeLimits
from services.router_inference.doors import convert
from services.router_inference.doors.intake import Intake
from services.router_inference.doors.validation import MAX_REQUEST_ID_CHARACTERS
from services.router_inference.path.dispatch import Dispatcher
from services.router_inference.path.leases import Leases
from services.router_inference.path.relay import StreamRelay
from services.router_inference.path.sink import TextSink
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.records.accounts import Accounts
from services.router_inference.records.explanations import Explanations
from services.router_inference.status import StatusReader
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

REASON_NOT_READ = "NOT_READ_IN_TIME"
READER_GRACE_S = 1.0
"""What a reader may take beyond the moment at which work on its answer ends at the latest."""
Context = grpc.aio.ServicerContext[Any, Any]


class RouterInferenceServicer(pb2_grpc.RouterInferenceServiceServicer):
    """Serves the data plane."""

    def __init__(
        self,
        *,
        intake: Intake,
        dispatcher: Dispatcher,
        leases: Leases,
        slot: PolicySlot,
        status: StatusReader,
        explanations: Explanations,
        explainer: Explainer,
        accounts: Accounts,
        clock: Clock,
        new_relay: Callable[[], StreamRelay],
        client_of: Callable[[Context], str],
    ) -> None:
        """Takes its parts.

        `new_relay` makes the relay of one streamed answer, `client_of` tells whose a call is.
        """
        self._client_of = client_of
        self._intake = intake
        self._dispatcher = dispatcher
        self._leases = leases
        self._slot = slot
        self._status = status
        self._explanations = explanations
        self._explainer = explainer
        self._accounts = accounts
        self._clock = clock
        self._new_relay = new_relay
        self._limits = TimeLimits()

    async def Generate(
        self, request: pb2.GenerateRequest, context: Context
    ) -> pb2.GenerateResponse:
        """Answers a prompt in one piece."""
        job = self._intake.job(
            convert.ask_of_spec(
                request.spec,
                context.time_remaining(),
                context.invocation_metadata(),
                self._client_of(context),
                is_stream=False,
            )
        )
        sink = TextSink()
        await self._dispatcher.answer(job, sink)
        return convert.generate_response(job, sink.text())

    # A generator could not bound how long its reader takes; gRPC takes either kind.
    async def GenerateStream(  # type: ignore[override]
        self, request: pb2.GenerateStreamRequest, context: Context
    ) -> None:
        """Answers a prompt piece by piece; the completion comes last."""
        job = self._intake.job(
            convert.ask_of_spec(
                request.spec,
                context.time_remaining(),
                context.invocation_metadata(),
                self._client_of(context),
                is_stream=True,
            )
        )
        left_s = job.cutoff_s - self._clock.monotonic_s() + READER_GRACE_S
        reply = convert.StreamReply()
        try:
            with self._limits.within(left_s):
                async with aclosing(self._new_relay().answer(self._dispatcher, job)) as portions:
                    async for text, token_count in portions:
                        await context.write(reply.portion(text, token_count))
                await context.write(reply.end(job))
        except TimeoutError:
            # A writer waits for its reader for ever.
            raise DeadlineExceededError(
                "the answer was not read in time", reason=REASON_NOT_READ
            ) from None

    async def Route(self, request: pb2.RouteRequest, context: Context) -> pb2.RouteResponse:
        """Decides only."""
        client = self._client_of(context)
        ask = convert.ask_of_route(request, context.invocation_metadata(), client)
        return convert.route_response(self._leases.route(self._intake.job(ask, prefix="")))

    async def ReportOutcome(
        self,
        request: pb2.ReportOutcomeRequest,
        context: Context,
    ) -> pb2.ReportOutcomeResponse:
        """Closes a ticket, or takes late feedback."""
        try:
            if request.WhichOneof("subject") == "request_id":
                quality = convert.feedback_quality(request)
                client = self._client_of(context)
                self._leases.feedback(client, request.request_id, quality)
            else:
                self._leases.close(request.ticket, convert.report(request), ticket_holder())
        except InvalidArgumentError as error:
            self._accounts.on_invalid(error.reason)
            raise
        return pb2.ReportOutcomeResponse()

    async def GetRouterStatus(
        self,
        request: pb2.GetRouterStatusRequest,
        context: Context,
    ) -> pb2.GetRouterStatusResponse:
        """Says what this process sees and uses."""
        return convert.status_response(self._status.read())

    async def ExplainDecision(
        self,
        request: pb2.ExplainDecisionRequest,
        context: Context,
    ) -> pb2.ExplainDecisionResponse:
        """Says why a request went where it went."""
        checks = Checks()
        checks.text("request_id", request.request_id, MAX_REQUEST_ID_CHARACTERS, least=1)
        checks.raise_if_any()
        return self._explained(request.request_id)

    async def UsePolicy(
        self,
        request: pb2.UsePolicyRequest,
        context: Context,
    ) -> pb2.UsePolicyResponse:
        """Uses a policy from the next decision on."""
        checks = Checks()
        least = 0 if request.previous else 1
        most = 0 if request.previous else MAX_NAME_CHARACTERS
        checks.text("policy", request.policy, most, least=least)
        checks.raise_if_any()
        if request.previous:
            self._slot.use_previous()
        else:
            self._slot.use(request.policy)
        return pb2.UsePolicyResponse(policy=self._slot.name, policy_version=self._slot.version)

    def _explained(self, request_id: str) -> pb2.ExplainDecisionResponse:
        choice = self._explanations.find(request_id)
        if choice is None:
            raise NotFoundError("request", request_id)
        explainer, inputs = self._explainer, choice.inputs
        tier = int(inputs.fleet.arrays.tier_C[choice.action])
        larger = explainer.for_larger_tier(inputs, tier)
        return convert.explanation_response(choice, explainer.explain(inputs), larger)
