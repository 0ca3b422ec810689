"""Two lanes of tests side by side (`make test`).

What starts servers for itself runs in one lane, one test after the other: meshes whose times are
judged do not share the cores with each other. The other lane runs everything else, file by file.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

_SERVERS = {"integration", "soak", "faults"}


def lane(nodeid: str) -> str:
    """Returns what a test has in common with those that must run in the same process.

    Args:
        nodeid: A test's name, `tests/ROOM/...py::test_...`.
    """
    file = nodeid.partition("::")[0]
    room = file.split("/")[1]
    return "servers" if room in _SERVERS else file


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """Hands the lane of servers to one process, and the other files to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        return lane(nodeid)
