"""Answers of a tier: pieces, within what was asked for."""

from __future__ import annotations

from typing import NamedTuple

from services.common.tiers.errors import bad_answer

_MOST_TOKEN_BYTES = 512
"""Longest text of one token, UTF-8; the longest in vocabularies of today have some 130."""
_SPARE_BYTES = 4096
_SPARE_MESSAGES = 16


class TierChunk(NamedTuple):
    """One piece of an answer.

    Attributes:
        text: New text; may be empty.
        token_count: New tokens in it.
        is_final: Whether the answer is complete; exactly one chunk, the last, has it.
        finish_reason: `stop` or `length` on the last chunk when the tier says it, else empty.
    """

    text: str
    token_count: int
    is_final: bool
    finish_reason: str


class Budget:
    """What one answer may still hold; an endpoint that sends more is at fault."""

    __slots__ = ("_bytes", "_messages", "tokens")

    def __init__(self, max_output_tokens: int) -> None:
        """Takes how many tokens were asked for; `tokens` says how many may still come."""
        self.tokens = max_output_tokens
        self._bytes = max_output_tokens * _MOST_TOKEN_BYTES + _SPARE_BYTES
        self._messages = 2 * max_output_tokens + _SPARE_MESSAGES

    def spend(self, byte_count: int, token_count: int) -> None:
        """Takes one message of so many bytes of text and so many tokens.

        Raises:
            TierUnavailableError: More came than was asked for.
        """
        self._messages -= 1
        self._bytes -= byte_count
        self.tokens -= token_count
        if self.tokens < 0:
            raise bad_answer(f"{-self.tokens} tokens more than was asked for")
        if self._bytes < 0 or self._messages < 0:
            raise bad_answer("longer than the tokens asked for can be")
