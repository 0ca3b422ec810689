"""Addresses: what is one, and who can reach it."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from services.common.addresses import AddressPattern, HostPort, matches, parse_address


@pytest.mark.parametrize(
    "text", ["127.0.0.1:8001", "triton-0.mesh:1", "a_b.c:1", f"{'a' * 63}:1", "[::1]:65535"]
)
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    """Names, IPv4 and bracketed IPv6 survive the way through."""
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nowhere", "expected host:port"),
        (":80", "expected host:port"),
        ("http://host:80", "expected host:port"),
        ("[::g]:80", "no IPv6 address"),
        ("[fe80::1%a b]:80", "no IPv6 address"),
        ("[fe80::1%eth0\n]:80", "no IPv6 address"),
        ("gpu\n:80", "expected host:port"),
        ("a..gpu:80", "expected host:port"),
        (f"{'a' * 64}.gpu:80", "expected host:port"),
        ("host:0", "from 1 to 65535"),
        ("host:65536", "from 1 to 65535"),
        ("host:8o", "from 1 to 65535"),
        ("host:٣", "from 1 to 65535"),
    ],
)
def test_what_is_no_address_is_refused(text: str, problem: str) -> None:
    """The message says what is expected."""
    with pytest.raises(ValueError, match=problem):
        parse_address(text)


def test_port_zero_is_for_listening_only() -> None:
    """Any free port makes sense only for who listens."""
    assert parse_address("127.0.0.1:0", allow_port_zero=True) == HostPort("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("localhost", True), ("127.8.9.1", True), ("::1", True), ("0.0.0.0", False), ("h", False)],
)
def test_loopback_is_this_machine_only(host: str, is_loopback: bool) -> None:
    """A name other than localhost may be anybody."""
    assert HostPort(host, 1).is_loopback is is_loopback


@pytest.mark.parametrize(
    ("pattern", "address", "is_one"),
    [
        ("*.gpu:8001", "a.gpu:8001", True),
        ("*.gpu:8001", "a.gpu:8002", False),
        ("*.gpu:8001", "a.gpuX:8001", False),
        ("*.gpu:8001", "evil.example:8001", False),
        ("127.0.0.1:*", "127.0.0.1:9", True),
        ("127.0.0.1:*", "127.0.0.11:9", False),
        ("[::1]:*", "[::1]:9", True),
        ("[::1]:*", "[0:0::1]:9", True),
        ("[fd00:1::*]:8001", "[fd00:1::5]:8001", True),
        ("[FD00:0001::*]:8001", "[fd00:1:0:0::5]:8001", True),
        ("[fd00:1::*]:8001", "[fd00:2::5]:8001", False),
        ("[fd00:1::*]:8001", "[fd00:1::5]:8002", False),
        ("[fd00:1::*]:8001", "[fd00:1::5%eth0]:8001", False),
        ("[fd00:1::*]:8001", "fd00:1::5.evil.example:8001", False),
        ("[fe80::1%eth0]:80", "[fe80:0::1%eth0]:80", True),
        ("[*]:80", "[2001:db8::1]:80", True),
        ("[*]:80", "a.b:80", False),
        ("10.0.*:80", "10.0.3.4:80", True),
        ("10.0.*:80", "10.0.evil.example:80", False),
        ("10.0.0.1:80", "10x0.0.1:80", False),
        ("gpu-*:80", "gpu-1:80", True),
        ("gpu-*:80", "gpu-1.evil.example:80", False),
        ("gpu*-*:80", "gpu.evil.xn--e:80", False),
        ("gpu-*.svc:80", "gpu-1.a.svc:80", True),
        ("*:80", "a.b:80", True),
    ],
)
def test_a_star_stands_for_any_text(pattern: str, address: str, is_one: bool) -> None:
    """Everything else stands for itself."""
    assert matches(pattern, address) is is_one


@pytest.mark.parametrize(
    "text",
    ["", "*", "host", "ho st:1", "*.gpu:port", "*:99999", "[gpu*]:1", "[1:2:*", "[::1::*]:1"],
)
def test_a_pattern_has_a_host_and_a_port(text: str) -> None:
    """What could match no address is refused."""
    with pytest.raises(ValidationError):
        TypeAdapter(AddressPattern).validate_python(text)
