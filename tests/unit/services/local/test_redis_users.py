"""Redis' users: each service reaches its own keys, by TLS and password, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.cli.app import run
from services.common.clock import SystemClock
from services.common.settings import SettingsError
from services.common.state import keys
from services.common.state.connect import Stores, connect_stores
from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import DeadLetter
from services.load_monitor import coordination
from services.local.redis_users import make_redis_users
from services.trainer import turn
from tests import certificates
from tests.conftest import RedisServer
from trainer.shipped import shipped

ROOTS = certificates.folder() / "redis/ca.crt"


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def by_tls(port: int) -> AsyncIterator[int]:
    """Puts TLS before a Redis that has none; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own = certificates.folder() / "redis"
    context.load_cert_chain(own / "tls.crt", own / "tls.key")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(_relay(reader, inner_writer), _relay(inner_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


@contextlib.asynccontextmanager
async def protected(folder: Path) -> AsyncIterator[dict[str, Stores]]:
    """Runs a Redis with the shipped users; yields each service's stores, by TLS."""
    redis = RedisServer(folder, options=("--aclfile", str(folder / "redis/users.acl")))
    async with by_tls(redis.port) as port:
        make_redis_users(folder, address=f"127.0.0.1:{port}", roots=str(ROOTS))
        acl = folder / "redis/users.acl"
        # The server of the tests, of 6.2, does not tell reading from writing by key.
        acl.write_text(acl.read_text().replace("%R~", "~"))
        redis.start()
        stores = {}
        for service in ("router-inference", "load-monitor", "trainer"):
            line = (folder / service / "redis.env").read_text().strip()
            url = line.removeprefix("TIERCEL_MESH__REDIS_URL=")
            stores[service] = connect_stores(url, clock=SystemClock(), timeout_s=10.0)
        stores["nobody"] = connect_stores(
            f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ROOTS}", clock=SystemClock(), timeout_s=10.0
        )
        yield stores
        for each in stores.values():
            await each.close()
        redis.stop()


async def test_each_service_does_its_work(tmp_path: Path) -> None:
    """Everything that a service asks of Redis is allowed to its user."""
    async with protected(tmp_path) as stores:
        shared = stores["load-monitor"].shared
        assert await shared.acquire_lease(coordination.LEASE_NAME, "m1", 5.0)
        assert await shared.publish_system_state(b"state", 1)
        assert await shared.load_system_state() == b"state"
        await shared.put_peer_reports("m1", b"report")
        assert await shared.take_peer_reports() == [b"report"]
        await shared.save_topology(b"list", 1, 0)
        assert await shared.load_topology() == (1, b"list")
        await shared.set_aside_topology()
        await shared.save_targets(b"targets", 1, 0)
        assert await shared.load_targets() == (1, b"targets")
        await shared.set_aside_targets()
        await shared.save_ratings(b"ratings", 1, 0)
        assert await shared.load_ratings() == (1, b"ratings")
        await shared.set_aside_ratings()
        assert await shared.release_lease(coordination.LEASE_NAME, "m1")
        trainer = stores["trainer"]
        assert await trainer.shared.acquire_lease(turn.LEASE_NAME, "t1", 5.0)
        assert await trainer.shared.release_lease(turn.LEASE_NAME, "t1")
        await trainer.policies.put(b"info", b"snapshot", "dqn", "v1")
        assert len(await trainer.policies.policies()) == 1
        await trainer.policies.activate("dqn", "v1", None, 1)
        router = stores["router-inference"]
        assert await router.policies.get("dqn", "v1") is not None
        assert await router.policies.active() is not None
        await router.experience.append([b"one", b"two"])
        entries = await trainer.experience.read("trainer", "t", 10, 0.0)
        assert [entry.payload for entry in entries] == [b"one", b"two"]
        await trainer.experience.claim_stale("trainer", "t", 0.0, 10)
        assert await trainer.experience.ack("trainer", [entry.entry_id for entry in entries]) == 2
        await trainer.experience.set_aside([DeadLetter(b"bad", "because")])
        await trainer.policies.set_aside("dqn", "v1", b"info", "because")


async def test_each_service_sets_aside_what_stands_in_its_way(tmp_path: Path) -> None:
    """A key of another type; that it may not look at others' keys hinders no service."""
    async with protected(tmp_path) as stores:
        router, monitor, trainer = (
            stores[name] for name in ("router-inference", "load-monitor", "trainer")
        )
        taught: Any = trainer.policies
        counted: Any = monitor.minutes
        await taught._redis.set(keys.EXPERIENCE_STREAM, b"x")
        await router.experience.append([b"one"])
        assert await trainer.experience.count() == 1
        await taught._redis.set(keys.POLICY_ORDER, b"x")
        await trainer.policies.put(b"info", b"snapshot", "dqn", "v1")
        assert len(await trainer.policies.policies()) == 1
        await counted._redis.set(keys.MINUTE_BOOKS, b"x")
        await monitor.minutes.put(keys.MINUTE_BOOKS, 60, b"minute")
        assert await monitor.minutes.read(keys.MINUTE_BOOKS, 0.0, 99.0, 9) == [(60, b"minute")]


async def test_no_service_writes_what_is_anothers(tmp_path: Path) -> None:
    """A router promotes nothing, a monitor teaches nothing, a stranger does nothing at all."""
    async with protected(tmp_path) as stores:
        router, monitor = stores["router-inference"], stores["load-monitor"]
        for forbidden in (
            router.policies.put(b"info", b"snapshot", "dqn", "v1"),
            router.shared.publish_system_state(b"state", 1),
            router.shared.acquire_lease(coordination.LEASE_NAME, "r", 5.0),
            monitor.shared.acquire_lease(turn.LEASE_NAME, "m1", 5.0),
            stores["trainer"].shared.acquire_lease(coordination.LEASE_NAME, "t", 5.0),
            monitor.experience.append([b"one"]),
            monitor.policies.put(b"info", b"snapshot", "dqn", "v1"),
            stores["trainer"].shared.publish_system_state(b"state", 1),
            stores["nobody"].experience.append([b"one"]),
            stores["nobody"].shared.load_system_state(),
        ):
            with pytest.raises(StateUnavailableError):
                await forbidden


def test_a_router_writes_experience_and_nothing_else() -> None:
    """It reads what the trainer keeps, and may neither rename it nor have it end."""
    lines = shipped("deploy", "redis", "users.acl").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("user router-inference "))
    written = {each for each in line.split() if each[0] in "~%" and not each.startswith("%R~")}
    assert written == {"~tiercel:v1:experience:*", "~tiercel:v1:aside:experience:*"}


def test_a_missing_file_of_roots_stops_the_start(tmp_path: Path) -> None:
    """One line with the option and the path, without the password."""
    url = f"rediss://a:secret@127.0.0.1:1/0?ssl_ca_certs={tmp_path}/none.pem"
    with pytest.raises(SettingsError) as caught:
        connect_stores(url, clock=SystemClock())
    (line,) = caught.value.problems
    assert line.startswith(f"mesh.redis_url: ssl_ca_certs: {tmp_path}/none.pem: cannot be read")
    assert "secret" not in line


def test_it_brings_older_users_up_to_date(tmp_path: Path) -> None:
    """After an upgrade ours may do what is new; passwords and users of others stay."""
    command = ["certificates", str(tmp_path), "--redis", "redis:6379"]
    assert run(command) == 0
    target, admin = tmp_path / "redis/users.acl", "user admin on >secret ~* +@all\n"
    made, urls = target.read_text(), (tmp_path / "trainer/redis.env").read_text()
    older = made.replace("~tiercel:v1:targets:* ", "")
    assert older != made
    target.write_text(older + admin)
    assert run(command) == 0
    assert target.read_text() == made + admin
    assert (tmp_path / "trainer/redis.env").read_text() == urls


def test_passwords_are_drawn_once_and_kept_as_hashes(tmp_path: Path) -> None:
    """Running the command again leaves them; the file for Redis holds no password."""
    command = ["certificates", str(tmp_path), "--redis", "redis:6379"]
    assert run(command) == 0
    files = ["redis/users.acl", "trainer/redis.env"]
    before = [(tmp_path / name).read_text() for name in files]
    assert run(command) == 0
    assert [(tmp_path / name).read_text() for name in files] == before
    password = before[1].partition("trainer:")[2].partition("@")[0]
    assert len(password) > 40
    assert password not in before[0]
    assert "resetpass" not in before[0]
    assert "?ssl_ca_certs=/run/tls/ca.crt" in before[1]
    assert run(["certificates", str(tmp_path), "--redis", "nowhere"]) == 2
