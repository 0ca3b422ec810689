"""Answers of a server that speaks OpenAI, as pieces, within what was asked for."""

from __future__ import annotations

import json
from typing import Any

from services.common.openai.errors import error_of_event
from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.errors import TierUnavailableError, bad_answer

_DONE = b"[DONE]"
_MOST_COUNT = 2**31
_FINISH_REASONS = {"stop": "stop", "length": "length"}
_BROKEN_OFF = frozenset({"abort", "aborted", "cancelled", "error"})
"""Reasons with which servers end what they did not finish."""


class Completion:
    """One answer on its way: events become pieces."""

    __slots__ = ("_budget", "_counted", "_finish", "_held")

    def __init__(self, max_output_tokens: int) -> None:
        """Takes how many tokens were asked for."""
        self._budget = Budget(max_output_tokens)
        self._counted = 0
        self._held = 0
        self._finish: str | None = None

    @property
    def has_finished(self) -> bool:
        """Whether the server has said why the answer ends."""
        return self._finish is not None

    def chunk(self, data: bytes) -> TierChunk | None:
        """Converts one event, or the body of an answer in one piece; None has nothing to say.

        Raises:
            TierError: The server failed, or sent what it may not.
        """
        if data == _DONE:
            return self.end()
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise bad_answer("an event that is no JSON") from None
        if not isinstance(event, dict):
            raise bad_answer("an event that is no object")
        if event.get("error") is not None or event.get("object") == "error":
            raise error_of_event(event)
        text = self._text_of(event.get("choices"))
        count = self._count_of(event.get("usage"), text)
        self._budget.spend(_length_of(text), count)
        count += self._held
        # A count without a text waits for the next piece, which costs the client no message.
        self._held = 0 if text else count
        return TierChunk(text, count, False, "") if text else None

    def end(self) -> TierChunk:
        """Returns the last piece.

        Raises:
            TierUnavailableError: The server did not say why the answer ends, so it may go on.
        """
        if self._finish is None:
            raise bad_answer("an end without a finish_reason")
        return TierChunk("", self._held, True, _FINISH_REASONS.get(self._finish, ""))

    def _text_of(self, choices: Any) -> str:
        """Returns the new text, and keeps why the answer ends."""
        if not choices and isinstance(choices, list | None):
            return ""
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict):
            raise bad_answer("choices of another form")
        text, finish = choice.get("text"), choice.get("finish_reason")
        if not isinstance(text, str | None) or not isinstance(finish, str | None):
            raise bad_answer("a text or finish_reason that is none")
        if finish:  # some servers say "" as long as there is more to come
            if finish in _BROKEN_OFF:
                raise TierUnavailableError(
                    "CANCELLED_BY_SERVER", f"the server ended the answer: {finish}"
                )
            self._finish = finish
        return _readable(text) if text else ""

    def _count_of(self, usage: Any, text: str) -> int:
        """Returns the number of new tokens: by the server's own count, else a piece is one."""
        total = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if total is None:
            count = min(1, self._budget.tokens) if text else 0
        elif type(total) is not int or not 0 <= total <= _MOST_COUNT:
            raise bad_answer("a completion_tokens that is no count")
        else:
            count = max(0, total - self._counted)
        self._counted += count
        return count


def _length_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _readable(text: str) -> str:
    """Returns a text that can be sent on: JSON may hold halves of a character."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text
