"""How much of what clients say of a tier one of them may say.

A client is a name that was proved, or an address. As long as nobody else says anything of a tier's
answers on a task, all that it says counts: most meshes have one client. Once others do, its reports
count up to as many as theirs together, and a few. So who sends most of the reports gets half of the
word. The others are remembered for an hour or so.
"""

from __future__ import annotations

from collections import Counter, defaultdict

FREE = 16
"""Reports of one client that count beyond those of all others."""
HALVED_S = 3600.0
"""Time after which what was counted weighs half: whoever said something once is forgotten."""
MOST_CLIENTS = 64
"""Clients that are told apart per tier and task; who said least gives way, and its count stays."""


class ClientShares:
    """Whose reports were counted, by task and tier."""

    def __init__(self, now_s: float) -> None:
        """Starts with none, at a time in monotonic seconds."""
        self._counted: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        self._halved_s = now_s

    def admit(self, at: tuple[int, int], client: str, now_s: float) -> bool:
        """Returns whether a report counts, and counts it.

        Args:
            at: task and tier.
            client: who says it.
            now_s: monotonic seconds.
        """
        if now_s - self._halved_s >= HALVED_S:
            self._halve(now_s)
        counted = self._counted[at]
        others = counted.total() - counted[client]
        if others and counted[client] >= others + FREE:
            return False
        if client not in counted and len(counted) >= MOST_CLIENTS:
            # It goes on from the count of whose place it takes: from none it would be the least
            # itself, be forgotten at once, and be heard however often it speaks.
            counted[client] = counted.pop(min(counted, key=counted.__getitem__))
        counted[client] += 1
        return True

    def _halve(self, now_s: float) -> None:
        self._halved_s = now_s
        for counted in self._counted.values():
            for client in list(counted):
                counted[client] //= 2
                if not counted[client]:
                    del counted[client]
