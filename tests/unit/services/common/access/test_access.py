"""What a service needs before it listens where other machines reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.common.access.access import Access, AccessSettings, load_access
from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.common.access.tls import TlsSettings
from services.common.log import get_logger
from services.common.server import ServerSettings
from services.common.settings import SettingsError
from tests import certificates
from tests.unit.services.common.settings_file import MESH, Write, problems

OPEN = "0.0.0.0:7410"


def access(
    *, keys: str = "", with_tls: bool = False, takes_keys: bool = True, **own: Any
) -> Access:
    """Loads what protects a service."""
    return load_access(
        "router_inference",
        ServerSettings(**{"listen": "127.0.0.1:0", "metrics_listen": "", **own}),
        certificates.tls_settings("router-inference") if with_tls else TlsSettings(),
        AccessSettings(keys_file=keys),
        takes_keys=takes_keys,
        monotonic_s=lambda: 0.0,
        log=get_logger("test"),
    )


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A file with one key."""
    path = tmp_path / "keys.toml"
    write_keys(path, [new_key("shop", [Role.DATA])[0]])
    return str(path)


def test_loopback_needs_nothing() -> None:
    """One port, everybody, no check."""
    assert access() == Access()


@pytest.mark.parametrize("listen", [OPEN, "[::]:7410", "10.0.0.1:7410", "router.example:7410"])
@pytest.mark.parametrize(
    ("own", "missing"),
    [
        ({}, "TLS ([mesh.tls]) and authentication"),
        ({"with_tls": True, "client_certificates": False}, "needs authentication"),
    ],
)
def test_another_address_without_protection_is_refused(
    listen: str, own: dict[str, Any], missing: str
) -> None:
    """The line names key, address, what is missing, and the setting that does without."""
    with pytest.raises(SettingsError) as caught:
        access(listen=listen, **own)
    (line,) = caught.value.problems
    assert line.startswith(f"router_inference.listen: other machines can reach {listen}")
    assert missing in line
    assert "insecure_open_to_network" in line


def test_keys_in_plain_text_are_refused_beyond_loopback(keys: str) -> None:
    """A key that crosses a network in plain text is everybody's."""
    with pytest.raises(SettingsError, match=r"needs TLS \(\[mesh.tls\]\);"):
        access(listen=OPEN, keys=keys)


def test_both_addresses_are_checked() -> None:
    """Operating calls are no less protected than the others."""
    with pytest.raises(SettingsError) as caught:
        access(listen=OPEN, operate_listen="0.0.0.0:7420")
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "router_inference.listen",
        "router_inference.operate_listen",
    ]


def test_the_address_of_gateways_is_checked() -> None:
    """Where there is one."""

    class WithGateways(ServerSettings):
        envoy_listen: str = "0.0.0.0:9002"

    own = WithGateways(listen="127.0.0.1:0", metrics_listen="")
    with pytest.raises(SettingsError) as caught:
        load_access(
            "router_inference",
            own,
            TlsSettings(),
            AccessSettings(),
            monotonic_s=lambda: 0.0,
            log=get_logger("test"),
        )
    (line,) = caught.value.problems
    assert line.startswith("router_inference.envoy_listen: other machines can reach 0.0.0.0:9002")


def test_with_certificates_or_keys_it_starts(keys: str) -> None:
    """TLS beside either tells who calls, and operating calls move to their own address."""
    for found in (
        access(listen=OPEN, with_tls=True),
        access(listen=OPEN, with_tls=True, client_certificates=False, keys=keys),
    ):
        assert found.authenticator is not None
        assert found.is_split


def test_an_open_service_still_keeps_operating_calls_apart() -> None:
    """Whoever comes is served, but not with changes to the mesh."""
    found = access(listen=OPEN, insecure_open_to_network=True)
    assert found.authenticator is None
    assert found.is_split


def test_keys_are_for_the_service_that_clients_call(keys: str) -> None:
    """On loopback the monitor stays open to its router, which has no key."""
    assert access(keys=keys, takes_keys=False) == Access()


def test_metrics_need_leave_of_their_own(write: Write) -> None:
    """Other machines read them only where a setting says so."""
    text = MESH + '[load_monitor]\nmetrics_listen = "0.0.0.0:9411"\n'
    (line,) = problems(write(text))
    assert line.startswith("FILE: load_monitor.metrics_listen: other machines can reach it")


def test_mistakes_of_the_section_are_named(write: Write) -> None:
    """A token file without an issuer, a role that is none, a half of the certificates."""
    text = MESH.replace(
        "[[mesh.tasks]]",
        '[mesh.access]\njwks_file = "x"\ncertificate_roles = { a = ["anyone"], b = ["king"] }\n'
        '[mesh.tls]\ncertificate = "c.pem"\n[[mesh.tasks]]',
        1,
    )
    found = problems(write(text))
    assert [line.split(": ")[1] for line in found] == [
        "mesh.tls.root_certificates",
        "mesh.tls.key",
        "mesh.access.jwt_issuer",
        "mesh.access.certificate_roles.a",
        "mesh.access.certificate_roles.b.0",
    ]
