"""Certificates for tests: one root and every name of a mesh, made once per run."""

from __future__ import annotations

import functools
import pathlib
import tempfile

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
