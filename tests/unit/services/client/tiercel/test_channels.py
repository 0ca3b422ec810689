"""Which router a call goes to, and who it says it comes from."""

from __future__ import annotations

from typing import Any

import pytest

from services.router_inference.settings import RouterInferenceSettings
from tests import certificates
from tests.fakes.router import FakeRouter, serve
from tiercel import AsyncClient, TiercelError
from tiercel.channels import CHANNEL_OPTIONS, RouterPool

CERTIFICATE = certificates.folder() / "operator/ca.crt"


async def test_an_avoided_router_comes_last_for_a_while() -> None:
    """With all of its connections; the order of attempts follows the clock."""
    now = [0.0]
    pool = RouterPool(["a:1", "b:1"], connections=2, clock=lambda: now[0])
    pool.avoid(pool.connections[0])
    for _ in range(4):
        assert [each.address for each in pool.attempts()] == ["b:1", "a:1"]
    now[0] = 2.0
    assert [each.address for each in pool.attempts()] == ["a:1", "b:1"]
    assert [each.address for each in pool.attempts()] == ["b:1", "a:1"]
    await pool.close()


def test_a_router_that_is_back_is_reached_before_the_next_one_stops() -> None:
    """The longest wait between two attempts to connect fits into what a stopping router serves."""
    longest_s = 1.2 * dict(CHANNEL_OPTIONS)["grpc.max_reconnect_backoff_ms"] / 1e3
    assert longest_s < RouterInferenceSettings().lame_duck_s


async def test_connections_are_used_in_turn_across_the_routers() -> None:
    """Every router and every connection gets the same share of the calls."""
    pool = RouterPool(["a:1", "b:1", "a:1"], connections=3)
    used = [next(pool.attempts()) for _ in range(12)]
    assert [each.address for each in used] == ["a:1", "b:1"] * 6
    assert len(pool.connections) == 6
    assert used[:6] == used[6:] == pool.connections
    await pool.close()


async def test_the_only_router_is_tried_by_every_connection() -> None:
    """Each may lead to another process, and the first one to a new one."""
    pool = RouterPool(["a:1"], connections=2)
    first, second = pool.connections
    assert [*pool.attempts()] == [first, second, first]
    assert [*pool.attempts()] == [second, first, second]
    await pool.close()
    single = RouterPool(["a:1"], connections=1)
    assert [*single.attempts()] == single.connections * 2
    await single.close()


async def test_connections_are_opened_as_calls_need_them() -> None:
    """Each is one of its own at the router, and a client that calls once opens one."""
    router = FakeRouter()
    server, address = await serve(router)
    async with AsyncClient(address, connections=3) as client:
        for count in (1, 2, 3, 3):
            await client.generate("rev:ab=", task="reverse")
            assert len(router.peers) == count
    await server.stop(0)


def test_a_client_needs_a_connection() -> None:
    """None is a mistake, said at once."""
    with pytest.raises(ValueError, match="connections: must be at least 1, got 0"):
        RouterPool(["a:1"], connections=0)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"api_key": "tck_x"}, "plain text"),
        ({"certificate": "a", "key": "b"}, "root_certificates"),
        ({"root_certificates": CERTIFICATE, "key": CERTIFICATE}, "give both or none"),
        ({"root_certificates": __file__}, "root_certificates: .*: is no PEM file"),
    ],
)
async def test_a_key_never_crosses_a_network_in_plain_text(
    options: dict[str, Any], problem: str
) -> None:
    """Neither that nor a half of an identity makes a client."""
    with pytest.raises(ValueError, match=problem):
        AsyncClient("router.example:7410", **options)


@pytest.mark.parametrize(
    ("key", "problem"),
    [("tck_secret\n", ValueError), ("tck_sécret", ValueError), (b"tck_secret", TypeError)],
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(
    key: Any, problem: type[Exception]
) -> None:
    """The line end of its file, for instance: a call would fail with words of gRPC."""
    with pytest.raises(problem, match=r"^api_key: must be ") as caught:
        AsyncClient("127.0.0.1:1", api_key=key)
    assert "cret" not in str(caught.value)


async def test_the_key_goes_along_with_every_call() -> None:
    """All four calls carry it."""
    seen: list[dict[str, str]] = []

    class Router(FakeRouter):
        """Notes metadata."""

        async def Generate(self, request: Any, context: Any) -> Any:
            seen.append(dict(context.invocation_metadata()))
            return await super().Generate(request, context)

        async def Route(self, request: Any, context: Any) -> Any:
            seen.append(dict(context.invocation_metadata()))
            raise NotImplementedError

        ReportOutcome = Route

        async def GenerateStream(self, request: Any, context: Any) -> Any:
            seen.append(dict(context.invocation_metadata()))
            async for response in super().GenerateStream(request, context):
                yield response

    server, address = await serve(Router())
    async with AsyncClient(address, api_key="tck_1") as client:
        await client.generate("rev:ab=", task="reverse")
        async for _ in client.generate_stream("rev:ab=", task="reverse"):
            pass
        for call in (
            client.route(task="reverse", prompt_token_count=1),
            client.report_outcome(request_id="x", quality=1.0),
        ):
            with pytest.raises(TiercelError):
                await call
    await server.stop(0)
    assert [each["authorization"] for each in seen] == ["Bearer tck_1"] * 4
