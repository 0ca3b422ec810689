"""The certificates by which commands call endpoints: those of the settings, or the environment."""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.common.access.caller import CERTIFICATE_VARIABLE, KEY_VARIABLE, ROOTS_VARIABLE
from services.common.access.tls import Tls, TlsSettings, load_tls
from services.common.log import get_logger
from services.common.settings import SettingsError
from services.local.errors import InputError

VARIABLES = (ROOTS_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE)
"""What names a process's certificates: roots, certificate and key."""


def tls_of(settings: TlsSettings) -> Tls | None:
    """Returns the certificates of settings; None without.

    Raises:
        InputError: A file cannot be used.
    """
    log = get_logger("tiercel")
    try:
        return load_tls(settings, monotonic_s=time.monotonic, wall_s=time.time, log=log)
    except SettingsError as error:
        raise InputError("\n".join(error.problems)) from None


def tls_of_environment(environ: Mapping[str, str]) -> Tls | None:
    """Returns the certificates that the environment names; None unless it names all three files.

    Raises:
        InputError: A file cannot be used.
    """
    roots, certificate, key = (environ.get(name, "") for name in VARIABLES)
    if not (roots and certificate and key):
        return None
    return tls_of(TlsSettings(root_certificates=roots, certificate=certificate, key=key))
