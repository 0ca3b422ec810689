"""What becomes of clients when their process is forked.

The thread that runs gRPC's asynchronous calls is not in the child, and what it waits on is the
parent's too. A client that is made there answers nothing, and one of the parent's that Python
lets go of there takes the parent's event loop off its connections, or ends the child by a signal.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

# Of itself gRPC starts its threads anew in a child, as they were in the middle of their work; now
# and then one of them ends the child by a signal. Read when the first channel is made, by anybody.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_open: weakref.WeakSet[Any] = weakref.WeakSet()
_inherited: list[Any] = []
"""The parent's open clients: kept to the end of the process, so that nothing lets go of them."""


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
    _inherited.extend(_open)
    _open.clear()


os.register_at_fork(after_in_child=_in_child)
