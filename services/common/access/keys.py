"""API keys of clients: a file of hashes, read again when it changes.

A key has 256 bits of chance, so one SHA-256 of it cannot be turned back, and costs a request a
microsecond; slow hashes are for what people choose.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from router.documents import parse_toml
from router.messages import shown
from router.types import InvalidFileError
from services.common.access.roles import GRANTED, Role
from services.common.checks import MAX_NAME_CHARACTERS, is_name
from services.common.files import read_text, write_whole
from services.common.log import Logger

PREFIX = "tck_"
_ID_BYTES = 6
_SECRET_BYTES = 32
LONGEST_KEY_CHARACTERS = 128
_DIGEST_CHARACTERS = 64
_MOST_KEYS = 10_000
_LARGEST_FILE_BYTES = 8 * 1024 * 1024
_LOOK_AGAIN_S = 1.0
_NO_DIGEST = bytes(32)
_FIELDS = {"id", "client", "roles", "sha256", "created"}


class KeyFileError(Exception):
    """A file of keys cannot be used; `problems` has one line for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the file has it: everything but the key.

    Attributes:
        id: Names the key; the part of it that may be shown.
        client: Whose it is.
        roles: What its bearer may do.
        sha256: SHA-256 of the whole key, hexadecimal.
        created: When it was made.
    """

    id: str
    client: str
    roles: tuple[Role, ...]
    sha256: str
    created: str


def new_key(client: str, roles: Iterable[Role]) -> tuple[Key, str]:
    """Makes a key; returns what is kept of it, and the key, which is shown once."""
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Key(key_id, client, tuple(roles), _digest(text).hex(), created), text


def read_keys(path: Path) -> tuple[Key, ...]:
    """Reads a file of keys.

    Raises:
        KeyFileError: It cannot be read or is wrong; every mistake is named.
    """
    try:
        table = parse_toml(read_text(path, _LARGEST_FILE_BYTES), str(path))
    except OSError as error:
        raise KeyFileError([f"{path}: cannot be read: {error.strerror or error}"]) from None
    except UnicodeDecodeError:
        raise KeyFileError([f"{path}: is not valid UTF-8"]) from None
    except InvalidFileError as error:
        raise KeyFileError([f"{path}: {problem}" for problem in error.problems]) from None
    if table.keys() != {"keys"}:
        # One that is empty is being written just now, by a program that empties it first.
        found = ", ".join(map(shown, table)) or "nothing"
        problem = f"must hold [[keys]], or keys = [] for none, and nothing else (has {found})"
        raise KeyFileError([f"{path}: {problem}"])
    rows = table["keys"]
    if not isinstance(rows, list) or len(rows) > _MOST_KEYS:
        raise KeyFileError([f"{path}: keys: must be at most {_MOST_KEYS} tables [[keys]]"])
    problems = [f"{path}: {each}" for index, row in enumerate(rows) for each in _wrong(index, row)]
    if problems:
        raise KeyFileError(problems)
    keys = [Key(**{**row, "roles": tuple(map(Role, row["roles"]))}) for row in rows]
    if len({key.id for key in keys}) < len(keys):
        raise KeyFileError([f"{path}: keys: an id is used twice"])
    return tuple(keys)


@contextlib.contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keeps other commands from changing a file of keys between its reading and its writing.

    Raises:
        OSError: Its folder cannot be opened.
    """
    folder = os.open(path.resolve().parent, os.O_RDONLY)
    try:
        # A file system without locks is no reason to change nothing.
        with contextlib.suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Writes a file of keys; readers never see half of it, and it holds nothing secret.

    Raises:
        KeyFileError: There are more keys than a file may have.
        OSError: It cannot be written.
    """
    if len(keys) > _MOST_KEYS:
        raise KeyFileError([f"{path}: keys: must be at most {_MOST_KEYS} (got {len(keys)})"])
    # A link stays one: who reads the file that it names would not hear of a revoked key.
    path = path.resolve()
    rows = [
        {
            "id": key.id,
            "client": key.client,
            "roles": [str(role) for role in key.roles],
            "sha256": key.sha256,
            "created": key.created,
        }
        for key in keys
    ]
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    write_whole(path, tomli_w.dumps({"keys": rows}).encode(), mode=mode)


class KeyRing:
    """The keys of a file, as new as the file; safe to use from any thread.

    Args:
        path: The file.
        monotonic_s: Tells when to look at it again.
        log: Where changes and a bad file are said; the keys in use stay then.

    Raises:
        KeyFileError: The file cannot be used at the start.
    """

    def __init__(self, path: Path, *, monotonic_s: Callable[[], float], log: Logger) -> None:
        self._path = path
        self._monotonic_s = monotonic_s
        self._log = log
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._look_s = monotonic_s() + _LOOK_AGAIN_S
        self._by_id = _by_id(read_keys(path))

    def find(self, text: str) -> Key | None:
        """Returns the key that was shown, None if there is none like it."""
        if self._monotonic_s() >= self._look_s:
            self._refresh()
        key_id = text[len(PREFIX) : len(PREFIX) + 2 * _ID_BYTES]
        key, expected = self._by_id.get(key_id, (None, _NO_DIGEST))
        # The whole key is hashed and compared whatever it holds: time tells nothing of it.
        is_same = hmac.compare_digest(_digest(text[:LONGEST_KEY_CHARACTERS]), expected)
        return key if is_same else None

    def _refresh(self) -> None:
        with self._lock:
            self._look_s = self._monotonic_s() + _LOOK_AGAIN_S
            stamp = self._look()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._by_id = _by_id(read_keys(self._path))
            except KeyFileError as error:
                self._log.error("keys_refused", problems=error.problems[:5])
            else:
                self._log.info("keys_read", count=len(self._by_id))

    def _look(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def _by_id(keys: Iterable[Key]) -> Mapping[str, tuple[Key | None, bytes]]:
    return {key.id: (key, bytes.fromhex(key.sha256)) for key in keys}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _wrong(index: int, row: Any) -> list[str]:
    """Returns what is wrong with one row."""
    at = f"keys.{index}"
    if not isinstance(row, dict) or set(row) != _FIELDS:
        return [f"{at}: must have exactly {', '.join(sorted(_FIELDS))}"]
    found = [
        f"{at}.{name}: must be text (got {shown(row[name])})"
        for name in ("id", "client", "sha256", "created")
        if not isinstance(row[name], str)
    ]
    if found:
        return found
    if not is_name(row["id"]) or len(row["id"]) != 2 * _ID_BYTES:
        found.append(f"{at}.id: must have {2 * _ID_BYTES} characters (got {shown(row['id'])})")
    if not is_name(row["client"]):
        text = "must be a name of 1 to 64 characters of [a-z0-9_-]"
        found.append(f"{at}.client: {text} (got {shown(row['client'])})")
    if len(row["created"]) > MAX_NAME_CHARACTERS or not row["created"].isprintable():
        found.append(f"{at}.created: must be a moment (got {shown(row['created'])})")
    roles, allowed = row["roles"], [str(role) for role in GRANTED]
    if not isinstance(roles, list) or not roles or any(role not in allowed for role in roles):
        found.append(f"{at}.roles: must list some of {', '.join(allowed)} (got {shown(roles)})")
    digest = row["sha256"]
    if len(digest) != _DIGEST_CHARACTERS or not set(digest) <= set("0123456789abcdef"):
        found.append(f"{at}.sha256: must be {_DIGEST_CHARACTERS} hexadecimal digits")
    return found
