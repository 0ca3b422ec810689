"""When certificates hold, read from their bytes: OpenSSL's Python does not tell of own ones."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME, _LONG_FORM = 0xA0, 0x17, 0x80
_BEFORE_VALIDITY = 3
"""Fields between version and validity: serial number, algorithm, issuer."""


class Validity(NamedTuple):
    """When a certificate holds.

    Attributes:
        start: From when.
        end: Until when.
    """

    start: datetime
    end: datetime

    def problem(self, now: datetime) -> str:
        """Returns why it does not hold now; empty if it does."""
        if now < self.start:
            return f"is not valid before {self.start:%Y-%m-%d %H:%M} UTC"
        return f"expired on {self.end:%Y-%m-%d %H:%M} UTC" if now > self.end else ""


def validities(pem: bytes) -> Iterator[Validity]:
    """Yields when each certificate of a PEM file holds.

    Raises:
        ValueError: One is no certificate.
    """
    for found in _PEM.findall(pem):
        yield _validity(ssl.PEM_cert_to_DER_cert(found.decode("ascii")))


def _validity(der: bytes) -> Validity:
    """Reads Certificate, TBSCertificate, then the fields of RFC 5280, section 4.1."""
    try:
        _, certificate, _ = _element(der)
        _, rest, _ = _element(certificate)
        if rest[0] == _VERSION:
            _, _, rest = _element(rest)
        for _ in range(_BEFORE_VALIDITY):
            _, _, rest = _element(rest)
        _, validity, _ = _element(rest)
        start_tag, start, after = _element(validity)
        end_tag, end, _ = _element(after)
        return Validity(_moment(start_tag, start), _moment(end_tag, end))
    except (IndexError, UnicodeDecodeError) as error:
        raise ValueError("is no certificate") from error


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Returns tag and content of the first element, and what comes after it."""
    length, start = data[1], 2
    if length & _LONG_FORM:
        start += length - _LONG_FORM
        length = int.from_bytes(data[2:start], "big")
    return data[0], data[start : start + length], data[start + length :]


def _moment(tag: int, content: bytes) -> datetime:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC)
