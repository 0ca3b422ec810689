"""One HTTP exchange as a gateway tells of it, message by message, and what it is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from services.common.clock import Clock
from services.common.errors import DeadlineExceededError, DomainError, InvalidArgumentError
from services.common.openai.body import BODY
from services.common.running_calls import going_away
from services.router_inference.doors.envoy import convert, replies
from services.router_inference.doors.envoy.body import Body, add_body, read_body, with_model
from services.router_inference.doors.envoy.places import Places
from services.router_inference.doors.envoy.replies import Answer
from services.router_inference.doors.intake import Intake
from services.router_inference.job import Ask, Job
from services.router_inference.path.exchanges import GRACE_S, Exchange, Exchanges
from services.router_inference.view.fleet import Target
from services.router_inference.view.view import View
from tiercel.envoy.v3 import external_processor_pb2 as pb2

REASON_ORDER = "MESSAGE_OUT_OF_ORDER"
REASON_BODY_LATE = "BODY_NOT_IN_TIME"
_ECHOED = pb2.FULL_DUPLEX_STREAMED
"""How bodies come of which only what is sent back goes on."""
_READABLE = frozenset({pb2.BUFFERED, _ECHOED})
"""How bodies come that can be read as a whole before anything of them goes on."""
_BODY_S = 10.0
"""How long a body may take that is read here, seconds."""
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
        reads_bodies: True reads the model in JSON bodies that gateways send.
    """

    reads_bodies: bool
    intake: Intake
    exchanges: Exchanges
    places: Places
    view: View
    clock: Clock

    def any_address(self, names: frozenset[str] | None) -> str:
        """Returns the address of a usable endpoint; raises UnavailableError if there is none."""
        ...


class _Upload:
    """The body of a request that is decided for once it is there.

    Attributes:
        ask: what the headers ask for.
        headers: they.
        path: the request's path.
        mode: how the body comes.
        subset: the only addresses the request may go to; None for any.
        data: what has come of the body.
        body: all of it, read; None until then, and once the request is on its way.
        is_whole: True once nothing more of it may come.
    """

    __slots__ = ("ask", "body", "data", "headers", "is_whole", "mode", "path", "subset")

    def __init__(
        self,
        ask: Ask,
        headers: dict[str, str],
        path: convert.Path,
        mode: int,
        subset: list[str] | None,
    ) -> None:
        self.subset = subset
        self.ask = ask
        self.headers = headers
        self.path = path
        self.mode = mode
        self.data = bytearray()
        self.body: Body | None = None
        self.is_whole = False


class Talk:
    """What was told of one HTTP exchange so far.

    Attributes:
        exchange: its request; None if none was decided for.
        is_new: True after a message that changes `longest_s`, until the caller has taken note.
        longest_s: time from then on after which the stream is given up, seconds; None = none.
        is_over: True once nothing more is answered.
        is_written_to: True while an answer is being sent.
        until_s: when the stream is given up, in the time of the event loop; None = never.
    """

    __slots__ = (
        "_begun_s", "_client", "_echoes", "_metadata", "_picker", "_seen", "_upload", "exchange",
        "is_new", "is_over", "is_written_to", "longest_s", "until_s",
    )  # fmt: skip

    def __init__(self, picker: Parts, client: Callable[[], str], metadata: tuple[Any, ...]) -> None:
        """Takes its parts, who asks if the gateway does not say, and the metadata of the call."""
        self._picker = picker
        self._client = client
        self._metadata = metadata
        self._seen: set[str] = set()
        self._echoes: set[str] = set()
        self._upload: _Upload | None = None
        self._begun_s = 0.0
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

    @property
    def awaits_body(self) -> bool:
        """True while a request is decided for only once more of its body has come."""
        return self._upload is not None and not self._upload.is_whole

    def leaving_s(self) -> float:
        """Returns how long a router that stops waits for the next message, seconds."""
        if self.exchange is not None and self.is_carried:
            left_s = self.exchange.job.cutoff_s - self._picker.clock.monotonic_s()
            return max(0.0, left_s) + _LEAVING_GRACE_S
        return _LEAVING_PAUSE_S if self._echoes or self.awaits_body else 0.0

    def refuse(self, error: DomainError) -> pb2.ProcessingResponse:
        """Returns the answer to a request whose body is wrong, or does not come."""
        self.is_over = True
        upload = self._upload
        names = {}
        if upload is not None:
            upload.is_whole = True
            upload.data.clear()
            names = {"prompt_bytes": BODY, "request": BODY}
            if upload.body is not None:
                names |= upload.body.names(upload.headers)
        return replies.refusal(error, names)

    def give_up_body(self, *, is_leaving: bool) -> pb2.ProcessingResponse:
        """Returns the answer to a request whose body did not come in time."""
        if is_leaving:
            return self.refuse(going_away())
        error = DeadlineExceededError(
            f"{BODY}: has not come whole within {_BODY_S:g} s", reason=REASON_BODY_LATE
        )
        self._picker.intake.on_invalid(error)
        return self.refuse(error)

    def answer(self, message: pb2.ProcessingRequest) -> Sequence[Answer]:
        """Returns the answers to the next message, in order.

        Raises:
            InvalidArgumentError: It cannot come here.
        """
        kind = message.WhichOneof("request")
        self._check_order(kind, message)
        assert kind is not None  # checked
        self._seen.add(kind)
        if kind == "request_headers":
            return self._on_request(message)
        if self.awaits_body:
            if kind in ("request_body", "request_trailers"):
                return self._on_upload(kind, message)
            # The gateway has answered by itself; nothing goes to a server any more.
            assert self._upload is not None  # awaited
            self._upload.is_whole = True
        if kind == "response_headers":
            return (self._on_response(message),)
        part = getattr(message, kind)
        if kind == "response_trailers":
            self._on_end(part)
            # Nothing is left to be told, unless the request's body still comes through here.
            self.is_over = "request_body" not in self._echoes
        elif kind == "response_body" and part.end_of_stream:
            self._complete()
        return (replies.passed_on(kind, part, is_echoed=kind in self._echoes),)

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
        elif kind == "request_body" and self._upload is not None and self._upload.is_whole:
            problem = "request_body came after the body's end"
        if problem:
            raise self._disorder(problem)

    def _disorder(self, problem: str) -> InvalidArgumentError:
        error = InvalidArgumentError("request", problem, reason=REASON_ORDER)
        self._picker.intake.on_invalid(error)
        return error

    def _on_request(self, message: pb2.ProcessingRequest) -> Sequence[Answer]:
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
            return (self.refuse(error),)

    def _sent(self, message: pb2.ProcessingRequest) -> Sequence[Answer]:
        """Returns where a request goes, or nothing yet if its body is needed.

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
                    client=convert.client_of(message) or self._client(),
                    unknown_prompt_tokens=picker.view.traffic.mean_prompt_tokens,
                )
            reads = picker.reads_bodies and path is not None and not path.model
            if reads and message.request_headers.end_of_stream:
                raise InvalidArgumentError(BODY, "is missing", "a JSON object")
        except DomainError as error:
            picker.intake.on_invalid(error)
            raise
        subset = convert.subset_of(message)
        mode = message.protocol_config.request_body_mode
        if reads and ask is not None and path is not None and mode in _READABLE:
            return self._await(_Upload(ask, headers, path, mode, subset))
        names = self._endpoints(subset)
        if path is None or ask is None:
            return (replies.sent_to([picker.any_address(names)]),)
        ask.endpoints = names
        return (self._begun(path, picker.intake.job(ask, prefix="")),)

    def _endpoints(self, subset: list[str] | None) -> frozenset[str] | None:
        """Returns the names of the endpoints that a request may go to; None for all."""
        places = self._picker.places
        return places.endpoints if subset is None else places.subset(subset)

    def _await(self, upload: _Upload) -> Sequence[Answer]:
        """Waits for a body; raises InvalidArgumentError if it is known to be too large."""
        self._upload = upload
        self._begun_s = self._picker.clock.monotonic_s()
        self.longest_s = _BODY_S
        self._check_size(upload.ask.prompt_bytes or 0)
        if upload.mode == _ECHOED:
            return ()  # the answer to the headers is due with that to the body
        return (replies.unchanged("request_headers"),)

    def _check_size(self, size: int) -> None:
        most = self._picker.intake.max_prompt_bytes
        if size > most:
            error = InvalidArgumentError("prompt_bytes", f"has {size} bytes or more", f"{most}")
            self._picker.intake.on_invalid(error)
            raise error

    def _on_upload(self, kind: str, message: pb2.ProcessingRequest) -> Sequence[Answer]:
        """Takes a piece of a body, or its end; decides once it is whole."""
        upload = self._upload
        assert upload is not None  # awaited
        try:
            if kind == "request_body":
                self._check_size(len(upload.data) + len(message.request_body.body))
                upload.data += message.request_body.body
                # One that a gateway has buffered is whole, though trailers may follow.
                if upload.mode == _ECHOED and not message.request_body.end_of_stream:
                    return ()
            return self._decided(upload, kind)
        except DomainError as error:
            return (self.refuse(error),)

    def _decided(self, upload: _Upload, kind: str) -> Sequence[Answer]:
        """Decides for a request whose body is there.

        Raises:
            DomainError: It goes nowhere.
        """
        picker, data = self._picker, bytes(upload.data)
        upload.is_whole, self.is_new = True, True
        upload.data.clear()
        picker.places.look()
        upload.ask.endpoints = self._endpoints(upload.subset)
        try:
            body = upload.body = read_body(data)
            add_body(
                upload.ask,
                upload.headers,
                body,
                tiers=picker.view.fleet.catalog.tiers,
                served=picker.places.models,
            )
            # Before anything is decided: what cannot be written again goes nowhere.
            is_kept = picker.places.is_only_model(body.model)
            rest = b"" if is_kept else body.rest()
        except DomainError as error:
            picker.intake.on_invalid(error)
            raise
        job = picker.intake.job(upload.ask, prefix="")
        is_echoed = upload.mode == _ECHOED
        part = "request_headers" if is_echoed else kind
        response = self._begun(upload.path, job, part)
        assert self.exchange is not None  # begun
        upload.body = None
        model = self.exchange.choice.target.model
        if model != body.model:
            data = with_model(model, rest)
        if not is_echoed:
            return (response if model == body.model else replies.with_body(response, data),)
        answers: list[Answer] = [response, *replies.sent_back(data, is_last=kind == "request_body")]
        if kind == "request_trailers":
            answers.append(replies.unchanged(kind))
        return answers

    def _begun(self, path: convert.Path, job: Job, kind: str = "request_headers") -> bytes:
        """Decides for a request; returns where it goes, as the answer to a part of it."""
        picker = self._picker
        exchange = self.exchange = picker.exchanges.begin(job, picker.places.alike)
        left_s = job.cutoff_s - picker.clock.monotonic_s()
        self.longest_s = left_s + GRACE_S
        choice, places = exchange.choice, picker.places
        chosen = replies.Chosen(
            tuple(
                [replies.Stop(places.address(each), *each.candidate) for each in exchange.targets]
            ),
            choice.target.model,
            choice.policy,
            choice.policy_version,
            places.is_single,
            kind,
        )
        added = [(convert.TIMEOUT, replies.timeout_ms(left_s))]
        if path.model:
            added.append((":path", path.with_model(chosen.model)))
        trace = exchange.attempt.trace
        return replies.sent_on(chosen, added, trace.metadata() if trace.sampled else ())

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
            served, first_byte_s = self._served(exchange, end.served), end.first_byte_s
            if first_byte_s is not None and self._upload is not None:
                # The gateway counts from the request's beginning, its job from its end.
                first_byte_s = max(0.0, first_byte_s - (exchange.job.arrival_s - self._begun_s))
            exchange.on_headers(end.status, served, first_byte_s=first_byte_s)
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
