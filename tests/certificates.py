"""Certificates for tests: one root and every name of a mesh, made once per run."""

from __future__ import annotations

import datetime
import functools
import pathlib
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.common.access.tls import TlsSettings
from services.local.certificates import make_certificates

_FOLDER = tempfile.TemporaryDirectory(prefix="tiercel-certificates-")


@functools.cache
def folder() -> pathlib.Path:
    """Returns a folder of certificates; it goes with the process."""
    made = pathlib.Path(_FOLDER.name)
    make_certificates(made)
    return made


def tls_settings(name: str, where: pathlib.Path | None = None) -> TlsSettings:
    """Returns the settings of the holder of a name."""
    own = (where or folder()) / name
    return TlsSettings(
        root_certificates=str(own / "ca.crt"),
        certificate=str(own / "tls.crt"),
        key=str(own / "tls.key"),
    )


def write_certificate(path: pathlib.Path, *, start: str, end: str) -> None:
    """Writes a root's certificate that holds from one day to another, both as 2026-11-29."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a root")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromisoformat(start))
        .not_valid_after(datetime.datetime.fromisoformat(end))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
