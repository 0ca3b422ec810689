"""One HTTP exchange as a gateway tells of it, message by message, and what it is answered."""

from __future__ import annotations

from typing import Any, Protocol

from services.common.clock import Clock
from services.common.errors import DomainError, InvalidArgumentError
from services.router_inference.doors.envoy import convert, replies
from services.router_inference.doors.envoy.places import Places
from services.router_inference.doors.intake import Intake
from services.router_inference.job import Job
from services.router_inference.path.exchanges import GRACE_S, Exchange, Exchanges
from services.router_inference.view.fleet import Target
from services.router_inference.view.view import View
from tiercel.envoy.v3 import external_processor_pb2 as pb2

REASON_ORDER = "MESSAGE_OUT_OF_ORDER"
_ECHOED = pb2.FULL_DUPLEX_STREAMED
"""How bodies come of which only what is sent back goes on."""
_LEAVING_GRACE_S = 1.0
"""How long after its cutoff a router that stops waits for the end of an exchange, seconds."""
_LEAVING_PAUSE_S = 0.5
"""How long it waits for the next piece of a body that it only hands back, seconds."""
_AFTER = {
    "request_body": "request_headers", "request_trailers": "request_headers",
    "response_headers": "request_headers", "response_body": "response_headers",
    "response_trailers": "request_headers",
}  # fmt: skip
"""What must have come before a part of an exchange."""
_NEVER_LAST = frozenset({"response_headers", "response_body"})
_ONCE = frozenset({"request_headers", "request_trailers", "response_headers", "response_trailers"})


class Parts(Protocol):
    """What an exchange is answered with.

    Attributes:
        intake: checks requests.
        exchanges: begins them.
        places: where endpoints are reached.
        view: the fleet and the traffic.
        clock: of the process.
    """

    intake: Intake
    exchanges: Exchanges
    places: Places
    view: View
    clock: Clock

    def any_address(self, names: frozenset[str] | None) -> str:
        """Returns the address of a usable endpoint; raises UnavailableError if there is none."""
        ...


class Talk:
    """What was told of one HTTP exchange so far.

    Attributes:
        exchange: its request; None if none was decided for.
        is_new: True from the request's headers until the caller has taken note.
        longest_s: time from then on after which the stream is given up, seconds; None = none.
        is_over: True once nothing more is answered.
        is_written_to: True while an answer is being sent.
        until_s: when the stream is given up, in the time of the event loop; None = never.
    """

    __slots__ = (
        "_client", "_echoes", "_metadata", "_picker", "_seen", "exchange", "is_new", "is_over",
        "is_written_to", "longest_s", "until_s",
    )  # fmt: skip

    def __init__(self, picker: Parts, client: str, metadata: tuple[Any, ...]) -> None:
        """Takes its parts, who asks, and the metadata of the call."""
        self._picker = picker
        self._client = client
        self._metadata = metadata
        self._seen: set[str] = set()
        self._echoes: set[str] = set()
        self.exchange: Exchange | None = None
        self.is_new = False
        self.is_over = False
        self.is_written_to = False
        self.longest_s: float | None = None
        self.until_s: float | None = None

    @property
    def has_begun(self) -> bool:
        """True once anything was told."""
        return bool(self._seen)

    @property
    def is_carried(self) -> bool:
        """True while a request that was decided for has not ended."""
        exchange = self.exchange
        return exchange is not None and not exchange.is_closed

    def leaving_s(self) -> float:
        """Returns how long a router that stops waits for the next message, seconds."""
        if self.exchange is not None and self.is_carried:
            left_s = self.exchange.job.cutoff_s - self._picker.clock.monotonic_s()
            return max(0.0, left_s) + _LEAVING_GRACE_S
        return _LEAVING_PAUSE_S if self._echoes else 0.0

    def answer(self, message: pb2.ProcessingRequest) -> pb2.ProcessingResponse:
        """Returns the answer to the next message.

        Raises:
            InvalidArgumentError: It cannot come here.
        """
        kind = message.WhichOneof("request")
        self._check_order(kind, message)
        assert kind is not None  # checked
        self._seen.add(kind)
        if kind == "request_headers":
            return self._on_request(message)
        if kind == "response_headers":
            return self._on_response(message)
        part = getattr(message, kind)
        if kind == "response_trailers":
            self._on_end(part)
        elif kind == "response_body" and part.end_of_stream:
            self._complete()
        return replies.passed_on(kind, part, is_echoed=kind in self._echoes)

    def _check_order(self, kind: str | None, message: pb2.ProcessingRequest) -> None:
        problem = ""
        if kind is None:
            problem = "says nothing of an exchange"
        elif message.observability_mode:
            problem = "observability_mode: must be false; nobody would act on an answer"
        elif kind in _ONCE and kind in self._seen:
            problem = f"{kind} came twice"
        elif kind in _AFTER and _AFTER[kind] not in self._seen:
            problem = f"{kind} came before {_AFTER[kind]}"
        elif kind in _NEVER_LAST and "response_trailers" in self._seen:
            problem = f"{kind} came after response_trailers"
        elif kind == "request_body" and "request_trailers" in self._seen:
            problem = "request_body came after request_trailers"
        if problem:
            raise self._disorder(problem)

    def _disorder(self, problem: str) -> InvalidArgumentError:
        error = InvalidArgumentError("request", problem, reason=REASON_ORDER)
        self._picker.intake.on_invalid(error)
        return error

    def _on_request(self, message: pb2.ProcessingRequest) -> pb2.ProcessingResponse:
        modes = message.protocol_config
        if modes.request_body_mode == _ECHOED:
            self._echoes.add("request_body")
        if modes.response_body_mode == _ECHOED:
            self._echoes.add("response_body")
        self.is_new = True
        self._picker.places.look()
        try:
            return self._sent(message)
        except DomainError as error:
            self.is_over = True
            return replies.refusal(error)

    def _sent(self, message: pb2.ProcessingRequest) -> pb2.ProcessingResponse:
        """Returns where a request goes.

        Raises:
            DomainError: Nowhere.
        """
        picker, ask = self._picker, None
        try:
            headers = convert.headers_of(message.request_headers)
            path = convert.path_of(headers)
            if path is not None:
                ask = convert.ask_of(
                    headers,
                    path,
                    metadata=self._metadata,
                    client=convert.client_of(message) or self._client,
                    unknown_prompt_tokens=picker.view.traffic.mean_prompt_tokens,
                )
        except DomainError as error:
            picker.intake.on_invalid(error)
            raise
        subset = convert.subset_of(message)
        names = picker.places.endpoints if subset is None else picker.places.subset(subset)
        if path is None or ask is None:
            return replies.sent_to([picker.any_address(names)])
        ask.endpoints = names
        return self._begun(path, picker.intake.job(ask, prefix=""))

    def _begun(self, path: convert.Path, job: Job) -> pb2.ProcessingResponse:
        """Decides for a request; returns where it goes."""
        picker = self._picker
        exchange = self.exchange = picker.exchanges.begin(job, picker.places.alike)
        left_s = job.cutoff_s - picker.clock.monotonic_s()
        self.longest_s = left_s + GRACE_S
        target = exchange.choice.target
        added = [
            (convert.TIMEOUT, replies.timeout_ms(left_s)),
            (convert.CHOSEN_MODEL, target.model),
            (convert.TIER, target.tier),
        ]
        if path.model:
            added.append((":path", path.with_model(target.model)))
        trace = exchange.attempt.trace
        if trace.sampled:
            added += trace.metadata()
        addresses: dict[str, None] = {}
        told = [
            ("policy", exchange.choice.policy),
            ("policy_version", exchange.choice.policy_version),
        ]
        for each in exchange.targets:
            address = picker.places.address(each)
            if address not in addresses:
                addresses[address] = None
                told += [(f"tier {address}", each.tier), (f"endpoint {address}", each.endpoint)]
        # Beyond the list a gateway would choose by itself, perhaps a server without the model.
        retries = max(len(addresses) - 1, int(picker.places.is_single))
        added.append((convert.RETRIES, str(retries)))
        return replies.sent_to(addresses, added, told)

    def _on_response(self, message: pb2.ProcessingRequest) -> pb2.ProcessingResponse:
        exchange, part = self.exchange, message.response_headers
        status = convert.status_of(convert.headers_of(part))
        if exchange is None:
            return replies.with_headers(())
        self._picker.exchanges.are_beginnings_told = True
        exchange.on_headers(status, self._served(exchange, convert.served_address(message)))
        if part.end_of_stream:
            self._complete()
        return replies.with_headers(
            (
                (convert.TIER, exchange.served.tier),
                (convert.ENDPOINT, exchange.served.endpoint),
                (convert.POLICY, exchange.choice.policy),
                (convert.POLICY_VERSION, exchange.choice.policy_version),
                (convert.REQUEST_ID, exchange.job.request_id),
            )
        )

    def _on_end(self, part: pb2.HttpTrailers) -> None:
        """Takes in that an answer is complete, and what it was if that was not told before."""
        exchange = self.exchange
        if exchange is not None and "response_headers" not in self._seen:
            end = convert.end_of(part)
            if end is None:
                raise self._disorder(
                    f"response_trailers came before response_headers, without {convert.STATUS}"
                )
            self._picker.exchanges.are_beginnings_told = False
            served = self._served(exchange, end.served)
            exchange.on_headers(end.status, served, first_byte_s=end.first_byte_s)
        self._complete()

    def _served(self, exchange: Exchange, address: str) -> Target | None:
        """Returns who answers at an address; None if it is not told, or nobody's."""
        if not address:
            return None
        places = self._picker.places
        places.look()
        for target in exchange.targets:
            if places.address(target) == address:
                return target
        return places.at(address, exchange.choice.target)

    def _complete(self) -> None:
        if self.exchange is not None:
            self.exchange.complete()
