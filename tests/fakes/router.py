"""An in-process router that answers from a script: for tests of what talks to a router."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_status import rpc_status

from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc

Answer = Callable[[pb.GenerationSpec], str]


class FakeRouter(pb_grpc.RouterInferenceServiceServicer):
    """Answers ``answer(spec)`` after ``delay_s``; refuses where ``refuse(spec)`` names a reason.

    Of a stream each character takes ``token_s`` more.
    """

    def __init__(
        self,
        answer: Answer = lambda spec: spec.prompt.upper(),
        delay_s: float = 0.0,
        refuse: Callable[[pb.GenerationSpec], str] = lambda spec: "",
        tier: str = "large",
        token_s: float = 0.0,
    ) -> None:
        self.token_s = token_s
        self.answer, self.delay_s, self.refuse, self.tier = answer, delay_s, refuse, tier
        self.specs: list[pb.GenerationSpec] = []
        self.metadata: list[dict[str, Any]] = []
        self.time_left_s: list[float] = []
        self.reports: list[pb.ReportOutcomeRequest] = []
        self.peers: set[str] = set()
        self.cancelled_count = 0
        self.policy = "greedy"
        self.address = ""
        self.lacks: Callable[[pb.GenerationSpec], str] = lambda spec: ""
        self.deadlines_s = {"sort": 0.5, "reverse": 0.5}
        self.profiles: list[common_pb2.ProfileState] = []
        self.exploration = pb.ExplorationStatus()
        self.experience = pb.ExperienceStatus()
        self.conversations: dict[str, int] = {}
        self.token_outcomes: list[pb.TaskTokenOutcomes] = []
        self.qualities: list[pb.TierQuality] = []
        self.served: list[str] = []

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        """Answers at once."""
        text = await self._serve(request.spec, context)
        return pb.GenerateResponse(text=text, completion=self._completion(request.spec))

    async def GenerateStream(
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Answers one character at a time."""
        text = await self._serve(request.spec, context)
        for letter in text:
            if self.token_s:
                await asyncio.sleep(self.token_s)
            yield pb.GenerateStreamResponse(chunk=pb.Chunk(text=letter, token_count=1))
        yield pb.GenerateStreamResponse(completion=self._completion(request.spec))

    async def Route(self, request: pb.RouteRequest, context: Any) -> pb.RouteResponse:
        """Gives the same ticket to everybody."""
        response = pb.RouteResponse(
            request_id="r", tier=self.tier, endpoint="e", ticket=b"ticket", quality=1.0
        )
        response.predicted_latency.FromNanoseconds(250_000_000)
        return response

    async def ReportOutcome(
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        """Remembers the report."""
        self.reports.append(request)
        return pb.ReportOutcomeResponse()

    async def GetRouterStatus(
        self, request: pb.GetRouterStatusRequest, context: Any
    ) -> pb.GetRouterStatusResponse:
        """Says which policy is in use."""
        reply = pb.GetRouterStatusResponse(
            router_id="fake",
            policy=self.policy,
            known_policies=["greedy", "price"],
            profiles=self.profiles,
            exploration=self.exploration,
            experience=self.experience,
            conversation_counts=self.conversations,
            token_outcomes=self.token_outcomes,
            tier_qualities=self.qualities,
        )
        reply.priorities.add(
            priority=common_pb2.PRIORITY_LOW, on_time_count=7, refused_count=3, price_factor=1.5
        )
        for task, deadline_s in self.deadlines_s.items():
            reply.tasks.add(task=task).default_deadline.FromMilliseconds(round(deadline_s * 1e3))
        for served in self.served:
            reply.candidates.add(candidate={"tier": served, "endpoint": "e0"})
        return reply

    async def ExplainDecision(
        self, request: pb.ExplainDecisionRequest, context: Any
    ) -> pb.ExplainDecisionResponse:
        """Knows one request: medium was chosen, small was not allowed, large was not looked at."""
        if request.request_id != "known":
            await abort(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "no such request")
        reply = pb.ExplainDecisionResponse(
            request_id="known",
            policy_version="dqn@1",
            action=1,
            feature_names=["quality"],
            target=0.99,
            target_pressure=1.5,
            policy_has_price=True,
        )
        reply.priority.priority = common_pb2.PRIORITY_NORMAL
        reply.priority.asked = common_pb2.PRIORITY_HIGH
        reply.priority.price_factor, reply.priority.admission_factor = 1.25, 1.0
        reply.slack.FromMilliseconds(500)
        reply.larger_tier_slack.FromMilliseconds(900)
        entries = {"small": (False, 0.5), "medium": (True, 0.8), "large": (True, 1.0)}
        for tier, (allowed, quality) in entries.items():
            entry = reply.candidates.add(
                candidate={"tier": tier, "endpoint": "e0"},
                allowed=allowed,
                quality=quality,
                features=[quality],
            )
            entry.predicted_latency.FromMilliseconds(round(quality * 700))
        reply.candidates[1].score = 0.25
        return reply

    async def UsePolicy(self, request: pb.UsePolicyRequest, context: Any) -> pb.UsePolicyResponse:
        """Takes known names only, and goes back to the one before."""
        if request.previous:
            return pb.UsePolicyResponse(policy="price", policy_version="0")
        if request.policy not in ("greedy", "price"):
            await abort(
                context, grpc.StatusCode.NOT_FOUND, "UNKNOWN_POLICY", "known: greedy, price"
            )
        self.policy = request.policy
        return pb.UsePolicyResponse(policy=request.policy, policy_version="1")

    async def _serve(self, spec: pb.GenerationSpec, context: Any) -> str:
        self.specs.append(spec)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_left_s.append(context.time_remaining() or math.inf)
        self.peers.add(context.peer())
        if missing := self.lacks(spec):
            await abort(context, grpc.StatusCode.NOT_FOUND, missing, "no such thing")
        reason = self.refuse(spec)
        if reason:
            await abort(
                context, grpc.StatusCode.RESOURCE_EXHAUSTED, reason, "no tier can make it", 0.25
            )
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled_count += 1
            raise
        return self.answer(spec)

    def _completion(self, spec: pb.GenerationSpec) -> pb.Completion:
        made = pb.Completion(
            request_id=spec.request_id or "made",
            tier=self.tier,
            endpoint="e",
            policy=self.policy,
            policy_version="1",
            quality=0.5 if self.tier == "small" else 1.0,
            on_time=True,
        )
        spent_ms = {"total": 10, "early": 390, "queue": 1, "prefill": 2, "decode": 3, "hop": 4}
        for name, taken_ms in spent_ms.items():
            getattr(made.timings, name).FromMilliseconds(taken_ms)
        return made


async def abort(
    context: Any, code: grpc.StatusCode, reason: str, message: str, retry_s: float = 0.0
) -> None:
    """Ends the call with ErrorInfo and, above 0, RetryInfo."""
    info, retry = any_pb2.Any(), any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tiercel"))
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(retry_s * 1e9))
    retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    details = [info, retry] if retry_s else [info]
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    await context.abort_with_status(rpc_status.to_status(status))


async def serve(
    router: FakeRouter, *, options: Sequence[tuple[str, int]] = ()
) -> tuple[grpc.aio.Server, str]:
    """Starts a server for it on a free loopback port; returns server and address."""
    server = grpc.aio.server(options=options)
    pb_grpc.add_RouterInferenceServiceServicer_to_server(router, server)
    servicer = health.aio.HealthServicer()  # SERVING for the server as a whole
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    router.address = f"127.0.0.1:{port}"
    return server, router.address
