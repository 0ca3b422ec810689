"""Network addresses in settings: `host:port` text, checked once and typed."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pydantic import AfterValidator

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_LONGEST_LABEL = 63
_ZONE = re.compile(r"(%[A-Za-z0-9._-]{1,64})?")
_LEADING_ZEROS = re.compile(r"\b0+(?=[0-9a-f])")
_HIGHEST_PORT = 65_535
_PORT_DIGITS = 5
_REDIS_FORM = (
    "expected redis://[user:password@]host[:port][/database], rediss://... with TLS, or"
    " unix:///path[?db=number]"
)
_LONGEST_URL = 1_024
_SHOWN_URL = 80
_DATABASE_DIGITS = 5
TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
"""Options of a Redis URL that name files."""
_TLS_CHOICES = {
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_check_hostname": ("true", "false"),
}


class HostPort(NamedTuple):
    """A parsed address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str, *, allow_port_zero: bool = False) -> HostPort:
    """Parses `host:port` or `[ipv6]:port`.

    Args:
        text: The address.
        allow_port_zero: True where 0 means any free port, i.e. where a service listens.

    Raises:
        ValueError: It is no such address; the message says what is expected.
    """
    host, separator, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError("expected host:port, the part in brackets is no IPv6 address")
    elif not separator or not _is_host(host):
        raise ValueError("expected host:port, e.g. 127.0.0.1:8001")
    lowest = 0 if allow_port_zero else 1
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= _PORT_DIGITS
    if not is_number or not lowest <= int(port_text) <= _HIGHEST_PORT:
        raise ValueError(f"the port must be a number from {lowest} to {_HIGHEST_PORT}")
    return HostPort(host, int(port_text))


def matches(pattern: str, address: str) -> bool:
    """Returns whether an address is one of a pattern.

    In the pattern `*` stands for any characters; beside the digits of an IPv4 address for digits
    and dots, since a name may begin like an address; in the last part of a name for no dot, since
    the end of a name says whose it is. In brackets it stands for digits and colons of an IPv6
    address in its shortest form, so that `[fd00:1::*]` is what begins with fd00:1 and a zero.
    """
    host, _, port = pattern.rpartition(":")
    if host.startswith("["):
        own_host, _, own_port = address.rpartition(":")
        form = re.escape(_shortest(host)).replace(r"\*", "[0-9a-f:]*")
        ports = re.escape(port).replace(r"\*", "[0-9]*")
        is_port = re.fullmatch(ports, own_port) is not None
        return is_port and re.fullmatch(form, _shortest(own_host)) is not None
    fixed = host.replace("*", "")
    star, last_star = ".*", "[^.]*" if fixed else ".*"
    if fixed and set(fixed) <= set("0123456789."):
        star = last_star = "[0-9.]*"
    before, dot, last = host.rpartition(".")
    form = (
        re.escape(before + dot).replace(r"\*", star)
        + re.escape(last).replace(r"\*", last_star)
        + re.escape(f":{port}").replace(r"\*", "[0-9]*")
    )
    return re.fullmatch(form, address) is not None


def _shortest(host: str) -> str:
    """Returns a host with the IPv6 address in its brackets, if any, in its shortest form."""
    number, mark, zone = host.strip("[]").partition("%")
    try:
        return f"[{ipaddress.IPv6Address(number)}{mark}{zone}]"
    except ValueError:
        return _LEADING_ZEROS.sub("", host.lower())


def _pattern(text: str) -> str:
    host, _, port = text.rpartition(":")
    # How many groups a star in brackets stands for depends on those beside it.
    groups = [":".join("1" * count) for count in range(1, 9)]
    for stand_in in groups if host.startswith("[") else ("x",):
        try:
            parse_address(f"{host.replace('*', stand_in)}:{port.replace('*', '1')}")
        except ValueError:
            continue
        return text
    raise ValueError(
        "expected host:port with * for any characters, e.g. *.gpu:8001 or [fd00:1::*]:8001"
    )


def _dialled(text: str) -> str:
    parse_address(text)
    return text


def _optionally_dialled(text: str) -> str:
    return _dialled(text) if text else text


def _listened(text: str) -> str:
    parse_address(text, allow_port_zero=True)
    return text


def _optionally_listened(text: str) -> str:
    return _listened(text) if text else text


def _redis_url(text: str) -> str:
    if text:
        try:
            _check_redis_url(text)
        except ValueError as error:
            raise ValueError(f"{_REDIS_FORM}; {error}") from None
    return text


def _check_redis_url(text: str) -> None:
    """Raises ValueError with what is wrong, without the password."""
    if len(text) > _LONGEST_URL or not text.isprintable() or " " in text:
        raise ValueError(f"at most {_LONGEST_URL} characters, spaces and line ends written as %20")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("host or port is wrong; ports are from 1 to 65535") from None
    if parts.scheme not in {"redis", "rediss", "unix"} or parts.fragment:
        raise ValueError("the scheme must be one of these; write # as %23")
    if parts.scheme == "unix":
        if not parts.path.startswith("/"):
            raise ValueError("the path of the socket is missing")
    else:
        host = parts.hostname or ""
        if not (_is_host(host) or _is_ipv6(host)):
            raise ValueError("the host is missing or is none")
        if port == 0:
            raise ValueError("the port must be a number from 1 to 65535")
        _check_database(unquote(parts.path).removeprefix("/") or "0")
    _check_redis_options(parts)


def _check_redis_options(parts: SplitResult) -> None:
    known = {"redis": {"db"}, "rediss": {"db", *TLS_FILES, *_TLS_CHOICES}, "unix": {"db"}}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known[parts.scheme]:
            listed = ", ".join(sorted(known[parts.scheme]))
            raise ValueError(f"unknown option {name[:64]!r}; known: {listed}")
        if name == "db":
            _check_database(value)
        elif name in _TLS_CHOICES and value not in _TLS_CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(_TLS_CHOICES[name])}")
        elif not value:
            raise ValueError(f"{name} must not be empty")


def _check_database(text: str) -> None:
    if not (text.isascii() and text.isdigit() and len(text) <= _DATABASE_DIGITS):
        raise ValueError("the database must be a number from 0 to 99999")


def _is_host(host: str) -> bool:
    """Returns whether a text is a name or IPv4; for labels of other lengths a look-up raises."""
    labels_fit = all(0 < len(label) <= _LONGEST_LABEL for label in host.split("."))
    return labels_fit and _HOST.fullmatch(host) is not None


def _is_ipv6(host: str) -> bool:
    """Returns whether a text is one; after its `%` Python would take any characters."""
    number, mark, zone = host.partition("%")
    try:
        ipaddress.IPv6Address(number)
    except ValueError:
        return False
    return _ZONE.fullmatch(mark + zone) is not None


def without_password(url: str) -> str:
    """Returns a URL as a message may show it: without user and password, short, and no options.

    Options are left out because they may hold a password too.
    """
    before, separator, place = url.rpartition("@")
    scheme = before.partition("://")[0] if "://" in before else ""
    safe = f"{scheme}://***@{place}" if separator else url
    safe, question, _ = safe.partition("?")
    shortened = safe if len(safe) <= _SHOWN_URL else f"{safe[:_SHOWN_URL]}..."
    return f"{shortened}?..." if question else shortened


Address = Annotated[str, AfterValidator(_dialled)]
"""An address to connect to."""
AddressPattern = Annotated[str, AfterValidator(_pattern)]
"""`host:port`, with `*` for any characters."""
OptionalAddress = Annotated[str, AfterValidator(_optionally_dialled)]
"""An address to connect to; empty means none."""
ListenAddress = Annotated[str, AfterValidator(_listened)]
"""An address to listen on; port 0 takes any free one."""
OptionalListenAddress = Annotated[str, AfterValidator(_optionally_listened)]
"""An address to listen on; empty means do not listen."""
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
"""Where Redis is; empty means none."""
