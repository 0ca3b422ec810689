"""What protects a service: its certificates, its callers, and which addresses it may listen on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from services.common.access.guard import Authenticator
from services.common.access.keys import KeyFileError, KeyRing
from services.common.access.roles import GRANTED, Role
from services.common.access.tls import Tls, TlsSettings, load_tls
from services.common.access.tokens import TokenReader
from services.common.addresses import parse_address
from services.common.log import Logger
from services.common.settings import OptionalRelativePath, Problem, SettingsError, SettingsModel

_SERVICES = {
    "router-inference": [Role.REPORT, Role.READ],
    "load-monitor": [Role.READ],
    "trainer": [Role.READ],
    "operator": [Role.OPERATE, Role.READ],
    "envoy": [Role.GATEWAY],
}


HostName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?$")]
"""A name of a machine, in lower case and without a port."""


class AccessSettings(SettingsModel):
    """The `[mesh.access]` section: who may call."""

    keys_file: OptionalRelativePath = ""
    """API keys of clients (`tiercel keys`), read again when it changes; empty means none."""
    jwks_file: OptionalRelativePath = ""
    """Public keys (JWKS) whose JSON Web Tokens are taken; empty means none."""
    jwt_issuer: str = ""
    """Who must have issued a token (`iss`); needed with `jwks_file`."""
    jwt_audience: str = "tiercel"
    """For whom a token must be (`aud`)."""
    certificate_roles: dict[str, list[Role]] = Field(default_factory=lambda: dict(_SERVICES))
    """Roles by a DNS name in the caller's certificate."""
    http_hosts: tuple[HostName, ...] = Field(default=(), max_length=100)
    """Further names by which HTTP services on loopback may be asked, for instance by a proxy.

    They take addresses and `localhost`. A web page can have any other name lead there.
    """

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields a token file without an issuer, and a role nobody can be given."""
        if raw.get("jwks_file") and not raw.get("jwt_issuer"):
            yield Problem(("jwt_issuer",), "is needed beside jwks_file", "")
        roles = raw.get("certificate_roles")
        for name, listed in roles.items() if isinstance(roles, dict) else ():
            if isinstance(listed, list) and Role.ANYONE in listed:
                allowed = ", ".join(GRANTED)
                yield Problem(("certificate_roles", name), f"must be some of {allowed}", listed)


class Listener(Protocol):
    """The part of a service's section that says where it listens."""

    @property
    def listen(self) -> str: ...  # noqa: D102

    @property
    def operate_listen(self) -> str: ...  # noqa: D102

    @property
    def client_certificates(self) -> bool: ...  # noqa: D102

    @property
    def insecure_open_to_network(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Access:
    """How a service is protected.

    Attributes:
        tls: Its certificates; None means plain text.
        authenticator: Tells callers; None takes everybody.
        is_split: True serves operating calls at an address of their own only.
    """

    tls: Tls | None = None
    authenticator: Authenticator | None = None
    is_split: bool = False


def load_access(
    section: str,
    own: Listener,
    tls_settings: TlsSettings,
    settings: AccessSettings,
    *,
    takes_keys: bool = False,
    outgoing: Sequence[str] = (),
    monotonic_s: Callable[[], float],
    log: Logger,
) -> Access:
    """Reads what protects a service.

    Args:
        section: The service's section, for messages.
        own: Where it listens.
        tls_settings: `[mesh.tls]`.
        settings: `[mesh.access]`.
        takes_keys: True for the service that clients call: it knows keys and tokens.
        outgoing: What is wrong with where it calls, see `plain_text.Outgoing`; said together.
        monotonic_s: Tells when to look at files again.
        log: Where changes of files are said.

    Raises:
        SettingsError: A file is wrong, or an address that other machines reach, or on another
            machine, has no protection.
    """
    tls = load_tls(tls_settings, monotonic_s=monotonic_s, wall_s=time.time, log=log)
    authenticator = None
    roles = {name: frozenset(listed) for name, listed in settings.certificate_roles.items()}
    if takes_keys:
        authenticator = load_authenticator(settings, roles, monotonic_s=monotonic_s, log=log)
    if authenticator is None and tls is not None and own.client_certificates:
        authenticator = Authenticator(keys=None, tokens=None, certificate_roles=roles)
    is_known = authenticator is not None
    keys = ("listen", "operate_listen", "envoy_listen")
    addresses = {key: address for key in keys if (address := getattr(own, key, ""))}
    problems = list(outgoing)
    if not own.insecure_open_to_network:
        has_tls = tls is not None
        problems += exposure_problems(section, addresses, has_tls=has_tls, is_known=is_known)
    if problems:
        raise SettingsError(problems)
    is_local = parse_address(own.listen, allow_port_zero=True).is_loopback
    return Access(tls, authenticator, is_split=is_known or not is_local)


def load_authenticator(
    settings: AccessSettings,
    certificate_roles: Mapping[str, frozenset[Role]],
    *,
    monotonic_s: Callable[[], float],
    log: Logger,
) -> Authenticator | None:
    """Reads the keys and tokens by which clients are known; None where there are neither.

    Args:
        settings: `[mesh.access]`.
        certificate_roles: Roles by a name in the caller's certificate.
        monotonic_s: Tells when to look at files again.
        log: Where changes of files are said.

    Raises:
        SettingsError: A file is wrong.
    """
    keys = tokens = None
    if settings.keys_file:
        try:
            keys = KeyRing(Path(settings.keys_file), monotonic_s=monotonic_s, log=log)
        except KeyFileError as error:
            raise SettingsError([f"mesh.access.keys_file: {p}" for p in error.problems]) from None
    if settings.jwks_file:
        tokens = TokenReader(
            Path(settings.jwks_file),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            monotonic_s=monotonic_s,
            wall_s=time.time,
            log=log,
        )
    if keys is None and tokens is None:
        return None
    return Authenticator(keys=keys, tokens=tokens, certificate_roles=certificate_roles)


def exposure_problems(
    section: str, addresses: Mapping[str, str], *, has_tls: bool, is_known: bool
) -> list[str]:
    """Returns a line for each address that strangers reach without protection.

    Args:
        section: The service's section.
        addresses: Where it listens, by key of the section.
        has_tls: Whether it serves by TLS.
        is_known: Whether its callers are authenticated.
    """
    if has_tls and is_known:
        return []
    missing = [] if has_tls else ["TLS ([mesh.tls])"]
    if not is_known:
        missing.append("authentication (client_certificates, or keys in [mesh.access])")
    return [
        f"{section}.{key}: other machines can reach {address}, which needs {' and '.join(missing)};"
        " insecure_open_to_network = true serves whoever comes"
        for key, address in addresses.items()
        if not parse_address(address, allow_port_zero=True).is_loopback
    ]
