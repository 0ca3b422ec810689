"""What a server that speaks OpenAI says when it does not answer, as errors."""

from __future__ import annotations

import json
from typing import Any

from services.common.tiers.errors import (
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)

_OF_REQUEST = frozenset({400, 413, 422})
_OF_KEY = frozenset({401, 403})
_OVERLOADED = frozenset({429, 503})
_GATEWAY = frozenset({502, 504})
_LOWEST_ERROR, _LOWEST_OF_SERVER = 400, 500
_NOT_FOUND = 404


def error_of_status(status: int, body: bytes) -> TierError:
    """Maps an HTTP status that is no 200 to a typed error.

    Args:
        status: The status.
        body: What came with it, or the beginning of it.
    """
    detail = f"status {status}: {_message_of(_parsed(body)) or body[:300].decode(errors='replace')}"
    return _error_of(status, detail)


def error_of_event(event: Any) -> TierError:
    """Maps an error inside an answer of status 200, as servers send it once they have begun."""
    found = event.get("error", event) if isinstance(event, dict) else event
    code = found.get("code") if isinstance(found, dict) else None
    detail = _message_of(event) or "an error without a message"
    if isinstance(code, int) and code >= _LOWEST_ERROR:
        return _error_of(code, f"code {code}: {detail}")
    return TierUnknownError("TIER_FAILED", detail)


def _error_of(status: int, detail: str) -> TierError:
    if status in _OF_REQUEST:
        return TierInvalidError("INVALID_REQUEST", detail)
    if status in _OF_KEY:
        # Not in the server's words: some repeat the key that they refuse.
        return TierUnavailableError("KEY_REFUSED", f"status {status}: the server wants another key")
    if status in _OVERLOADED:
        return TierOverloadedError("RESOURCE_EXHAUSTED", detail)
    if status == _NOT_FOUND:
        return TierUnavailableError("MODEL_NOT_FOUND", detail)
    if status in _GATEWAY or status < _LOWEST_OF_SERVER:
        return TierUnavailableError("UNAVAILABLE", detail)
    return TierUnknownError("TIER_FAILED", detail)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _message_of(found: Any) -> str:
    """Returns the message of an error: OpenAI's form, and those that servers have beside it."""
    for _ in range(2):
        if isinstance(found, str):
            return found
        if not isinstance(found, dict):
            return ""
        found = next((found[key] for key in ("error", "message", "detail") if key in found), None)
    return found if isinstance(found, str) else ""
