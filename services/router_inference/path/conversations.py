"""Where conversations were served last: a table of fixed size, which the workers of a port share.

A conversation's id is never kept, only a keyed hash of it; the key is made at the start and dies
with the router. A router's other replicas have tables of their own: what they know is not here.

The table is in sets of eight places. A conversation may be in any place of its set; a new one takes
the place of whoever was served there longest ago. Every place has a version, odd while it is being
written: who reads one that another worker is writing finds nothing, which costs a prefix once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router import seat
from router.fleet import Fleet
from router.seat import NOWHERE, Seat
from services.router_inference.workers.memory import candidate_keys

_WAYS = 8
_WORDS = 8
_VERSION, _FIRST, _SECOND, _CANDIDATE, _KEPT, _PASSED, _AT_S = range(7)
"""Words of a place; one is left free, so that a place is as long as a line of the processor."""
_CANDIDATES = 4_096
"""Counters of what was served on candidates; two that share one count each other's."""
_KEY_BYTES = 16
_HALF = _KEY_BYTES // 2


def table_words(count: int) -> int:
    """Returns the words that a table of so many conversations takes, at least."""
    return _CANDIDATES + _sets(count) * _WAYS * _WORDS


def _sets(count: int) -> int:
    return -(-count // _WAYS)


class Known(NamedTuple):
    """Where a conversation was served last.

    Attributes:
        candidate: tier and endpoint; None if the fleet has no such candidate.
        seat: the same as a decision takes it.
    """

    candidate: tuple[str, str] | None
    seat: Seat


class Conversations:
    """What a router remembers of conversations.

    Attributes:
        margin: worth that staying may cost, in units of quality.
    """

    def __init__(
        self,
        *,
        words: NDArray[np.int64],
        count: int,
        memory_s: float,
        margin: float,
        secret: bytes,
    ) -> None:
        """Takes its memory.

        Args:
            words: the memory, `table_words(count)` words; all zero, or that of other workers.
            count: most conversations that it remembers.
            memory_s: how long it remembers one after its last answer, seconds.
            margin: worth that staying may cost.
            secret: key of the hash; the same in every process that shares the memory.
        """
        raw = words.data.cast("B")
        self._whole = raw.cast("q")
        self._real = raw.cast("d")
        self._sets = _sets(count)
        self._secret = secret
        self.configure(memory_s, margin)
        self._followed: Sequence[tuple[str, str]] = ()
        self._candidate_of: dict[int, tuple[str, str]] = {}
        self._code_of: dict[tuple[str, str], int] = {}

    def configure(self, memory_s: float, margin: float) -> None:
        """Takes other limits."""
        self._memory_s = memory_s
        self.margin = margin

    def key(self, client: str, conversation_id: str) -> bytes:
        """Returns the hash of a client's id."""
        text = f"{client}\0{conversation_id}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=_KEY_BYTES, key=self._secret).digest()

    def find(
        self,
        key: bytes,
        prompt_tokens: float,
        now_s: float,
        fleet: Fleet,
        candidates: Sequence[tuple[str, str]],
    ) -> Known | None:
        """Returns where a conversation was served last; None if that is not known any more.

        Args:
            key: its hash.
            prompt_tokens: of the request that goes on with it.
            now_s: monotonic seconds.
            fleet: the candidates.
            candidates: their names, in the order of the fleet.
        """
        whole, real = self._whole, self._real
        at = self._place(key)
        if at < 0:
            return None
        version = whole[at + _VERSION]
        code, kept, passed = whole[at + _CANDIDATE], real[at + _KEPT], real[at + _PASSED]
        age_s = now_s - real[at + _AT_S]
        if version % 2 or whole[at + _VERSION] != version or not age_s <= self._memory_s:
            return None
        self._follow(candidates)
        candidate = self._candidate_of.get(code)
        row = NOWHERE if candidate is None else fleet.row.get(candidate, NOWHERE)
        if candidate is None or row == NOWHERE:
            return Known(None, Seat())
        passed = max(0.0, real[code % _CANDIDATES] - passed)
        room = float(fleet.arrays.prefix_room_C[row])
        cached = seat.cached_tokens(kept, prompt_tokens, passed, room)
        return Known(candidate, Seat(row, cached, self.margin))

    def on_answer(
        self, key: bytes, candidate: tuple[str, str], tokens: float, now_s: float
    ) -> None:
        """Takes in that a request was answered.

        Args:
            key: hash of its conversation; empty for none.
            candidate: tier and endpoint that answered.
            tokens: of prompt and answer.
            now_s: monotonic seconds.
        """
        whole, real = self._whole, self._real
        code = self._code(candidate)
        counter = code % _CANDIDATES
        real[counter] += tokens
        if not key:
            return
        at = self._place(key)
        if at < 0:
            first = self._first_place(key)
            places = range(first, first + _WAYS * _WORDS, _WORDS)
            at = min(places, key=lambda place: real[place + _AT_S])
        version = whole[at + _VERSION] | 1
        whole[at + _VERSION] = version
        whole[at + _FIRST], whole[at + _SECOND] = _halves(key)
        whole[at + _CANDIDATE] = code
        real[at + _KEPT], real[at + _PASSED], real[at + _AT_S] = tokens, real[counter], now_s
        whole[at + _VERSION] = version + 1

    def _first_place(self, key: bytes) -> int:
        return _CANDIDATES + _halves(key)[0] % self._sets * _WAYS * _WORDS

    def _place(self, key: bytes) -> int:
        """Returns where a conversation is, -1 if it is nowhere."""
        whole = self._whole
        halves = _halves(key)
        first = self._first_place(key)
        for at in range(first, first + _WAYS * _WORDS, _WORDS):
            if (whole[at + _FIRST], whole[at + _SECOND]) == halves and whole[at + _VERSION]:
                return at
        return -1

    def _code(self, candidate: tuple[str, str]) -> int:
        """Returns a candidate's number, the same in every process."""
        code = self._code_of.get(candidate)
        if code is None:
            code = int(candidate_keys((candidate,))[0])
            if len(self._code_of) >= _CANDIDATES:
                self._code_of.clear()
            self._code_of[candidate] = code
        return code

    def _follow(self, candidates: Sequence[tuple[str, str]]) -> None:
        """Brings the numbers of candidates up to date."""
        if candidates is self._followed:
            return
        self._followed = candidates
        codes = candidate_keys(candidates).tolist()
        self._candidate_of = dict(zip(codes, candidates, strict=True))


def _halves(key: bytes) -> tuple[int, int]:
    return (
        int.from_bytes(key[:_HALF], "little", signed=True),
        int.from_bytes(key[_HALF:], "little", signed=True),
    )
