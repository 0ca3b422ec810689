"""A Triton of the user's own, looked at from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from services.local.errors import CommandError, InputError
from services.local.foreign import Foreign, Spoken, look_at
from tests.fakes.openai_server import openai_server
from tests.fakes.triton import FakeTriton, Script


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """An endpoint whose models answer with eight tokens."""
    fake = await FakeTriton(default=Script(tokens=("a",) * 8)).start()
    yield fake
    await fake.stop()


@pytest.fixture(autouse=True)
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listens at Triton's default port of metrics is not ours."""

    async def nothing(*_: str) -> bool:
        return False

    monkeypatch.setattr("services.local.probes.http_ok", nothing)


async def look(triton: FakeTriton, tiers: Mapping[str, str] | None = None) -> Foreign:
    """What is found at one address."""
    return await look_at([triton.address], tiers or {})


async def test_sizes_in_names_say_the_order(triton: FakeTriton) -> None:
    """Billions are more than millions; names that no tier may have are changed."""
    triton.configs = {"Chat-13B": {}, "chat-350m": {}, "chat-1.3b": {}}
    found = await look(triton)
    assert found.tiers == ("chat-350m", "chat-1-3b", "chat-13b")
    (endpoint,) = found.endpoints
    assert endpoint.models == {"chat-1-3b": "chat-1.3b", "chat-13b": "Chat-13B"}
    assert any("sizes in the models' names" in each for each in found.guesses)
    assert any("share one GPU" in each for each in found.guesses)
    assert any("64 requests at once" in each for each in found.guesses)


async def test_without_sizes_the_slowest_counts_as_the_best(triton: FakeTriton) -> None:
    """Told by the time per token, and said to be a guess; the profile has that time."""
    triton.configs = {"zebra": {"tiercel_max_batch": "16"}, "ant": {}}
    triton.scripts["ant"] = Script(tokens=("a",) * 8, step_s=0.01)
    found = await look(triton)
    assert found.tiers == ("zebra", "ant")
    assert found.profile.tiers["ant"].step_s > 0.008
    assert found.profile.tiers["zebra"].max_batch == 16
    assert found.profile.source == "assumed"
    assert any("order of the tiers is that of their speed" in each for each in found.guesses)


async def test_tiers_that_are_given_are_taken_in_their_order(triton: FakeTriton) -> None:
    """Though the first is slower, which no profile may say."""
    triton.configs = {"one": {}, "two": {}, "three": {}}
    triton.scripts["one"] = Script(tokens=("a",) * 8, step_s=0.01)
    found = await look(triton, {"low": "one", "high": "two"})
    assert found.tiers == ("low", "high")
    assert found.endpoints[0].models == {"low": "one", "high": "two"}
    assert found.profile.tiers["high"].step_s == found.profile.tiers["low"].step_s
    assert not any("order" in each for each in found.guesses)


async def test_models_that_name_tier_and_device_are_believed(triton: FakeTriton) -> None:
    """An endpoint for each device."""
    triton.configs = {
        f"{device}_{tier}": {"tiercel_tier": tier, "tiercel_device": device}
        for device in ("gpu0", "gpu1") for tier in ("small", "large")
    }  # fmt: skip
    found = await look(triton)
    assert set(found.tiers) == {"small", "large"}
    assert [each.device for each in found.endpoints] == ["gpu0", "gpu1"]
    assert found.endpoints[1].models == {"small": "gpu1_small", "large": "gpu1_large"}


async def test_what_a_server_says_that_cannot_be_counts_as_not_said(triton: FakeTriton) -> None:
    """A tier or a device that is no name, a limit that is no number or beyond a profile's."""
    triton.configs = {
        "a": {"tiercel_tier": "A B", "tiercel_device": "GPU 0", "tiercel_max_batch": "\u00b2"},
        "b": {"tiercel_tier": "x" * 65, "tiercel_device": "\n", "tiercel_max_batch": "999999"},
    }
    found = await look(triton, {"low": "a", "high": "b"})
    assert [each.device for each in found.endpoints] == [""]
    assert found.profile.tiers["low"].max_batch == 64
    assert found.profile.tiers["high"].max_batch == 65_536
    assert set((await look(triton)).tiers) == {"a", "b"}


@pytest.mark.parametrize(
    ("models", "why"),
    [
        (["chat.7b", "chat-7b"], "would be one tier"),
        (["\u6a21\u578b"], "none is for '\u6a21\u578b'"),
    ],
)
async def test_models_that_give_no_names_of_their_own_are_named(
    triton: FakeTriton, models: list[str], why: str
) -> None:
    """One of two would be lost without a word, and a tier without a name is none."""
    triton.configs = {name: {} for name in models}
    with pytest.raises(InputError, match=why) as error:
        await look(triton)
    assert str(error.value).startswith(f"--tier: give names for the models at {triton.address}: ")


async def test_models_that_cannot_serve_are_left_out_or_named(triton: FakeTriton) -> None:
    """By the inputs that they lack."""
    triton.configs = {"resnet": {"inputs": "image"}, "chat": {}}
    assert (await look(triton)).tiers == ("chat",)
    with pytest.raises(InputError, match="model 'resnet' has no input sampling_parameters, stream"):
        await look(triton, {"a": "resnet"})
    with pytest.raises(InputError, match="no model 'nosuch' that can serve; there are: chat"):
        await look(triton, {"a": "nosuch", "b": "chat"})
    triton.configs = {"resnet": {"inputs": "image"}}
    with pytest.raises(CommandError, match="needs the inputs sampling_parameters"):
        await look(triton)


async def test_a_server_that_is_not_there_is_named() -> None:
    """By its address, with what may be wrong: the port, or what the server speaks."""
    with pytest.raises(CommandError, match=r"Triton at 127\.0\.0\.1:1: .* needs --openai"):
        await look_at(["127.0.0.1:1"], {})
    with pytest.raises(CommandError, match=r"at 127\.0\.0\.1:1: .* A Triton is asked without"):
        await look_at(["127.0.0.1:1"], {}, Spoken())


async def test_servers_that_speak_openai_are_asked_their_way() -> None:
    """One for each size; the endpoints say what they speak and where their key is."""
    async with (
        openai_server(models=("Chat-7B",), api_key="k") as large,
        openai_server(models=("chat-500m",), api_key="k") as small,
    ):
        found = await look_at([large.address, small.address], {}, Spoken("SERVER_KEY", "k"))
        assert found.tiers == ("chat-500m", "chat-7b")
        first = found.endpoints[0]
        assert (first.name, first.address, first.protocol) == ("server-0", large.address, "openai")
        assert (first.models, first.api_key_variable) == ({"chat-7b": "Chat-7B"}, "SERVER_KEY")
        with pytest.raises(CommandError, match=r"another key$"):
            await look_at([large.address], {}, Spoken())
        with pytest.raises(InputError, match="no model 'nope'"):
            await look_at([large.address], {"small": "nope"}, Spoken("", "k"))
