"""TLS within the mesh: one certificate of this process, and the roots that signed everybody's.

The files are looked at again every few seconds of use, so that a renewed certificate is taken in
without a restart: by servers with the next handshake, by channels with the next call. Files that do
not fit together are said once, and those in use stay.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from services.common.access.validity import validities
from services.common.files import read_bytes
from services.common.log import Logger
from services.common.settings import OptionalRelativePath, Problem, SettingsError, SettingsModel

_LARGEST_FILE_BYTES = 1024 * 1024
_LOOK_AGAIN_S = 5.0
_FILES = ("root_certificates", "certificate", "key")


class TlsSettings(SettingsModel):
    """The `[mesh.tls]` section: give all three files, or none for plain text."""

    root_certificates: OptionalRelativePath = ""
    """PEM file of the roots that sign certificates of the mesh."""
    certificate: OptionalRelativePath = ""
    """PEM file of this process's certificate, with what lies between it and its root."""
    key: OptionalRelativePath = ""
    """PEM file of its key, not encrypted."""
    triton: bool = True
    """True calls endpoints by TLS too; False where they have none, on loopback."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields files that are missing beside others."""
        given = [name for name in _FILES if raw.get(name)]
        if given:
            for name in _FILES:
                if name not in given:
                    yield Problem((name,), f"is needed beside {' and '.join(given)}", "")


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the three files hold.

    Attributes:
        roots: PEM of the roots.
        certificate: PEM of the own certificate, with its chain.
        key: PEM of its key.
    """

    roots: bytes
    certificate: bytes
    key: bytes

    def for_channel(self) -> grpc.ChannelCredentials:
        """Returns credentials that show the own certificate and check the server's."""
        return grpc.ssl_channel_credentials(self.roots, self.key, self.certificate)

    def for_server(self) -> Any:
        """Returns what a server shows, and the roots that it asks of callers."""
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], root_certificates=self.roots
        )


class Tls:
    """The certificates of this process, as new as their files; safe to use from any thread.

    Args:
        settings: The files.
        monotonic_s: Tells when to look at the files again.
        wall_s: The time that certificates hold by, seconds since 1970.
        log: Where renewals and bad files are said.
    """

    def __init__(
        self,
        settings: TlsSettings,
        *,
        monotonic_s: Callable[[], float],
        wall_s: Callable[[], float],
        log: Logger,
    ) -> None:
        """Reads the files.

        Raises:
            SettingsError: A file cannot be read, has expired, or they do not fit together.
        """
        self._settings = settings
        self._monotonic_s = monotonic_s
        self._log = log
        self._lock = threading.Lock()
        self._wall_s = wall_s
        self._seen = self._stamps()
        self._look_s = monotonic_s() + _LOOK_AGAIN_S
        self._current = read_certificates(settings, wall_s())
        self._context: tuple[Certificates, ssl.SSLContext] | None = None

    @property
    def for_triton(self) -> Tls | None:
        """What calls to endpoints use: this, or nothing."""
        return self if self._settings.triton else None

    def current(self) -> Certificates:
        """Returns the certificates in use; looks at the files if that was not done lately."""
        if self._monotonic_s() < self._look_s:
            return self._current
        with self._lock:
            self._look_s = self._monotonic_s() + _LOOK_AGAIN_S
            stamps = self._stamps()
            if stamps == self._seen:
                return self._current
            self._seen = stamps
            try:
                self._current = read_certificates(self._settings, self._wall_s())
            except SettingsError as error:
                self._log.error("certificates_refused", problems=error.problems)
            else:
                self._log.info("certificates_renewed", certificate=self._settings.certificate)
        return self._current

    def client_context(self) -> ssl.SSLContext:
        """Returns what a caller by TLS uses that is no gRPC: the certificates of now."""
        now = self.current()
        if self._context is None or self._context[0] is not now:
            context = ssl.create_default_context(cadata=now.roots.decode("ascii", "ignore"))
            # OpenSSL reads these from files alone; they were found to fit together.
            context.load_cert_chain(self._settings.certificate, self._settings.key)
            self._context = now, context
        return self._context[1]

    def server_credentials(self, *, with_client_certificates: bool) -> Any:
        """Returns credentials of a server; every handshake shows the certificate of its time.

        Args:
            with_client_certificates: True refuses callers without a certificate by the roots.
        """
        shown = self._current

        def renewed() -> Any:
            nonlocal shown
            now = self.current()
            if now is shown:
                return None
            shown = now
            return now.for_server()

        return grpc.dynamic_ssl_server_credentials(
            shown.for_server(), renewed, with_client_certificates
        )

    def _stamps(self) -> list[tuple[int, int] | None]:
        return [_stamp(Path(getattr(self._settings, name))) for name in _FILES]


def load_tls(
    settings: TlsSettings,
    *,
    monotonic_s: Callable[[], float],
    wall_s: Callable[[], float],
    log: Logger,
) -> Tls | None:
    """Returns the certificates of the settings, None without; raises SettingsError if bad."""
    if not settings.certificate:
        return None
    return Tls(settings, monotonic_s=monotonic_s, wall_s=wall_s, log=log)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def read_certificates(settings: TlsSettings, now_s: float) -> Certificates:
    """Reads and checks the three files; raises SettingsError with every mistake.

    Args:
        settings: The files.
        now_s: The time that they must hold at, seconds since 1970.
    """
    problems: list[str] = []
    found = {name: _read_file(settings, name, problems) for name in _FILES}
    if not problems:
        problems.extend(_mistakes(settings, found["root_certificates"]))
    if not problems:
        now = datetime.fromtimestamp(now_s, UTC)
        # A bundle of roots may hold one that has ended beside its successor.
        problems.extend(_out_of_date(settings, "root_certificates", found, now, needed=any))
        problems.extend(_out_of_date(settings, "certificate", found, now, needed=all))
    if problems:
        raise SettingsError(problems)
    return Certificates(found["root_certificates"], found["certificate"], found["key"])


def _read_file(settings: TlsSettings, name: str, problems: list[str]) -> bytes:
    path = getattr(settings, name)
    try:
        content = read_bytes(Path(path), _LARGEST_FILE_BYTES)
    except OSError as error:
        problems.append(f"mesh.tls.{name}: {path}: cannot be read: {error.strerror or error}")
        return b""
    if len(content) > _LARGEST_FILE_BYTES or b"-----BEGIN " not in content:
        problems.append(f"mesh.tls.{name}: {path}: is no PEM file")
    return content


def _out_of_date(
    settings: TlsSettings,
    name: str,
    found: Mapping[str, bytes],
    now: datetime,
    *,
    needed: Callable[[list[bool]], bool],
) -> Iterator[str]:
    """Yields that a file's certificates do not hold now: any of them, or all, are needed."""
    wrong: list[str] = []
    # What OpenSSL reads and we do not is left to it: it looks again at every handshake.
    with suppress(ValueError):
        wrong.extend(each.problem(now) for each in validities(found[name]))
    if wrong and not needed([not problem for problem in wrong]):
        yield f"mesh.tls.{name}: {getattr(settings, name)}: {next(filter(None, wrong))}"


def _mistakes(settings: TlsSettings, roots: bytes) -> Iterator[str]:
    """Yields what OpenSSL finds wrong with files that can be read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Bundles have comments between certificates, in any alphabet; Python takes ASCII alone.
        context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
    except ssl.SSLError as error:
        path = settings.root_certificates
        yield f"mesh.tls.root_certificates: {path}: holds no certificate ({error.reason})"

    def refuse() -> str:
        raise ValueError("is encrypted; give a key without a passphrase")

    try:
        context.load_cert_chain(settings.certificate, settings.key, password=refuse)
    except OSError as error:  # OpenSSL's, or a file that was taken away since it was read
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            yield f"mesh.tls.key: {settings.key}: is not the key of {settings.certificate}"
        else:
            yield (
                f"mesh.tls.certificate: {settings.certificate}: with the key {settings.key}:"
                f" OpenSSL says {reason or error.strerror or error}"
            )
    except ValueError as error:
        yield f"mesh.tls.key: {settings.key}: {error}"
