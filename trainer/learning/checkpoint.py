"""Checkpoints: written whole or not at all; the last good one stays valid whatever happens.

One file holds JSON metadata and arrays with a checksum. It is written beside its final name, synced
and renamed, so a kill or a full disk leaves the file that was there. No pickle.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"tiercel-checkpoint-1\n"
_DIGEST_BYTES = 32


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message names the file."""


class OvertakenError(CheckpointError):
    """Another process has saved there meanwhile, so that ours is out of date for good."""

    reason = "STATE_OVERTAKEN"


def write_atomically(path: Path, blob: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never half of it.

    What is there and no ordinary file, such as `/dev/null`, is written to and not replaced.

    Raises:
        CheckpointError: the file could not be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(blob)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):  # of a disk that is read-only
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from error


def remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed as they wrote a file have left beside it.

    Each would leave another one, as large as the file, until the disk is full. What a process of
    this machine that lives still may be writing stays.
    """
    is_left = re.compile(rf"\.{re.escape(path.name)}\.([1-9][0-9]{{0,8}})(\.previous)?\.tmp")
    with suppress(OSError):
        for each in path.parent.iterdir():
            found = is_left.fullmatch(each.name)
            if found is not None and not _is_alive(int(found[1])):
                each.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


def save_checkpoint(
    path: Path,
    meta: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    keep_previous: bool = False,
) -> None:
    """Writes metadata (JSON values) and arrays.

    Args:
        path: the file.
        meta: the metadata.
        arrays: the arrays by name.
        keep_previous: True keeps what was there beside it, see `previous_of`.

    Raises:
        CheckpointError: see `write_atomically`.
    """
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **{"__meta__": text, **arrays})
    body = buffer.getvalue()
    if keep_previous:
        _keep_generation(path)
    write_atomically(path, _MAGIC + hashlib.sha256(body).digest() + body)


def _keep_generation(path: Path) -> None:
    """Makes what is there the generation before; it stays what is there until it is replaced."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.previous.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(path, temporary)  # a file system without hard links
        temporary.replace(previous_of(path))
    except FileNotFoundError:
        return  # the first one
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be kept: {error.strerror or error}") from error


def previous_of(path: Path) -> Path:
    """Returns where the generation before is."""
    return path.with_name(f"{path.name}.previous")


def damaged_of(path: Path) -> Path:
    """Returns where a damaged one is kept aside."""
    return path.with_name(f"{path.name}.damaged")


def set_aside(path: Path) -> None:
    """Puts a file that is no good out of the way; the last such one is kept."""
    with suppress(OSError):
        path.replace(damaged_of(path))


def _content(path: Path) -> bytes:
    """Returns what a file holds; raises OSError for what is none, such as a pipe without an end."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no ordinary file")
        return file.read()


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Returns metadata and arrays, None if there is no such file.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
    """
    try:
        blob = _content(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    head = len(_MAGIC) + _DIGEST_BYTES
    body = blob[head:]
    if not blob.startswith(_MAGIC) or blob[len(_MAGIC) : head] != hashlib.sha256(body).digest():
        raise CheckpointError(f"{path}: is no checkpoint or is damaged")
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("__meta__").tobytes())
    except Exception as error:  # numpy and zipfile raise a dozen types
        raise CheckpointError(f"{path}: is no checkpoint: {error}") from error
    return meta, arrays
