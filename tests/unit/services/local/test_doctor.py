"""What a doctor finds, and what he says to do."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from services.common.state.redis_connection import RedisConnection
from services.local.certificates import make_certificates
from services.local.doctor import OLD_DAYS, examine
from services.local.findings import BAD, GOOD, ODD, Finding
from services.local.target import Target
from tests.fakes.openai_server import Script, openai_server
from tests.fakes.router import FakeRouter, serve
from tests.fakes.triton import FakeTriton
from tiercel.common.v1 import common_pb2

PROFILE = """name = "p"
source = "assumed"
[tiers.small]
step_s = 0.01
per_sequence_s = 0.0
per_prompt_token_s = 0.0
"""
QUALITY = 'name = "q"\nsource = "measured"\n[quality.chat]\nsmall = 1.0\n'


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """A Triton that has the model chat-7b."""
    fake = await FakeTriton(configs={"chat-7b": {}}).start()
    yield fake
    await fake.stop()


def settings(folder: Path, address: str, model: str = "chat-7b", more: str = "") -> Path:
    """Writes the files of a mesh with one tier."""
    (folder / "p.toml").write_text(PROFILE)
    (folder / "q.toml").write_text(QUALITY)
    path = folder / "tiercel.toml"
    path.write_text(
        f'[mesh]\ntiers = ["small"]\nprofile = "p.toml"\nquality = "q.toml"\n{more}\n'
        '[[mesh.tasks]]\nname = "chat"\ndefault_deadline_s = 1.0\n'
        f'[[mesh.endpoints]]\nname = "e"\naddress = "{address}"\ntiers = ["small"]\n'
        f'models = {{ small = "{model}" }}\n'
    )
    return path


def of(found: list[Finding], subject: str) -> Finding:
    """The one finding about a subject."""
    (finding,) = (each for each in found if each.subject.startswith(subject))
    return finding


async def test_what_is_well_is_said_and_what_is_assumed_is_odd(
    triton: FakeTriton, tmp_path: Path
) -> None:
    """Nothing bad; everything odd or bad has an advice, everything good none."""
    found = await examine(settings(tmp_path, triton.address), Target())
    assert of(found, "endpoint e").level == GOOD
    assert of(found, "settings").level == of(found, "quality").level == GOOD
    assert (of(found, "profile").level, of(found, "profile").advice) == (
        ODD, "measure it: tiercel calibrate",
    )  # fmt: skip
    assert all(bool(each.advice) == (each.level != GOOD) for each in found)


async def test_a_profile_that_is_old_or_off_is_odd(triton: FakeTriton, tmp_path: Path) -> None:
    """By its file's date, and by what routers have seen, with the tier and the range."""
    path = settings(tmp_path, triton.address)
    measured = PROFILE.replace("assumed", "measured")
    for days, level in ((1, GOOD), (OLD_DAYS + 1, ODD)):
        moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        (tmp_path / "p.toml").write_text(
            f'measured_time = {moment:%Y-%m-%dT%H:%M:%SZ}\nmethod = "hand"\n{measured}'
        )
        found = of(await examine(path, Target()), "profile")
        said = f"is measured {days} day{'s' if days > 1 else ''} ago by hand"
        assert (found.level, found.text) == (level, said)
    fake = FakeRouter()
    state = common_pb2.ProfileState(profile="p", source="measured")
    state.errors.add(tier="small", error=-0.1, compared_count=50)
    fake.profiles = [state]
    server, address = await serve(fake)
    try:
        assert of(await examine(None, Target((address,))), "profile p").level == GOOD
        state.errors.add(tier="small", range="idle device", error=-0.25, compared_count=30)
        found = of(await examine(None, Target((address,))), "profile p")
        assert (found.level, found.text) == (
            ODD, "small, idle device: predicted 0.75 times what was observed (30 answers)",
        )  # fmt: skip
    finally:
        await server.stop(0)


async def test_the_section_of_every_service_is_read(triton: FakeTriton, tmp_path: Path) -> None:
    """What any of them would refuse at its start is bad."""
    path = settings(tmp_path, triton.address)
    good = path.read_text()
    for section in ("router_inference", "load_monitor", "trainer", "openai_door"):
        path.write_text(f"{good}[{section}]\ngrace_s = -1\n")
        finding = of(await examine(path, Target()), "settings")
        assert finding.level == BAD
        assert f"{section}.grace_s" in finding.text


async def test_a_model_that_is_not_there_is_named_with_those_that_are(
    triton: FakeTriton, tmp_path: Path
) -> None:
    """The advice says where to name it."""
    finding = of(await examine(settings(tmp_path, triton.address, "chat-8b"), Target()), "endpoint")
    assert finding.level == BAD
    assert "no model 'chat-8b'" in finding.text
    assert finding.advice.endswith("loaded: chat-7b")


async def test_models_that_were_swapped_are_odd(triton: FakeTriton, tmp_path: Path) -> None:
    """A model that says which tier it is is believed."""
    triton.configs["chat-7b"]["tiercel_tier"] = "large"
    finding = of(await examine(settings(tmp_path, triton.address), Target()), "endpoint")
    assert (finding.level, "swapped" in finding.advice) == (ODD, True)


async def test_a_router_is_no_endpoint(triton: FakeTriton, tmp_path: Path) -> None:
    """It speaks Triton's protocol, and would ask itself."""
    triton.configs["chat-7b"]["backend"] = "tiercel"
    finding = of(await examine(settings(tmp_path, triton.address), Target()), "endpoint")
    assert (finding.level, finding.text) == (BAD, "is a router of Tiercel, not a Triton")


async def test_a_router_of_another_mesh_is_bad(triton: FakeTriton, tmp_path: Path) -> None:
    """It may have taken the port that the settings name: its tasks give it away."""
    fake = FakeRouter()
    server, address = await serve(fake)
    try:
        target = Target((address,))
        found = of(await examine(settings(tmp_path, triton.address), target), "router")
        assert (found.level, found.text) == (
            BAD, "serves other tasks than the settings: reverse, sort",
        )  # fmt: skip
        assert "router_inference.listen" in found.advice
        fake.deadlines_s = {"chat": 1.0}
        found = of(await examine(settings(tmp_path, triton.address), target), "router")
        assert "other tasks" not in found.text
    finally:
        await server.stop(0)


async def test_who_answers_otherwise_is_not_to_be_started() -> None:
    """At the port of another part, for instance, or to a caller who may not ask."""
    server, address = await serve(FakeRouter())
    try:
        found = await examine(None, Target(load_monitor=address, trainer="127.0.0.1:1"))
    finally:
        await server.stop(0)
    assert "it is no load monitor" in of(found, "monitor").text
    assert of(found, "monitor").advice.startswith("it runs: look at the address")
    assert of(found, "trainer").advice.startswith("start it")


async def test_what_does_not_answer_is_bad(tmp_path: Path) -> None:
    """Endpoint, Redis and services, each with what to start."""
    path = settings(tmp_path, "127.0.0.1:1", more='redis_url = "redis://127.0.0.1:1/0"')
    target = Target(("127.0.0.1:1",), "127.0.0.1:1", "127.0.0.1:1")
    found = await examine(path, target)
    for subject, word in (
        ("endpoint e", "start Triton"), ("Redis", "start it"), ("router", "serve router"),
        ("monitor", "serve monitor"), ("trainer", "serve trainer"),
    ):  # fmt: skip
        assert (of(found, subject).level, word in of(found, subject).advice) == (BAD, True)


async def test_mistakes_of_all_services_settings_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a variable that nobody follows."""
    path = settings(tmp_path, "127.0.0.1:1")
    path.write_text(path.read_text() + '[trainer]\nlisten = "x"\n[router_inference]\nseed = -1\n')
    monkeypatch.setenv("TIERCEL_LOAD_MONITOR_LISTEN", "127.0.0.1:1")
    found = await examine(path, Target())
    texts = [each.text for each in found if each.level == BAD]
    assert len(texts) == 2
    assert any("trainer.listen" in text for text in texts)
    assert any("router_inference.seed" in text for text in texts)
    assert of(found, "environment").advice == "name it TIERCEL_LOAD_MONITOR__LISTEN"


@pytest.mark.parametrize(
    ("version", "ahead_s", "level", "said"),
    [
        ("7.2.4", 0.1, GOOD, "is 7.2.4"),
        ("7.2.4", -42.0, BAD, "42.0 s behind this one"),
        ("5.0.1", 0.0, BAD, "is 5.0.1"),
        ("8.0-m02", 0.0, GOOD, "is 8.0-m02"),
        ("unstable", 0.0, BAD, "is unstable"),
        ("", 0.0, BAD, "is of an unknown version"),
    ],
)
async def test_redis_is_told_by_its_version_and_its_clock(
    version: str, ahead_s: float, level: str, said: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """An old one lacks commands; clocks that differ make stamps lie."""

    async def its_version(_: RedisConnection) -> str:
        return version

    async def its_clock_s(_: RedisConnection) -> float:
        return datetime.datetime.now(datetime.UTC).timestamp() + ahead_s

    monkeypatch.setattr(RedisConnection, "version", its_version)
    monkeypatch.setattr(RedisConnection, "clock_s", its_clock_s)
    path = settings(tmp_path, "127.0.0.1:1", more='redis_url = "redis://127.0.0.1:1/0"')
    finding = of(await examine(path, Target()), "Redis")
    assert finding.level == level
    assert said in finding.text


async def test_a_certificate_is_told_by_the_days_it_has_left(tmp_path: Path) -> None:
    """One that ends soon is odd, one that does not fit is bad."""
    make_certificates(tmp_path / "tls", days=3)
    files = tmp_path / "tls" / "router-inference"
    tls = f'tls = {{ root_certificates = "{files}/ca.crt", certificate = "{files}/tls.crt", key = "{files}/tls.key" }}'  # noqa: E501
    path = settings(tmp_path, "127.0.0.1:1", more=tls)
    finding = of(await examine(path, Target()), "TLS")
    assert (finding.level, "ends in 3 days" in finding.text) == (ODD, True)
    (files / "tls.key").write_text("no key")
    assert of(await examine(path, Target()), "TLS").level == BAD


def openai_settings(folder: Path, address: str, *, key: str = "") -> Path:
    """Writes the files of a mesh with one tier, whose server speaks OpenAI."""
    path = settings(folder, address, "m")
    named = f'api_key_variable = "{key}"\n' if key else ""
    path.write_text(f'{path.read_text()}protocol = "openai"\n{named}')
    return path


async def test_a_server_that_speaks_openai_is_asked_for_a_token(tmp_path: Path) -> None:
    """Good; a request that it refuses; a model that is not there; none that answers."""
    async with openai_server() as server:
        path = openai_settings(tmp_path, server.address)
        assert of(await examine(path, Target()), "endpoint").level == GOOD
        server.default = Script(status=422)
        finding = of(await examine(path, Target()), "endpoint")
        assert finding.level == BAD
        assert "says 422" in finding.text
        server.models = ("chat-7b",)
        finding = of(await examine(path, Target()), "endpoint")
        assert finding.advice.endswith("loaded: chat-7b")
    finding = of(await examine(path, Target()), "endpoint")
    assert (finding.level, "cannot connect" in finding.text) == (BAD, True)


async def test_keys_of_servers_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is missing, one that is refused, one that is right; none is shown."""
    async with openai_server(api_key="right") as server:
        path = openai_settings(tmp_path, server.address, key="SERVER_KEY")
        finding = of(await examine(path, Target()), "API keys")
        assert (finding.level, "SERVER_KEY: is not set" in finding.text) == (BAD, True)
        for key, level in (("wrong-secret", BAD), ("right", GOOD)):
            monkeypatch.setenv("SERVER_KEY", key)
            finding = of(await examine(path, Target()), "endpoint")
            assert finding.level == level
            assert "secret" not in finding.text


async def test_what_would_cross_a_network_in_plain_text_is_bad_and_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services would refuse to start; the key is shown to nobody until a setting gives leave."""
    monkeypatch.setenv("SERVER_KEY", "k")
    async with openai_server(api_key="k") as server:
        far = server.address.replace("127.0.0.1", "0.0.0.0")  # no loopback, and yet it answers here
        path = openai_settings(tmp_path, far, key="SERVER_KEY")
        found = await examine(path, Target())
        finding = of(found, "plain text")
        assert (finding.level, far in finding.text) == (BAD, True)
        assert "[mesh.tls]" in finding.advice
        assert not [each for each in found if each.subject.startswith("endpoint")]
        leave = "[router_inference]\ninsecure_open_to_network = true\n"
        path.write_text(f"{path.read_text()}{leave}")
        assert of(await examine(path, Target()), "endpoint").level == GOOD
