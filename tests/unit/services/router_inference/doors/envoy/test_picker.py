"""The picker as a gateway meets it: where a request goes, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.common.errors import DeadlineExceededError, UnavailableError
from services.router_inference.path.exchanges import REASON_CUT
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.doors.envoy.gateway import (
    TRAILERS,
    Exchange,
    destinations,
    ended,
    gateway_rig,
    http_address,
    request,
    response,
    set_headers,
)
from tests.unit.services.router_inference.parts import Rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.envoy.v3 import external_processor_pb2 as pb2


async def served(rig: Rig, status: int = 200, after_s: float = 0.05, **values: str) -> None:
    """Carries one exchange to its end."""
    exchange = Exchange(rig)
    await exchange.tell(request(**values))
    await asyncio.sleep(after_s)
    await exchange.tell(response(status))
    await exchange.tell(TRAILERS)
    await exchange.close()


@scenario
async def test_a_request_goes_to_the_chosen_tier() -> None:
    """Endpoint in header and metadata, the tier in the path, the time left as the timeout."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    answer = await exchange.tell(
        request(x_tiercel_deadline_ms="300", path="/v2/models/tiercel/generate_stream?x=1")
    )
    told = set_headers(answer)
    assert destinations(answer) == [http_address(0)]
    assert told[":path"] == "/v2/models/large/generate_stream?x=1"
    assert told["x-envoy-upstream-rq-timeout-ms"] == "300"
    assert (told["x-tiercel-tier"], told["x-tiercel-model"]) == ("large", "large")
    assert answer.request_headers.response.clear_route_cache
    assert len(rig.core.view.load.ledger) == 1
    await exchange.reset()


@scenario
async def test_an_answered_request_ends_on_time() -> None:
    """It is counted, recorded once and explained as any other; its client hears who answered."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request(x_request_id="mine"))
    await asyncio.sleep(0.1)
    told = set_headers(await exchange.tell(response(served=http_address(0))))
    assert told.pop("x-tiercel-policy-version")
    assert told == {
        "x-tiercel-tier": "large", "x-tiercel-endpoint": "e0", "x-request-id": "mine",
        "x-tiercel-policy": "static-large",
    }  # fmt: skip
    await asyncio.sleep(0.1)
    await exchange.tell(TRAILERS)
    await exchange.close()
    assert rig.core.accounts.counts.on_time == 1
    assert rig.core.explanations.find("mine") is not None
    rig.assert_settled()
    decision, outcome = await rig.records()
    assert decision.decision.request_id == outcome.outcome.request_id == "mine"
    assert outcome.outcome.status == common_pb2.OUTCOME_STATUS_ON_TIME
    assert outcome.outcome.latency.ToMilliseconds() == 200
    assert outcome.outcome.first_token_latency.ToMilliseconds() == 100
    assert outcome.outcome.served_by.tier == "large"


@scenario
async def test_a_late_answer_is_late() -> None:
    """Soft deadlines are served late; the gateway is told how long it may take."""
    rig = gateway_rig()
    await served(rig, after_s=0.5, x_tiercel_task="soft")
    assert rig.core.accounts.counts.late == 1
    rig.assert_settled()


@scenario
async def test_a_first_token_in_time_is_enough_where_that_was_asked() -> None:
    """The answer's headers come with its first token."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request(x_tiercel_slo_kind="first_token"))
    await asyncio.sleep(0.1)
    await exchange.tell(response())
    await asyncio.sleep(1.0)
    await exchange.tell(TRAILERS)
    await exchange.close()
    assert rig.core.accounts.counts.on_time == 1


@scenario
async def test_a_named_tier_is_pinned() -> None:
    """By the path, as at Triton, or by a header; not by two different ones."""
    rig = gateway_rig()
    for values in (
        {"path": "/v2/models/small/versions/1/generate"},
        {"path": "/v2/models/tiercel/versions/1/generate", "x_tiercel_tier": "small"},
    ):
        exchange = Exchange(rig)
        told = set_headers(await exchange.tell(request(**values)))
        assert told[":path"] == "/v2/models/small/versions/1/generate"
        await exchange.reset()
    exchange = Exchange(rig)
    both = request(path="/v2/models/small/infer", x_tiercel_tier="large")
    answer = await exchange.tell(both)
    assert answer.immediate_response.status.code == 400
    assert "x-tiercel-tier" in json.loads(answer.immediate_response.body)["error"]


@scenario
async def test_a_model_of_another_name_is_named_in_the_path() -> None:
    """What Triton calls the tier there."""
    endpoint = {
        "name": "e0", "address": "127.0.0.1:9000", "http_address": http_address(0),
        "tiers": ("large",), "models": {"large": "gpu0_large"},
    }  # fmt: skip
    rig = gateway_rig(mesh={"endpoints": [endpoint]})
    exchange = Exchange(rig)
    told = set_headers(await exchange.tell(request()))
    assert told[":path"] == "/v2/models/gpu0_large/generate_stream"
    await exchange.reset()


@scenario
async def test_others_of_the_same_model_follow_in_the_order_of_retries() -> None:
    """The idlest first; a tier of another model could not take the request unchanged."""
    rig = gateway_rig(endpoint_count=3)
    ledger = rig.core.view.load.ledger
    for number in range(3):
        ledger.dispatch(f"other {number}", ("large", "e1"), 5.0, 500.0)
    exchange = Exchange(rig)
    answer = await exchange.tell(request())
    assert destinations(answer) == [http_address(0), http_address(2), http_address(1)]
    assert set_headers(answer)["x-envoy-max-retries"] == "2"
    await exchange.reset()


@scenario
async def test_a_smaller_tier_follows_where_it_has_the_same_model_name() -> None:
    """Servers that know one alias for whatever they serve."""
    endpoints = [
        {
            "name": f"e{index}", "address": f"127.0.0.1:{9000 + index}", "tiers": (tier,),
            "http_address": http_address(index), "models": {tier: "any"},
        }
        for index, tier in enumerate(("small", "medium", "large"))
    ]  # fmt: skip
    rig = gateway_rig(endpoint_count=3, mesh={"endpoints": endpoints})
    exchange = Exchange(rig)
    answer = await exchange.tell(request(path="/v1/chat/completions"))
    assert destinations(answer) == [http_address(2), http_address(1), http_address(0)]
    assert ":path" not in set_headers(answer)
    told = set_headers(await exchange.tell(response(served=http_address(1))))
    assert told["x-tiercel-tier"] == "medium"
    assert dict(rig.core.view.load.ledger.totals()).keys() == {("medium", "e1")}
    await exchange.tell(TRAILERS)
    await exchange.close()
    [record] = [each.outcome for each in await rig.records() if each.HasField("outcome")]
    assert (record.served_by.tier, record.retry_count, record.quality) == ("medium", 1, 0.8)
    rig.assert_settled()


@scenario
async def test_only_the_subset_is_chosen_from() -> None:
    """As a list or as text; none of it usable, or nothing in it, is 503."""
    rig = gateway_rig(endpoint_count=3)
    for value in ([http_address(2), "10.0.0.1:80"], f"10.0.0.1:80, {http_address(2)}"):
        exchange = Exchange(rig)
        assert destinations(await exchange.tell(with_subset(value))) == [http_address(2)]
        await exchange.reset()
    for nothing in ([], ["10.0.0.1:80"]):
        exchange = Exchange(rig)
        answer = await exchange.tell(with_subset(nothing))
        assert answer.immediate_response.status.code == 503
        await exchange.close()
    everywhere = Exchange(rig)
    assert len(destinations(await everywhere.tell(request()))) == 3
    await everywhere.reset()
    rig.assert_settled()


def with_subset(value: Any) -> pb2.ProcessingRequest:
    """Returns a request that may go to some addresses only."""
    message = request()
    message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
        {"x-gateway-destination-endpoint-subset": value}
    )
    return message


@scenario
async def test_a_hopeless_request_is_shed() -> None:
    """429 with the limit and a time to retry, in Triton's form of an error; nothing is left."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    answer = await exchange.tell(request(x_tiercel_deadline_ms="1"))
    refused = answer.immediate_response
    assert refused.status.code == 429
    assert "limit" in json.loads(refused.body)["error"]
    told = set_headers(answer)
    assert told["retry-after"] == "1"
    assert told["x-tiercel-reason"] == "DEADLINE_NOT_REACHABLE"
    await exchange.close()
    assert rig.core.accounts.counts.refused == 1
    rig.assert_settled()


@scenario
async def test_without_a_usable_endpoint_there_is_503() -> None:
    """Also where endpoints are usable, but none has an HTTP address."""
    for rig in (ejected(gateway_rig()), gateway_rig(mesh={"endpoints": [without_http()]})):
        for path in ("/v2/models/tiercel/generate", "/v2/repository/index"):
            exchange = Exchange(rig)
            answer = await exchange.tell(request(path=path))
            assert answer.immediate_response.status.code == 503
            assert set_headers(answer)["x-tiercel-reason"] == "NO_USABLE_ENDPOINT"
            await exchange.close()
        rig.assert_settled()


def without_http() -> dict[str, Any]:
    """Returns an endpoint that gateways do not reach."""
    return {"name": "e0", "address": "127.0.0.1:9000", "tiers": ("small",)}


def ejected(rig: Rig) -> Rig:
    """Returns a router all of whose candidates have failed."""
    for target in rig.core.view.fleet.targets:
        for _ in range(3):
            target.breaker.on_failure(rig.clock.monotonic_s(), "GONE")
    return rig


@scenario
async def test_one_without_an_address_is_not_chosen_though_it_is_the_best() -> None:
    """The gateway could not reach it."""
    reached = {
        "name": "e1", "address": "127.0.0.1:9001", "http_address": http_address(1),
        "tiers": ("small",),
    }  # fmt: skip
    unreached = {"name": "e0", "address": "127.0.0.1:9000", "tiers": ("small", "large")}
    rig = gateway_rig(endpoint_count=2, mesh={"endpoints": [unreached, reached]})
    exchange = Exchange(rig)
    assert destinations(await exchange.tell(request())) == [http_address(1)]
    await exchange.reset()
    await rig.answer(rig.job())
    assert rig.tier(0).calls[0]["model"] == "large"


@pytest.mark.parametrize(
    ("values", "status", "named"),
    [
        ({"x_tiercel_task": "unknown"}, 404, "unknown"),
        ({"x_tiercel_task": ""}, 400, "x-tiercel-task"),
        ({"x_tiercel_deadline_ms": "soon"}, 400, "x-tiercel-deadline-ms"),
        ({"x_tiercel_deadline_ms": "0"}, 400, "x-tiercel-deadline-ms"),
        ({"x_tiercel_deadline_ms": "1e3"}, 400, "x-tiercel-deadline-ms"),
        ({"x_tiercel_quality_floor": "2"}, 400, "x-tiercel-quality-floor"),
        ({"x_tiercel_quality_floor": "-1"}, 400, "x-tiercel-quality-floor"),
        ({"x_tiercel_max_output_tokens": "0"}, 400, "x-tiercel-max-output-tokens"),
        ({"x_tiercel_slo_kind": "some"}, 400, "x-tiercel-slo-kind"),
        ({"x_tiercel_slo_kind": "per_token"}, 400, "x-tiercel-slo-kind"),
        ({"x_tiercel_token_interval_ms": "50"}, 400, "x-tiercel-token-interval-ms"),
        ({"x_tiercel_tier": "huge"}, 404, "huge"),
        ({"x_tiercel_dead_line": "5"}, 400, "x-tiercel-dead-line"),
        ({"path": "/v2/models/huge/generate"}, 404, "huge"),
        ({"content_length": "9999999"}, 413, "content-length"),
        ({"content_length": "-1"}, 400, "content-length"),
    ],
)
def test_bad_headers_are_named(values: dict[str, str], status: int, named: str) -> None:
    """The client is told at once, and nothing was offered."""

    async def scene() -> None:
        rig = gateway_rig()
        exchange = Exchange(rig)
        answer = await exchange.tell(request(**values))
        await exchange.close()
        assert answer.immediate_response.status.code == status
        assert named in json.loads(answer.immediate_response.body)["error"]
        assert (rig.core.accounts.counts.invalid, rig.core.accounts.counts.offered) == (1, 0)

    run_virtual(scene())


@scenario
async def test_a_prompt_of_unknown_length_is_taken_for_an_ordinary_one() -> None:
    """A body in pieces has no content-length."""
    rig = gateway_rig()
    for _ in range(3):
        await served(rig, content_length="800")
    message = request()
    del message.request_headers.headers.headers[2]
    exchange = Exchange(rig)
    await exchange.tell(message)
    totals = rig.core.view.load.ledger.totals()
    assert totals["large", "e0"][1] == pytest.approx(200.0, rel=0.01)
    await exchange.reset()


@scenario
async def test_what_asks_for_no_answer_is_passed_to_an_endpoint_and_not_counted() -> None:
    """Lists of models and the like go to one usable endpoint after the other."""
    rig = gateway_rig(endpoint_count=2)
    places = []
    for _ in range(2):
        exchange = Exchange(rig)
        message = request(path="/v2/repository/index")
        places += destinations(await exchange.tell(message))
        await exchange.tell(response())
        await exchange.tell(TRAILERS)
        await exchange.close()
    assert sorted(places) == [http_address(0), http_address(1)]
    assert rig.core.accounts.counts.offered == 0


@scenario
async def test_what_changes_a_server_goes_to_none() -> None:
    """Nor does what asks for an answer by a path of another form."""
    rig = gateway_rig()
    for path, status in (("/v2/repository/models/large/unload", 403), ("/%76%31/completions", 400)):
        exchange = Exchange(rig)
        answer = await exchange.tell(request(path=path))
        assert answer.immediate_response.status.code == status
        await exchange.close()
    assert rig.core.accounts.counts.offered == 0
    rig.assert_settled()


@scenario
async def test_an_exchange_that_asks_for_no_answer_may_last() -> None:
    """It has no deadline here; the gateway has its own."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request(path="/v2/repository/index"))
    await asyncio.sleep(3_600.0)
    await exchange.tell(response())
    await exchange.tell(TRAILERS)
    await exchange.close()


@scenario
async def test_a_fleet_that_changes_meanwhile_changes_nothing_for_an_exchange() -> None:
    """Its target is the same though the list was made anew."""
    rig = gateway_rig(endpoint_count=2)
    exchange = Exchange(rig)
    address, *_ = destinations(await exchange.tell(request()))
    fleet = rig.core.view.fleet
    fleet._rebuild(fleet._specs)
    await exchange.tell(response(served=address))
    await exchange.tell(TRAILERS)
    await exchange.close()
    [record] = [each.outcome for each in await rig.records() if each.HasField("outcome")]
    assert record.retry_count == 0
    assert not any(target.breaker.last_reason for target in fleet.targets)


@scenario
async def test_errors_of_endpoints_are_failures_and_close_them() -> None:
    """Three in a row, and the next request goes elsewhere."""
    rig = gateway_rig(endpoint_count=2)
    for _ in range(3):
        exchange = Exchange(rig)
        address, *_ = destinations(await exchange.tell(request()))
        assert address == http_address(0)
        await exchange.tell(response(503, served=address, end=True))
        await exchange.close()
    counts = rig.core.accounts.counts
    assert (counts.failed, counts.offered) == (3, 3)
    exchange = Exchange(rig)
    assert destinations(await exchange.tell(request()))[0] == http_address(1)
    await exchange.reset()
    rig.assert_settled()


@scenario
async def test_what_a_tier_refuses_is_bad_input() -> None:
    """It was offered to nobody, and says nothing about the endpoint."""
    rig = gateway_rig()
    await served(rig, status=400)
    counts = rig.core.accounts.counts
    assert (counts.invalid, counts.offered) == (1, 0)
    await served(rig, status=429)
    assert counts.failed == 1
    rig.assert_settled()


@scenario
async def test_an_answer_that_breaks_off_is_never_a_success() -> None:
    """Cancelled before the deadline; late at it."""
    rig = gateway_rig()
    for wait_s, outcome in ((0.1, "cancelled"), (0.3, "late")):
        exchange = Exchange(rig)
        await exchange.tell(request())
        await asyncio.sleep(0.1)
        await exchange.tell(response())
        await asyncio.sleep(wait_s)
        await exchange.close()
        assert getattr(rig.core.accounts.counts, outcome) == 1
    records = [each.outcome for each in await rig.records() if each.HasField("outcome")]
    assert [each.reason for each in records] == [REASON_CUT, "DEADLINE_EXCEEDED"]
    assert not any(each.HasField("served_by") for each in records)
    rig.assert_settled()


@scenario
async def test_a_client_that_leaves_has_cancelled() -> None:
    """Before an answer; by a closed stream or a broken one."""
    rig = gateway_rig()
    for end in (Exchange.close, Exchange.reset):
        exchange = Exchange(rig)
        await exchange.tell(request())
        await end(exchange)
    assert rig.core.accounts.counts.cancelled == 2
    rig.assert_settled()


@scenario
async def test_a_gateway_that_goes_silent_holds_nothing() -> None:
    """The stream is ended soon after the request's cutoff, or if it never begins."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request())
    with pytest.raises(DeadlineExceededError):
        await exchange.stream
    rig.assert_settled()
    assert rig.core.accounts.counts.late == 1
    with pytest.raises(DeadlineExceededError):
        await Exchange(rig).stream


@scenario
async def test_a_stop_ends_streams_without_a_request_at_once() -> None:
    """Nothing told, nothing asked for, all told: whoever comes during the stop too."""
    rig = gateway_rig()
    picker = rig.core.picker
    assert picker is not None
    silent, other, ended_one = Exchange(rig), Exchange(rig), Exchange(rig)
    await other.tell(request(path="/v2/repository/index"))
    await ended_one.tell(request())
    await ended_one.tell(ended())
    picker.leave()
    begun_s = asyncio.get_running_loop().time()
    with pytest.raises(UnavailableError, match="going away"):
        await silent.stream
    # The gateway carries these to their end by itself.
    await other.stream
    await ended_one.stream
    with pytest.raises(UnavailableError, match="going away"):
        await Exchange(rig).stream
    assert asyncio.get_running_loop().time() - begun_s < 0.01
    assert rig.core.accounts.counts.on_time == 1
    rig.assert_settled()


@scenario
async def test_a_stop_lets_an_exchange_tell_its_end() -> None:
    """It ends as it would, and its stream with it; a silent one is waited for to its cutoff."""
    rig = gateway_rig()
    picker = rig.core.picker
    assert picker is not None
    begun_s = asyncio.get_running_loop().time()
    exchange, silent = Exchange(rig), Exchange(rig)
    for each in (exchange, silent):
        await each.tell(request(x_tiercel_deadline_ms="20000"))
    picker.leave()
    await asyncio.sleep(15.0)
    await exchange.tell(ended())
    await exchange.stream
    assert rig.core.accounts.counts.on_time == 1
    with pytest.raises(DeadlineExceededError):
        await silent.stream
    assert 20.0 <= asyncio.get_running_loop().time() - begun_s < 21.5
    assert rig.core.accounts.counts.late == 1
    rig.assert_settled()


@scenario
async def test_a_stop_waits_for_the_next_piece_of_a_body_that_is_handed_back() -> None:
    """Without it a client would get a part of its answer; without one for a while it ends."""
    rig = gateway_rig()
    picker = rig.core.picker
    assert picker is not None
    exchange = Exchange(rig)
    message = request(path="/v2/repository/index")
    message.protocol_config.response_body_mode = pb2.FULL_DUPLEX_STREAMED
    await exchange.tell(message)
    await exchange.tell(response())
    picker.leave()
    begun_s = asyncio.get_running_loop().time()
    piece = pb2.ProcessingRequest(response_body=pb2.HttpBody(body=b"abc"))
    for _ in range(10):
        await asyncio.sleep(0.3)
        answer = await exchange.tell(piece)
        assert answer.response_body.response.body_mutation.streamed_response.body == b"abc"
    await exchange.stream
    assert asyncio.get_running_loop().time() - begun_s < 4.0


@scenario
async def test_a_stop_waits_for_an_answer_on_its_way() -> None:
    """A call that is interrupted while the library sends would never end."""
    rig = gateway_rig()
    picker = rig.core.picker
    assert picker is not None
    exchange = Exchange(rig)
    written, write = asyncio.Event(), exchange.write

    async def slow(message: pb2.ProcessingResponse | bytes) -> None:
        await asyncio.sleep(0.2)
        await write(message)
        written.set()

    exchange.write = slow  # type: ignore[method-assign]
    telling = asyncio.ensure_future(exchange.tell(request(path="/v2/repository/index")))
    await asyncio.sleep(0.1)
    picker.leave()
    await telling
    await exchange.stream
    assert written.is_set()


@scenario
async def test_bodies_are_sent_back_where_the_gateway_wants_that() -> None:
    """Else they are passed on unseen."""
    rig = gateway_rig()
    for mode, echoed in ((pb2.FULL_DUPLEX_STREAMED, b"abc"), (pb2.BUFFERED, b"")):
        exchange = Exchange(rig)
        message = request()
        message.protocol_config.request_body_mode = mode
        await exchange.tell(message)
        body = pb2.ProcessingRequest(request_body=pb2.HttpBody(body=b"abc", end_of_stream=True))
        answer = await exchange.tell(body)
        piece = answer.request_body.response.body_mutation.streamed_response
        assert (piece.body, piece.end_of_stream) == (echoed, bool(echoed))
        await exchange.reset()


@scenario
async def test_an_answer_may_be_told_by_its_end_alone() -> None:
    """Status, first byte and who served come with the trailers; the record is the same."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request(x_request_id="mine"))
    await asyncio.sleep(0.2)
    await exchange.tell(ended(first_byte_us="100000", served=http_address(0)))
    await exchange.close()
    assert rig.core.accounts.counts.on_time == 1
    _, outcome = await rig.records()
    assert outcome.outcome.latency.ToMilliseconds() == 200
    assert outcome.outcome.first_token_latency.ToMilliseconds() == 100
    assert outcome.outcome.served_by.tier == "large"
    rig.assert_settled()


@scenario
async def test_errors_and_retries_are_told_by_the_end_too() -> None:
    """What failed before the one that served is blamed; an error is a failure of its endpoint."""
    rig = gateway_rig(endpoint_count=2)
    first, second = (rig.core.view.fleet.targets[row] for row in (2, 5))
    for message, blamed, reason in (
        (ended(served=http_address(1)), first, "RETRIED_BY_GATEWAY"),
        (ended(503, served=http_address(1)), second, "HTTP_503"),
    ):
        exchange = Exchange(rig)
        assert destinations(await exchange.tell(request()))[0] == http_address(0)
        await exchange.tell(message)
        await exchange.close()
        assert blamed.breaker.last_reason == reason
    counts = rig.core.accounts.counts
    assert (counts.on_time, counts.failed) == (1, 1)
    rig.assert_settled()


@scenario
async def test_a_gateway_is_told_what_to_tell_its_client() -> None:
    """By address, since it may turn to another endpoint."""
    rig = gateway_rig(endpoint_count=2)
    exchange = Exchange(rig)
    answer = await exchange.tell(request())
    told = answer.dynamic_metadata.fields["tiercel"].struct_value
    assert told["policy"] == "static-large"
    assert told["policy_version"]
    for index in range(2):
        assert told[f"tier {http_address(index)}"] == "large"
        assert told[f"endpoint {http_address(index)}"] == f"e{index}"
    await exchange.reset()


@scenario
async def test_a_prompt_waits_for_as_long_as_predicted_where_no_beginning_is_told() -> None:
    """From the second exchange of such a gateway on; another one's beginning ends that."""
    rig = gateway_rig()
    ledger = rig.core.view.load.ledger

    async def waiting(*told: pb2.ProcessingRequest) -> float:
        exchange = Exchange(rig)
        await exchange.tell(request(x_tiercel_deadline_ms="5000"))
        await asyncio.sleep(1.0)
        rig.core.leases.pass_first_tokens()
        found = float(ledger.totals()["large", "e0"][1])
        for message in told:
            await exchange.tell(message)
        await exchange.close()
        return found

    assert await waiting(ended()) > 0.0
    assert await waiting(response(), TRAILERS) == 0.0
    assert await waiting(response(), TRAILERS) > 0.0
    rig.assert_settled()


@scenario
async def test_a_lease_that_ends_first_is_not_ended_twice() -> None:
    """A stream whose gateway hangs may outlive it."""
    rig = gateway_rig()
    exchange = Exchange(rig)
    await exchange.tell(request())
    job = next(iter(rig.core.leases._open.values()))
    rig.core.leases._ends[0] = (0.0, rig.core.leases._ends[0][1])
    rig.core.leases.expire()
    assert job.reason == "LEASE_EXPIRED"
    await exchange.tell(response())
    await exchange.tell(TRAILERS)
    await exchange.close()
    rig.assert_settled()


@scenario
async def test_the_client_is_who_stands_behind_the_gateway() -> None:
    """Told by the gateway; else the gateway itself."""
    rig = gateway_rig()
    message = request(x_request_id="theirs")
    message.attributes["envoy.filters.http.ext_proc"].update({"source.address": "10.1.2.3:555"})
    for each, client in ((message, "ipv4:10.1.2.3"), (request(), "ipv4:127.0.0.1")):
        exchange = Exchange(rig)
        await exchange.tell(each)
        [job] = rig.core.leases._open.values()
        assert job.client == client
        await exchange.reset()
