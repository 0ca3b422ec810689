"""What Envoy's external processor tells, as what the path knows; `replies` is the way back."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from router.types import SloKind
from services.common import priorities
from services.common.checks import Checks
from services.common.errors import InvalidArgumentError, PermissionDeniedError
from services.router_inference.job import Ask
from tiercel.envoy.v3 import external_processor_pb2 as pb2

DESTINATION = "x-gateway-destination-endpoint"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
NAMESPACE, SUBSET_NAMESPACE = "envoy.lb", "envoy.lb.subset_hint"
TIMEOUT, RETRIES = "x-envoy-upstream-rq-timeout-ms", "x-envoy-max-retries"
MODEL = "tiercel"
"""Model of requests whose tier the router chooses."""
TASK, TIER = "x-tiercel-task", "x-tiercel-tier"
DEADLINE, FLOOR = "x-tiercel-deadline-ms", "x-tiercel-quality-floor"
OUTPUT_TOKENS, SLO_KIND = "x-tiercel-max-output-tokens", "x-tiercel-slo-kind"
CONVERSATION = "x-tiercel-conversation-id"
PRIORITY = "x-tiercel-priority"
CHOSEN_MODEL, ENDPOINT, REASON = "x-tiercel-model", "x-tiercel-endpoint", "x-tiercel-reason"
POLICY, POLICY_VERSION = "x-tiercel-policy", "x-tiercel-policy-version"
REQUEST_ID = "x-request-id"
STATUS, FIRST_BYTE_US = "tiercel-answer-status", "tiercel-answer-first-byte-us"
SERVED_BY = "tiercel-answer-served"
_TOLD_AT_END = frozenset({STATUS, FIRST_BYTE_US, SERVED_BY})
_OWN = "x-tiercel-"
_SOURCE, _UPSTREAM = "source.address", "upstream.address"
_TRACE = ("traceparent", "tracestate")
_READ = frozenset(
    {
        *(":path", ":method", "content-length", ":status", REQUEST_ID, *_TRACE),
        *(TASK, TIER, DEADLINE, FLOOR, OUTPUT_TOKENS, SLO_KIND, CONVERSATION, PRIORITY),
    }
)
_MOST_HEADERS = 1_000
_MOST_DIGITS = 15
_MOST_NAME = 64
MS_PER_S, _US_PER_S = 1_000.0, 1_000_000.0
_MOST_PATH_CHARACTERS = 8_192
_MOST_KEPT, _MOST_KEPT_CHARACTERS = 1_024, 256
"""Most paths that are kept with what they ask for, and the longest."""
_TRITON = re.compile(
    r"(/v2/models/)([^/?#]+)((?:/versions/[^/?#]+)?/(generate_stream|generate|infer))"
)
_OPENAI = re.compile(r"(?:/[^/?#]+)*/(?:v1/[^?#]+|invocations/?(?:[?#]|$))")
"""Paths of servers that speak OpenAI; the second is that of SageMaker, which vLLM serves too."""
_CHANGES = "lora_adapter"
"""In the paths by which vLLM loads and unloads what it serves, where it may."""
_HARMLESS = re.compile(r"(?:/v2/repository/index|(?:/[^/?#]+)*/(?:de)?tokenize)(?:[?#]|$)")
"""Paths that are posted to and neither answer prompts nor change a server."""
_ONLY_READ = frozenset({"GET", "HEAD", "OPTIONS"})
REASON_CONTROL = "PATH_NOT_SERVED"
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
# A gateway tells of the beginning and of the end; of what comes between, nothing.
SLO_KINDS = {kind.value: kind for kind in (SloKind.COMPLETE_ANSWER, SloKind.FIRST_TOKEN)}


class Path(NamedTuple):
    """A path that asks for an answer.

    Attributes:
        before: what stands before the model's name; empty if the path has none.
        model: the model's name.
        after: what follows it, the query too.
        is_stream: True if the answer may come piece by piece.
    """

    before: str
    model: str
    after: str
    is_stream: bool

    def with_model(self, model: str) -> str:
        """Returns the path of another model."""
        return f"{self.before}{model}{self.after}"


class End(NamedTuple):
    """What a gateway tells of an answer once it is complete.

    Attributes:
        status: HTTP status.
        first_byte_s: from the request's arrival at the gateway to the answer's first byte, seconds;
            None if there was none.
        served: `ip:port` of who answered; empty if not told.
    """

    status: int
    first_byte_s: float | None
    served: str


def headers_of(message: pb2.HttpHeaders) -> dict[str, str]:
    """Returns the headers that mean something here, or should; the first of each name.

    Raises:
        InvalidArgumentError: There are too many.
    """
    entries = message.headers.headers
    if len(entries) > _MOST_HEADERS:
        checks = Checks()
        checks.items("headers", entries, _MOST_HEADERS)
        checks.raise_if_any()
    found: dict[str, str] = {}
    for entry in entries:
        key = entry.key
        if (key in _READ or key.startswith(_OWN)) and key not in found:
            found[key] = entry.raw_value.decode("utf-8", "replace") or entry.value
    return found


def path_of(headers: Mapping[str, str]) -> Path | None:
    """Returns the path of a request that a model is to answer; None for any other.

    What a server takes for such a request is one here too, however its path is written: it would
    be answered without being counted, past every limit. So nothing is posted to a path that is not
    known here, and nothing is sent by a method that may do what POST does.

    Raises:
        InvalidArgumentError: The path is too long, or hides what it asks for.
        PermissionDeniedError: It may answer what is not counted, or change the server.
    """
    path, method = headers.get(":path", ""), headers.get(":method")
    if method in _ONLY_READ:
        return None
    if method != "POST":  # some servers take PUT in its place
        text = ":method: must be POST, GET, HEAD or OPTIONS"
        raise PermissionDeniedError(text, reason=REASON_CONTROL)
    found = _kept(path) if len(path) <= _MOST_KEPT_CHARACTERS else _asked(path)
    if found is not None and len(path) > _MOST_PATH_CHARACTERS:
        problem = f"has {len(path)} characters"
        raise InvalidArgumentError(":path", problem, f"at most {_MOST_PATH_CHARACTERS}")
    if found is None:
        plain = unquote(path.partition("?")[0]) if "%" in path else path
        if plain is not path and _asked(plain) is not None:
            raise InvalidArgumentError(":path", "has escapes for what needs none")
        if not _HARMLESS.match(path):
            text = "clients of a gateway post to paths that answer prompts; this is none known here"
            raise PermissionDeniedError(text, reason=REASON_CONTROL)
    return found


@functools.lru_cache(_MOST_KEPT)
def _kept(path: str) -> Path | None:
    """Returns the same as `_asked`: clients have few paths."""
    return _asked(path)


def _asked(path: str) -> Path | None:
    """Returns what a path that is posted to asks for; None for nothing."""
    found = _TRITON.match(path)
    if found is not None and path[found.end() : found.end() + 1] in ("", "?"):
        rest = found[3] + path[found.end() :]
        return Path(found[1], found[2], rest, found[4] == "generate_stream")
    if _OPENAI.match(path) and _CHANGES not in unquote(path.partition("?")[0]):
        return Path("", "", "", True)
    return None


def ask_of(
    headers: Mapping[str, str],
    path: Path,
    *,
    metadata: tuple[tuple[str, str | bytes], ...],
    client: str,
    unknown_prompt_tokens: float,
) -> Ask:
    """Reads what a request asks for.

    Args:
        headers: its headers.
        path: its path.
        metadata: of the call that tells of it; its trace context goes before the headers' own.
        client: who asks.
        unknown_prompt_tokens: length of a prompt whose size is not told, tokens.

    Raises:
        InvalidArgumentError: With every header that is wrong.
    """
    checks = Checks()
    if not _READ.issuperset(headers):
        _refuse_unknown(checks, headers)
    ask = Ask(
        task=headers.get(TASK, ""),
        tier=headers.get(TIER, ""),
        request_id=headers.get(REQUEST_ID, ""),
        conversation_id=headers.get(CONVERSATION, ""),
        is_stream=path.is_stream,
        metadata=_trace_of(headers, metadata),
        client=client,
        by_gateway=True,
    )
    if path.model not in ("", MODEL):
        told = ask.tier in ("", path.model)
        checks.require(
            told, TIER, f"is not the path's {path.model[:_MOST_NAME]!r}", "one of the two"
        )
        ask.tier = path.model
    size = _whole(checks, "content-length", headers)
    if size is None:
        ask.prompt_tokens = max(1, round(unknown_prompt_tokens))
    else:
        ask.prompt_bytes = size
    if OUTPUT_TOKENS in headers:
        ask.max_output_tokens = _whole(checks, OUTPUT_TOKENS, headers)
    deadline_ms = _number(checks, DEADLINE, headers)
    if deadline_ms is not None:
        ask.deadline_s = deadline_ms / MS_PER_S
    if FLOOR in headers:
        ask.quality_floor = _number(checks, FLOOR, headers) or 0.0
    kind = headers.get(SLO_KIND)
    if kind is not None:
        ask.slo_kind = SLO_KINDS.get(kind)
        checks.require(ask.slo_kind is not None, SLO_KIND, "is unknown", ", ".join(SLO_KINDS))
    text = headers.get(PRIORITY)
    if text is not None:
        priority = priorities.of_text(text)
        good = checks.require(priority is not None, PRIORITY, f"is {text[:32]!r}", priorities.KNOWN)
        if good and priority is not None:
            ask.priority = priority
    checks.raise_if_any()
    return ask


def _refuse_unknown(checks: Checks, headers: Mapping[str, str]) -> None:
    for name in headers:
        if name not in _READ:  # a deadline that is misspelled would not be kept
            what, known = "is unknown", "a header that this door knows"
            checks.require(False, name[:_MOST_NAME], what, known)


def client_of(request: pb2.ProcessingRequest) -> str:
    """Returns the address behind the gateway, in gRPC's form without port; empty if not told."""
    address = _attribute(request, _SOURCE)
    host, _, _ = address.rpartition(":")
    if not host:
        return ""
    return f"ipv6:%5B{host[1:-1]}%5D" if host.startswith("[") else f"ipv4:{host}"


def subset_of(request: pb2.ProcessingRequest) -> list[str] | None:
    """Returns the addresses a request may go to, as `ip:port`; None for any."""
    found = request.metadata_context.filter_metadata
    if SUBSET_NAMESPACE not in found or SUBSET not in found[SUBSET_NAMESPACE].fields:
        return None
    value = found[SUBSET_NAMESPACE].fields[SUBSET]
    if value.WhichOneof("kind") == "string_value":
        return value.string_value.split(",")
    return [entry.string_value for entry in value.list_value.values]


def served_address(request: pb2.ProcessingRequest) -> str:
    """Returns `ip:port` of who answers; empty if the gateway does not tell."""
    found = request.metadata_context.filter_metadata
    if NAMESPACE in found and SERVED in found[NAMESPACE].fields:
        return found[NAMESPACE].fields[SERVED].string_value
    return _attribute(request, _UPSTREAM)


def status_of(headers: Mapping[str, str], name: str = ":status") -> int:
    """Returns the HTTP status of an answer.

    Raises:
        InvalidArgumentError: It is none.
    """
    text = headers.get(name, "")
    if not (len(text) == 3 and text.isascii() and text.isdigit()):
        raise InvalidArgumentError(name, f"is {text[:32]!r}", "three digits")
    return int(text)


def end_of(message: pb2.HttpTrailers) -> End | None:
    """Returns what an answer's trailers tell of it; None if they do not.

    Raises:
        InvalidArgumentError: What they tell is no answer.
    """
    found: dict[str, str] = {}
    for entry in message.trailers.headers[:_MOST_HEADERS]:
        key = entry.key
        if key in _TOLD_AT_END:
            found[key] = entry.raw_value.decode("utf-8", "replace") or entry.value
    if STATUS not in found:
        return None
    checks = Checks()
    first_byte_us = _whole(checks, FIRST_BYTE_US, found)
    checks.raise_if_any()
    first_byte_s = None if first_byte_us is None else first_byte_us / _US_PER_S
    return End(status_of(found, STATUS), first_byte_s, found.get(SERVED_BY, ""))


def _attribute(request: pb2.ProcessingRequest, name: str) -> str:
    groups = request.attributes
    for each in groups:  # by `values` it takes three times as long
        fields = groups[each].fields
        if name in fields:
            return fields[name].string_value
    return ""


def _trace_of(
    headers: Mapping[str, str], metadata: tuple[tuple[str, str | bytes], ...]
) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the trace context: that of the gateway's own span, else its client's."""
    for key, _ in metadata:
        if key == _TRACE[0]:
            return metadata
    return tuple([(name, headers[name]) for name in _TRACE if name in headers])


def _number(checks: Checks, name: str, headers: Mapping[str, str]) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    if len(text) <= _MOST_DIGITS and _NUMBER.fullmatch(text) is not None:
        return float(text)
    checks.require(False, name, f"is {text[:32]!r}", "a number")
    return None


def _whole(checks: Checks, name: str, headers: Mapping[str, str]) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return int(text)
    checks.require(False, name, f"is {text[:32]!r}", "whole number")
    return None
