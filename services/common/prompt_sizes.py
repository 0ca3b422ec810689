"""How long a prompt may be, and what follows from that for everything that carries one.

`mesh.max_prompt_bytes` is the one setting; no other has to be raised with it.
"""

from __future__ import annotations

DEFAULT_PROMPT_BYTES = 64 * 1024
"""Longest prompt unless the settings say more, bytes of UTF-8."""
MOST_PROMPT_BYTES = 16 * 1024 * 1024
"""Longest prompt that settings can allow, bytes of UTF-8."""
_BESIDE_BYTES = 64 * 1024
"""What a message or a body may hold beside its prompt."""
_MOST_ESCAPED_BYTES = 6
"""What one byte of UTF-8 takes in JSON at most: a control character as `\\u0001`."""


def message_bytes(prompt_bytes: int) -> int:
    """Returns the size of the largest protobuf message around a prompt, bytes."""
    return prompt_bytes + _BESIDE_BYTES


def body_bytes(prompt_bytes: int) -> int:
    """Returns the size of the largest JSON body around a prompt, bytes."""
    return prompt_bytes * _MOST_ESCAPED_BYTES + _BESIDE_BYTES
