"""Servers that speak OpenAI by TLS, each side by its certificate, and the key that they want."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.fleet import EndpointProtocol
from services.calibrate.tiers import LiveTier, clients_of, with_facts
from services.common.access.tls import Tls, TlsSettings
from services.common.log import get_logger
from services.common.openai.client import OpenAIClient
from services.common.tiers.errors import TierUnavailableError
from services.local.certificates import make_certificates
from tests import certificates
from tests.fakes.clock import FakeClock
from tests.fakes.openai_server import FakeOpenAI
from tests.waiting import LIMIT_S


@asynccontextmanager
async def serving(tls: TlsSettings, api_key: str = "") -> AsyncIterator[FakeOpenAI]:
    """Runs a server that asks callers for certificates of its own root."""
    server = await FakeOpenAI(tls=tls, api_key=api_key).start()
    yield server
    await server.stop()


def held(settings: TlsSettings, clock: FakeClock) -> Tls:
    """Returns the certificates of a caller."""
    made_s = Path(settings.certificate).stat().st_mtime + 60.0
    return Tls(
        settings, monotonic_s=clock.monotonic_s, wall_s=lambda: made_s, log=get_logger("test")
    )


async def answer(client: OpenAIClient) -> str:
    """Returns the text of an answer."""
    return "".join(
        [each.text async for each in client.generate("m", "hello", 8, timeout_s=LIMIT_S)]
    )


async def test_both_sides_show_certificates_and_the_key_goes_along() -> None:
    """An answer, a list of models, and a connection that is kept."""
    tls = held(certificates.tls_settings("router-inference"), FakeClock())
    async with (
        serving(certificates.tls_settings("triton"), api_key="k") as server,
        OpenAIClient(
            server.address, tls=tls, api_key=lambda: "k", most_idle_connections=1
        ) as client,
    ):
        assert [await answer(client) for _ in range(2)] == ["abc", "abc"]
        assert await client.loaded_models() == ("m",)
        assert client.connection_count == 1
    assert {each.headers["authorization"] for each in server.received} == {"Bearer k"}


@pytest.mark.parametrize("kind", ["plain text", "another root"])
async def test_a_caller_that_the_server_does_not_know_is_refused(tmp_path: Path, kind: str) -> None:
    """It gets no answer, and the server no prompt."""
    make_certificates(tmp_path)
    strange = held(certificates.tls_settings("router-inference", tmp_path), FakeClock())
    async with (
        serving(certificates.tls_settings("triton")) as server,
        OpenAIClient(server.address, tls=None if kind == "plain text" else strange) as client,
    ):
        with pytest.raises(TierUnavailableError):
            await answer(client)
        assert client.connection_count == 0
    assert server.received == []


async def test_a_server_of_another_root_gets_no_prompt_and_no_key(tmp_path: Path) -> None:
    """Though it would take any caller that has a certificate of the mesh."""
    make_certificates(tmp_path)
    own = tmp_path / "triton"
    strange = TlsSettings(
        root_certificates=str(certificates.folder() / "triton" / "ca.crt"),
        certificate=str(own / "tls.crt"),
        key=str(own / "tls.key"),
    )
    tls = held(certificates.tls_settings("router-inference"), FakeClock())
    async with (
        serving(strange, api_key="k") as server,
        OpenAIClient(server.address, tls=tls, api_key=lambda: "k") as client,
    ):
        with pytest.raises(TierUnavailableError, match="cannot connect"):
            await answer(client)
    assert server.received == []


async def test_renewed_certificates_are_shown_by_the_next_connection(tmp_path: Path) -> None:
    """Files that were replaced, here under another root, are taken in without a restart."""
    shutil.copytree(certificates.folder(), tmp_path / "used")
    make_certificates(tmp_path / "new")
    clock = FakeClock()
    async with serving(certificates.tls_settings("triton")) as server:
        settings = certificates.tls_settings("router-inference", tmp_path / "used")
        async with OpenAIClient(server.address, tls=held(settings, clock)) as client:
            assert await answer(client) == "abc"
            await server.stop()
            server.tls = certificates.tls_settings("triton", tmp_path / "new")
            await server.start()
            with pytest.raises(TierUnavailableError, match="cannot connect"):
                await answer(client)
            for name in ("ca.crt", "tls.crt", "tls.key"):
                place = Path("router-inference", name)
                (tmp_path / "used" / place).unlink()
                shutil.copy(tmp_path / "new" / place, tmp_path / "used" / place)
            await clock.advance(60.0)
            assert await answer(client) == "abc"


async def test_a_measurement_asks_by_tls_too() -> None:
    """`tiercel calibrate` and `tiercel quality` reach what routers reach."""
    tls = held(certificates.tls_settings("operator"), FakeClock())
    async with serving(certificates.tls_settings("triton"), api_key="k") as server:
        tier = LiveTier(
            "small", "m", server.address, "e", "", protocol=EndpointProtocol.OPENAI, api_key="k",
            tls=tls,
        )  # fmt: skip
        (found,) = await with_facts([tier])
        assert found.model == "m"
        async with clients_of([found]) as clients:
            asked = clients[server.address].generate("m", "hello", 8, timeout_s=LIMIT_S)
            assert "".join([each.text async for each in asked]) == "abc"
