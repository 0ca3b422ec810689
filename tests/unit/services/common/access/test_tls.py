"""Certificates from files: checked at the start, renewed while the process runs."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common.access.tls import Tls, TlsSettings, load_tls, read_certificates
from services.common.channels import connection_of, open_channel
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.settings import SettingsError
from services.local.certificates import make_certificates
from tests import certificates
from tests.waiting import LIMIT_S

LOG = get_logger("test")
NOW_S = SystemClock().wall_ns() / 1e9
DAY_S = 86_400.0


def tls(name: str, where: Path | None = None, now: Callable[[], float] = lambda: 0.0) -> Tls:
    """Returns the certificates of a name."""
    settings = certificates.tls_settings(name, where)
    return Tls(settings, monotonic_s=now, wall_s=time.time, log=LOG)


@contextlib.asynccontextmanager
async def serving(held: Tls, *, asks: bool = True) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serves health by TLS; yields address and what callers' certificates are seen."""
    seen: list[bytes] = []

    class Servicer(health.aio.HealthServicer):  # type: ignore[misc]
        async def Check(self, request: object, context: grpc.aio.ServicerContext) -> object:  # type: ignore[type-arg]
            seen.extend(context.peer_identities() or ())
            return health_pb2.HealthCheckResponse(status=1)

    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Servicer(), server)
    credentials = held.server_credentials(with_client_certificates=asks)
    number = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{number}", seen
    await server.stop(0)


async def check(channel: grpc.aio.Channel) -> None:
    """Makes one call."""
    await health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(), timeout=LIMIT_S
    )


async def test_both_sides_show_their_certificates() -> None:
    """The server knows the caller by the names in its certificate."""
    async with (
        serving(tls("load-monitor")) as (address, seen),
        open_channel(address, tls=tls("router-inference")) as channel,
    ):
        await check(channel)
    assert seen[0] == b"router-inference"


@pytest.mark.parametrize("caller", ["plain text", "roots alone", "another root"])
async def test_callers_without_a_certificate_of_the_mesh_are_refused(
    caller: str, tmp_path: Path
) -> None:
    """Neither plain text, nor no certificate, nor a stranger's reaches the service."""
    own = certificates.folder() / "operator"
    make_certificates(tmp_path, names=["operator"])
    channels = {
        "plain text": lambda to: grpc.aio.insecure_channel(to),
        "roots alone": lambda to: grpc.aio.secure_channel(
            to, grpc.ssl_channel_credentials((own / "ca.crt").read_bytes())
        ),
        "another root": lambda to: grpc.aio.secure_channel(
            to,
            grpc.ssl_channel_credentials(
                (own / "ca.crt").read_bytes(),
                (tmp_path / "operator/tls.key").read_bytes(),
                (tmp_path / "operator/tls.crt").read_bytes(),
            ),
        ),
    }
    async with serving(tls("load-monitor")) as (address, seen), channels[caller](address) as one:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(one)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert seen == []


async def test_a_server_of_another_root_is_not_called(tmp_path: Path) -> None:
    """Who pretends to be the monitor gets no call."""
    make_certificates(tmp_path, names=["load-monitor"])
    async with (
        serving(tls("load-monitor", tmp_path), asks=False) as (address, seen),
        open_channel(address, tls=tls("router-inference")) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError):
            await check(channel)
    assert seen == []


@pytest.mark.parametrize(
    ("name", "is_its"),
    [("triton", True), ("triton-0.triton", True), ("triton.tiercel.svc", True), ("redis", False)],
)
async def test_a_server_is_known_by_every_name_it_is_called_by(name: str, is_its: bool) -> None:
    """Pods of a set included; another one's name is not its."""
    options: Any = [("grpc.ssl_target_name_override", name)]
    async with (
        serving(tls("triton")) as (address, seen),
        open_channel(address, options, tls=tls("router-inference")) as channel,
    ):
        if is_its:
            await check(channel)
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await check(channel)
    assert bool(seen) is is_its


async def test_renewed_certificates_are_taken_in(tmp_path: Path) -> None:
    """Server and open channel use new files without a restart, even under a new root."""
    for name in ("load-monitor", "router-inference"):
        shutil.copytree(certificates.folder() / name, tmp_path / name)
    now = [0.0]
    server = tls("load-monitor", tmp_path, lambda: now[0])
    caller = tls("router-inference", tmp_path, lambda: now[0])
    old = server.current()
    async with serving(server) as (address, seen), open_channel(address, tls=caller) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        await stub.Check(request, timeout=LIMIT_S)
        connection = connection_of(channel)
        before = connection()
        assert connection() is before
        make_certificates(tmp_path, names=["load-monitor", "router-inference"])
        now[0] = 10.0
        await stub.Check(request, timeout=LIMIT_S)
        assert connection() is not before
        assert server.current() is not old
        assert caller.current().roots == server.current().roots != old.roots
    assert seen.count(b"router-inference") == 2


def test_files_that_do_not_fit_together_leave_the_old_ones_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A key of another certificate is said once, with its file."""
    shutil.copytree(certificates.folder() / "trainer", tmp_path / "trainer")
    now = [0.0]
    held = tls("trainer", tmp_path, lambda: now[0])
    before = held.current()
    shutil.copy(certificates.folder() / "redis/tls.key", tmp_path / "trainer/tls.key")
    for now[0] in (10.0, 20.0, 30.0):
        assert held.current() is before
    assert [record.getMessage() for record in caplog.records] == ["certificates_refused"]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("root_certificates", None, "cannot be read: No such file"),
        ("certificate", b"nonsense", "is no PEM file"),
        ("key", b"x" * 1_100_000, "is no PEM file"),
        ("root_certificates", b"-----BEGIN CERTIFICATE-----\nQUJD\n", "holds no certificate"),
        ("certificate", b"-----BEGIN CERTIFICATE-----\nQUJD\n", "OpenSSL says"),
        ("key", "redis", "is not the key of"),
    ],
)
def test_bad_files_are_one_line_with_key_and_path(
    file: str, content: bytes | str | None, problem: str, tmp_path: Path
) -> None:
    """The start is refused with what is wrong with which file."""
    path = tmp_path / "file.pem"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        shutil.copy(certificates.folder() / content / "tls.key", path)
    settings = certificates.tls_settings("trainer").model_copy(update={file: str(path)})
    with pytest.raises(SettingsError) as caught:
        read_certificates(settings, NOW_S)
    (line,) = caught.value.problems
    assert problem in line
    assert f"mesh.tls.{file}: {path}" in line


@pytest.mark.parametrize(
    ("after_s", "file", "problem"),
    [
        (366.0 * DAY_S, "certificate", "expired on 20"),
        (-0.2 * DAY_S, "certificate", "is not valid before 20"),
        (-0.2 * DAY_S, "root_certificates", "is not valid before 20"),
        (3_660.0 * DAY_S, "root_certificates", "expired on 20"),
    ],
)
def test_certificates_that_do_not_hold_now_are_one_line_each(
    after_s: float, file: str, problem: str
) -> None:
    """With file and date, instead of handshakes that fail from then on."""
    settings = certificates.tls_settings("trainer")
    with pytest.raises(SettingsError) as caught:
        read_certificates(settings, NOW_S + after_s)
    (line,) = (each for each in caught.value.problems if each.startswith(f"mesh.tls.{file}: "))
    assert f"{getattr(settings, file)}: {problem}" in line


def test_a_root_that_has_ended_may_stand_beside_its_successor(tmp_path: Path) -> None:
    """A bundle is renewed before the old root is taken out."""
    settings = certificates.tls_settings("trainer")
    bundle = tmp_path / "roots.pem"
    old = tmp_path / "old.pem"
    certificates.write_certificate(old, start="1950-01-01", end="2000-01-01")
    bundle.write_bytes(old.read_bytes() + Path(settings.root_certificates).read_bytes())
    changed = settings.model_copy(update={"root_certificates": str(bundle)})
    assert read_certificates(changed, NOW_S).roots == bundle.read_bytes()


def test_roots_may_have_comments_in_any_alphabet(tmp_path: Path) -> None:
    """As bundles of public roots have them."""
    settings = certificates.tls_settings("trainer")
    path = tmp_path / "roots.pem"
    path.write_text("# Főtanúsítvány\n" + Path(settings.root_certificates).read_text())
    changed = settings.model_copy(update={"root_certificates": str(path)})
    assert "Főtanúsítvány".encode() in read_certificates(changed, NOW_S).roots


def test_a_file_that_goes_while_it_is_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL reads the files again by their names."""

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("ssl.SSLContext.load_cert_chain", gone)
    with pytest.raises(SettingsError, match="No such file"):
        read_certificates(certificates.tls_settings("trainer"), NOW_S)


def test_without_files_there_is_plain_text() -> None:
    """TLS is off unless files are named."""
    assert load_tls(TlsSettings(), monotonic_s=lambda: 0.0, wall_s=lambda: NOW_S, log=LOG) is None
