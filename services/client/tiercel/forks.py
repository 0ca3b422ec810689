"""What becomes of clients when their process is forked.

The thread that runs gRPC's asynchronous calls is not in the child, and what it waits on is the
parent's too. A client that is made there answers nothing, and one of the parent's that Python
lets go of there takes the parent's event loop off its connections, or ends the child by a signal.

gRPC's other threads are started anew in the child, as they were in the middle of their work, and
now and then one of them ends the child by a signal, whatever Python does there (grpcio 1.85.1).
GRPC_ENABLE_FORK_SUPPORT=0 keeps them from it, but then a child may hang whose parent had closed
its clients before, as it should.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref
from typing import Any

_open: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
"""The parent's open clients, which nothing may let go of."""


def note_open(client: Any) -> None:
    """Notes a client that has channels."""
    _open.add(client)


def note_closed(client: Any) -> None:
    """Notes a client that has none any more."""
    _open.discard(client)


def has_open_parent() -> bool:
    """Returns whether a client was open when this process was forked off."""
    return bool(_inherited)


def _in_child() -> None:
    if not _open:
        return
    _inherited.extend(_open)
    _open.clear()
    # Not even the interpreter as it ends, nor the collector of what calls have left behind.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_inherited))
    gc.freeze()


os.register_at_fork(after_in_child=_in_child)
