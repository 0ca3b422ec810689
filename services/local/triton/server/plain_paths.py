"""Names for folders that Triton can pass through a shell: it does so with what its stubs get.

A folder whose path holds a space, a quote, `;` or a letter beyond ASCII is given to Triton by a
link in a temporary folder.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from services.local.triton.errors import TritonServerError

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")


class PlainPaths:
    """Links to the folders of one server, made where they are needed."""

    def __init__(self) -> None:
        """Makes nothing yet."""
        self._folder: Path | None = None

    def of(self, path: Path, name: str) -> Path:
        """Returns a plain path of a folder: its own, or a link called `name` that leads to it.

        Raises:
            TritonServerError: No folder can be made for the links.
        """
        path = path.absolute()
        if _PLAIN.fullmatch(str(path)):
            return path
        self._folder = self._folder or _new_folder()
        link = self._folder / name
        if not link.is_symlink():
            link.symlink_to(path)
        return link

    def remove(self) -> None:
        """Removes the links; safe to call again."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _new_folder() -> Path:
    for parent in (tempfile.gettempdir(), *_TEMPORARY):
        if _PLAIN.fullmatch(parent):
            try:
                return Path(tempfile.mkdtemp(prefix="tiercel-", dir=parent))
            except OSError:
                continue
    raise TritonServerError(
        "Triton takes only paths of letters, digits, '.', '_' and '-', and no temporary folder"
        f" with such a path can be written ({', '.join(_TEMPORARY)})"
    )
