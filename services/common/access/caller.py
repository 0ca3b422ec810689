"""How a command calls the mesh: certificates and key by the environment, as services have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.common.addresses import parse_address
from services.common.files import read_bytes

ROOTS_VARIABLE = "TIERCEL_MESH__TLS__ROOT_CERTIFICATES"
CERTIFICATE_VARIABLE = "TIERCEL_MESH__TLS__CERTIFICATE"
KEY_VARIABLE = "TIERCEL_MESH__TLS__KEY"
API_KEY_VARIABLE = "TIERCEL_API_KEY"
_LARGEST_FILE_BYTES = 1024 * 1024


class CallerError(Exception):
    """The environment names certificates or a key that cannot be used; one line."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        roots: PEM file of the roots that signed the mesh's certificates; empty means plain text.
        certificate: PEM file of the caller's certificate; empty means none is shown.
        key: PEM file of its key.
        api_key: Sent with every call; empty means none.
    """

    roots: str = ""
    certificate: str = ""
    key: str = ""
    api_key: str = ""

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Caller:
        """Returns the caller that the environment names."""
        return cls(
            roots=environ.get(ROOTS_VARIABLE, ""),
            certificate=environ.get(CERTIFICATE_VARIABLE, ""),
            key=environ.get(KEY_VARIABLE, ""),
            api_key=environ.get(API_KEY_VARIABLE, ""),
        )

    def credentials(self, address: str) -> grpc.ChannelCredentials | None:
        """Returns a channel's credentials, None for plain text without a key.

        Raises:
            CallerError: A file cannot be read, one is missing beside another, or the key is none or
                would cross the network in plain text.
        """
        if bool(self.certificate) != bool(self.key) or (self.certificate and not self.roots):
            raise CallerError(
                f"{ROOTS_VARIABLE}, {CERTIFICATE_VARIABLE}, {KEY_VARIABLE}: give the roots alone,"
                " or all three"
            )
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            raise CallerError(f"{API_KEY_VARIABLE}: must be printable ASCII; is a line end in it?")
        if self.roots:
            channel = grpc.ssl_channel_credentials(
                _read(ROOTS_VARIABLE, self.roots),
                _read(KEY_VARIABLE, self.key) if self.key else None,
                _read(CERTIFICATE_VARIABLE, self.certificate) if self.certificate else None,
            )
        elif not self.api_key:
            return None
        elif parse_address(address).is_loopback:
            channel = grpc.local_channel_credentials()
        else:
            raise CallerError(
                f"{API_KEY_VARIABLE}: is not sent to {address} in plain text; set {ROOTS_VARIABLE}"
            )
        if not self.api_key:
            return channel
        return grpc.composite_channel_credentials(
            channel, grpc.access_token_call_credentials(self.api_key)
        )


def _read(variable: str, path: str) -> bytes:
    try:
        content = read_bytes(Path(path), _LARGEST_FILE_BYTES)
    except OSError as error:
        raise CallerError(f"{variable}: {path}: cannot be read: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise CallerError(f"{variable}: {path}: is no PEM file")
    return content
