"""Messages of the external processor: which paths ask for answers, what headers mean."""

from __future__ import annotations

import re
from typing import Any

import pytest

from router.types import Priority, SloKind
from services.common.errors import InvalidArgumentError, PermissionDeniedError
from services.common.http_host import own_hosts
from services.router_inference.doors.envoy import convert
from services.router_inference.job import Ask
from tests.fakes.envoy import connection_manager
from tests.unit.deploy.manifests import DEPLOY, load_yaml
from tests.unit.services.router_inference.doors.envoy.gateway import ended, headers
from tiercel.envoy.v3 import external_processor_pb2 as pb2

PLAIN = convert.Path("/v2/models/", "tiercel", "/generate", False)
ANSWERED = (
    "/v2/models/tiercel/infer?a=/b",
    "/v2/models/x/versions/3/generate",
    "/v2/models/a%20b/generate_stream",
    "/serve/v1/chat/completions?x",
    "/v1/completions",
    "/invocations",
    "/serve/invocations/?x",
)
"""Paths that ask for an answer."""
HARMLESS = ("/v2/repository/index", "/v2/repository/index?x", "/tokenize", "/serve/detokenize")
NOT_KNOWN = (
    "/v2/repository/models/large/unload",
    "/v2/repository/models/large/%75nload?x",
    "/v2/%72epository/models/large/load",
    "/v2/logging",
    "/v2/trace/setting",
    "/v2/models/large/trace/setting",
    "/v2/models/large/versions/1/trace/setting",
    "/v2/systemsharedmemory/region/a/register",
    "/v2/cudasharedmemory/unregister",
    "/v2/models/tiercel",
    "/v2/models//generate",
    "/v2/models/tiercel/generated",
    "/v2/models/tiercel/generate/more",
    "/v1/",
    "/v1/load_lora_adapter",
    "/serve/v1/unload_lora_adapter?x",
    "/v1/%6Coad_lora_adapter",
    "/generate",
    "/flush_cache",
    "/tokenize/more",
    "//invocations",
    "",
    "/" + "x" * 9_000,
)
"""Paths that are posted to in vain."""


def asked(path: convert.Path = PLAIN, metadata: Any = (), **values: str) -> Ask:
    """Returns what headers ask for."""
    given = {key.replace("_", "-"): text for key, text in values.items()}
    found = convert.headers_of(headers(given))
    return convert.ask_of(found, path, metadata=metadata, client="c", unknown_prompt_tokens=12.4)


@pytest.mark.parametrize(
    ("path", "model", "other", "is_stream"),
    [
        ("/v2/models/tiercel/generate", "tiercel", "/v2/models/m/generate", False),
        ("/v2/models/tiercel/infer?a=/b", "tiercel", "/v2/models/m/infer?a=/b", False),
        ("/v2/models/a%20b/generate_stream", "a%20b", "/v2/models/m/generate_stream", True),
        ("/v2/models/x/versions/3/generate", "x", "/v2/models/m/versions/3/generate", False),
        ("/v1/completions", "", None, True),
        ("/serve/v1/chat/completions?x", "", None, True),
        ("/invocations", "", None, True),
        ("/serve/invocations/?x", "", None, True),
    ],
)
def test_paths_that_ask_for_an_answer(
    path: str, model: str, other: str | None, is_stream: bool
) -> None:
    """Of Triton, whose paths name the model, and of servers that speak OpenAI's HTTP."""
    found = convert.path_of({":path": path, ":method": "POST"})
    assert found is not None
    assert (found.model, found.is_stream) == (model, is_stream)
    if other is not None:
        assert found.with_model("m") == other


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v2/models/tiercel/generate", "GET"),
        ("/v2/repository/index", "POST"),
        ("/v2/repository/models/tiercel/load", "GET"),
        ("/v2/logging", "GET"),
        ("/v2/repository/index?x", "POST"),
        ("/tokenize", "POST"),
        ("/serve/detokenize", "POST"),
    ],
)
def test_paths_that_ask_for_none(path: str, method: str) -> None:
    """They are passed on as they are."""
    assert convert.path_of({":path": path, ":method": method}) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/tiercel/generate?" + "x" * 9_000,
        "/v1/completions?" + "x" * 9_000,
        "/v1/completions/" + "x/" * 9_000,
        "/%76%31/completions",
        "/v2/models/tiercel/%67enerate?a=b",
        "/v2%2Fmodels/tiercel/generate",
        "/%69nvocations",
    ],
)
def test_paths_that_hide_what_they_ask_for_are_refused(path: str) -> None:
    """They would be answered by a server, and counted by nobody."""
    with pytest.raises(InvalidArgumentError) as caught:
        convert.path_of({":path": path, ":method": "POST"})
    assert caught.value.field == ":path"


@pytest.mark.parametrize("path", NOT_KNOWN)
def test_paths_that_are_not_known_are_not_served(path: str) -> None:
    """They may change a server, or have it answer what is not counted."""
    with pytest.raises(PermissionDeniedError):
        convert.path_of({":path": path, ":method": "POST"})


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "post", ""])
def test_methods_that_may_do_what_post_does_are_not_served(method: str) -> None:
    """By another method a prompt would be answered that nobody counts."""
    for path in (*ANSWERED, *HARMLESS, "/flush_cache"):
        with pytest.raises(PermissionDeniedError) as caught:
            convert.path_of({":path": path, ":method": method})
        assert caught.value.reason == "PATH_NOT_SERVED"


@pytest.mark.parametrize("file", ["envoy.yaml", "envoy.tls.yaml"])
def test_the_shipped_envoy_says_the_same(file: str) -> None:
    """Without a router it takes what a router would, and nothing else."""
    config = load_yaml(DEPLOY / "envoy" / file)
    [listener] = config["static_resources"]["listeners"]
    [manager] = listener["filter_chains"][0]["filters"]
    [host] = manager["typed_config"]["route_config"]["virtual_hosts"]
    refused = [each for each in host["routes"] if "direct_response" in each]
    sites, methods, refusing, changing = refused[-4:]
    for each in (sites, methods, refusing, changing):
        assert each["direct_response"] == {"status": 403}
    [site] = sites["match"]["headers"]
    assert (site["name"], site["string_match"]) == ("sec-fetch-site", {"exact": "cross-site"})
    [method] = methods["match"]["headers"]
    named = method["string_match"]["safe_regex"]["regex"].split("|")
    assert method["invert_match"]
    assert set(named) == {"GET", "HEAD", "OPTIONS", "POST"}
    _, *paths = refusing["match"]["headers"]
    assert all(path["invert_match"] for path in paths)
    loading = re.compile(changing["match"]["safe_regex"]["regex"])
    taken = [re.compile(path["string_match"]["safe_regex"]["regex"]) for path in paths]
    for each in (*ANSWERED, *HARMLESS, *NOT_KNOWN):
        is_taken = any(one.fullmatch(each) for one in taken)
        is_taken = is_taken and not loading.fullmatch(each.partition("?")[0])
        assert is_taken is (each not in NOT_KNOWN), each


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:8080"),
        *("a.localhost", "localhost.:1"),
        *("rebound.example:8080", "127.0.0.1.rebound.example", "localhost.rebound.example:8080"),
        *("[rebound.example]", "127.0.0.1,rebound.example", "notlocalhost", "1.example", "a:b@1"),
    ],
)
def test_the_shipped_envoy_takes_the_hosts_of_other_services(host: str) -> None:
    """On loopback, where a page may have its own name lead."""
    config = load_yaml(DEPLOY / "envoy" / "envoy.yaml")
    [tiers] = connection_manager(config)["route_config"]["virtual_hosts"]
    first = tiers["routes"][0]
    [authority] = first["match"]["headers"]
    assert first["direct_response"]["status"] == 403
    assert (authority["name"], authority["invert_match"]) == (":authority", True)
    taken = re.compile(authority["string_match"]["safe_regex"]["regex"])
    assert bool(taken.fullmatch(host)) is own_hosts("127.0.0.1:8080", [])(host)


def test_headers_are_what_a_request_asks_for() -> None:
    """All of them in one."""
    ask = asked(
        x_tiercel_task="piqa", x_tiercel_deadline_ms="250.5", x_tiercel_quality_floor="0.8",
        x_tiercel_max_output_tokens="7", x_tiercel_slo_kind="first_token", content_length="99",
        x_request_id="mine", x_tiercel_conversation_id="talk", x_tiercel_priority="low",
    )  # fmt: skip
    assert ask == Ask(
        task="piqa", prompt_bytes=99, max_output_tokens=7, deadline_s=0.2505, quality_floor=0.8,
        slo_kind=SloKind.FIRST_TOKEN, request_id="mine", client="c", by_gateway=True,
        conversation_id="talk",
        priority=Priority.LOW,
    )  # fmt: skip
    assert asked().prompt_tokens == 12
    assert asked(x_tiercel_priority="1").priority is Priority.HIGH  # as Triton counts


def test_every_wrong_header_is_named_at_once() -> None:
    """A client mends them together."""
    with pytest.raises(InvalidArgumentError) as caught:
        asked(x_tiercel_deadline_ms="?", x_tiercel_slo_kind="?", x_tiercel_priority="?",
              x_tiercel_wish="?")  # fmt: skip
    named = [name for name, _ in caught.value.violations]
    assert named == [
        "x-tiercel-wish", "x-tiercel-deadline-ms", "x-tiercel-slo-kind", "x-tiercel-priority",
    ]  # fmt: skip


def test_a_bomb_of_headers_is_refused() -> None:
    """They are counted before they are read."""
    many = pb2.HttpHeaders()
    for number in range(1_001):
        many.headers.headers.add(key=str(number))
    with pytest.raises(InvalidArgumentError, match="1001 entries"):
        convert.headers_of(many)


def test_bytes_that_are_no_text_are_no_reason_to_fail() -> None:
    """They are no task of the mesh either."""
    message = pb2.HttpHeaders()
    message.headers.headers.add(key="x-tiercel-task", raw_value=b"\xff\xfe")
    assert convert.headers_of(message)["x-tiercel-task"] == "\ufffd\ufffd"


def test_the_gateways_own_trace_goes_before_its_clients() -> None:
    """The gateway's span lies between the two."""
    own, theirs = ("traceparent", "own"), "00-1-2-01"
    assert asked(metadata=(own,), traceparent=theirs).metadata == (own,)
    assert asked(metadata=(("other", "x"),), traceparent=theirs).metadata == (
        ("traceparent", theirs),
    )


@pytest.mark.parametrize(
    ("address", "client"),
    [("10.0.0.1:5", "ipv4:10.0.0.1"), ("[fd00::1]:5", "ipv6:%5Bfd00::1%5D"), ("", ""), ("x", "")],
)
def test_clients_are_named_as_grpc_names_peers(address: str, client: str) -> None:
    """So that one has the same name at every door."""
    message = pb2.ProcessingRequest()
    message.attributes["envoy.filters.http.ext_proc"].update({"source.address": address})
    assert convert.client_of(message) == client


def test_who_served_is_told_by_metadata_or_by_attribute() -> None:
    """The protocol's metadata goes before."""
    message = pb2.ProcessingRequest()
    assert convert.served_address(message) == ""
    message.attributes["a"].update({"upstream.address": "10.0.0.1:1"})
    assert convert.served_address(message) == "10.0.0.1:1"
    message.metadata_context.filter_metadata["envoy.lb"].update({convert.SERVED: "10.0.0.2:1"})
    assert convert.served_address(message) == "10.0.0.2:1"


def test_trailers_tell_what_an_answer_was() -> None:
    """Without a first byte where there was none, not at all where they have no status."""
    told = ended(first_byte_us="1500000", served="10.0.0.1:1").response_trailers
    assert convert.end_of(told) == convert.End(200, 1.5, "10.0.0.1:1")
    assert convert.end_of(ended(504).response_trailers) == convert.End(504, None, "")
    assert convert.end_of(pb2.HttpTrailers()) is None
    with pytest.raises(InvalidArgumentError, match="tiercel-answer-status"):
        convert.end_of(ended(20).response_trailers)
