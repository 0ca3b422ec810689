"""Every Redis key of the mesh, each with its bound.

| key | type | bound |
|---|---|---|
| `tiercel:v1:system_state:current` | hash version, payload | SYSTEM_STATE_TTL_S |
| `tiercel:v1:system_state:ratings` | hash version, payload | one entry, outlives every process |
| `tiercel:v1:system_state:set_aside` | ratings that could not be read | SET_ASIDE_TTL_S |
| `tiercel:v1:peer_reports:all` | hash monitor -> router reports | PEER_REPORTS_TTL_S |
| `tiercel:v1:topology:current` | hash version, payload | one entry, outlives every process |
| `tiercel:v1:topology:set_aside` | what stood there and could not be read | SET_ASIDE_TTL_S |
| `tiercel:v1:targets:current` | hash version, payload | one entry, outlives every process |
| `tiercel:v1:targets:set_aside` | what stood there and could not be read | SET_ASIDE_TTL_S |
| `tiercel:v1:lease:<name>` | string owner | its own TTL |
| `tiercel:v1:policy_info:all` | hash policy id -> info | POLICY_COUNT_LIMIT |
| `tiercel:v1:policy_order:all` | sorted set policy id by publication | POLICY_COUNT_LIMIT |
| `tiercel:v1:policy_snapshot:<policy id>` | string snapshot | with its policy |
| `tiercel:v1:policy_rollout:current` | string rollout | one entry, outlives every process |
| `tiercel:v1:activation:history` | list of activations, oldest first | ACTIVATION_HISTORY_LIMIT |
| `tiercel:v1:experience:stream` | stream | the store's stream limit |
| `tiercel:v1:minutes:books` | sorted set of minutes by their beginning | MINUTES_LIMIT, _TTL_S |
| `tiercel:v1:minutes:hindsight` | same, of what might have been | MINUTES_LIMIT, _TTL_S |
| `tiercel:v1:dead_letter:<kind>` | stream of what was refused | DEAD_LETTER_LIMIT |
| `tiercel:v1:aside:<key>` | a key of another type, a snapshot set aside | SET_ASIDE_TTL_S |
"""

from __future__ import annotations

PREFIX = "tiercel:v1"

SYSTEM_STATE_TTL_S = 3600
PEER_REPORTS_TTL_S = 5
SET_ASIDE_TTL_S = 30 * 24 * 3600
LONGEST_LEASE_S = 120
LARGEST_VERSION = 2**52
"""Largest version or activation that is believed: Lua's numbers are doubles."""
POLICY_COUNT_LIMIT = 200
ACTIVATION_HISTORY_LIMIT = 100
EXPERIENCE_LIMIT = 200_000
MINUTES_LIMIT = 2 * 24 * 60
"""Most minutes kept of each kind: two days."""
MINUTES_TTL_S = MINUTES_LIMIT * 60
"""They go when nobody has written one for so long."""
DEAD_LETTER_LIMIT = 1_000
DEAD_LETTER_BYTES = 16 * 1024
"""What is kept of one dead letter."""

SYSTEM_STATE = f"{PREFIX}:system_state:current"
RATINGS = f"{PREFIX}:system_state:ratings"
RATINGS_SET_ASIDE = f"{PREFIX}:system_state:set_aside"
PEER_REPORTS = f"{PREFIX}:peer_reports:all"
TOPOLOGY = f"{PREFIX}:topology:current"
TOPOLOGY_SET_ASIDE = f"{PREFIX}:topology:set_aside"
TARGETS = f"{PREFIX}:targets:current"
TARGETS_SET_ASIDE = f"{PREFIX}:targets:set_aside"
POLICY_INFO = f"{PREFIX}:policy_info:all"
POLICY_ORDER = f"{PREFIX}:policy_order:all"
POLICY_SNAPSHOT_PREFIX = f"{PREFIX}:policy_snapshot:"
ACTIVATION_HISTORY = f"{PREFIX}:activation:history"
POLICY_ROLLOUT = f"{PREFIX}:policy_rollout:current"
EXPERIENCE_STREAM = f"{PREFIX}:experience:stream"
MINUTE_BOOKS = f"{PREFIX}:minutes:books"
MINUTE_HINDSIGHT = f"{PREFIX}:minutes:hindsight"

TYPES = {
    SYSTEM_STATE: "hash",
    RATINGS: "hash",
    PEER_REPORTS: "hash",
    TOPOLOGY: "hash",
    TARGETS: "hash",
    POLICY_INFO: "hash",
    POLICY_ORDER: "zset",
    ACTIVATION_HISTORY: "list",
    POLICY_ROLLOUT: "string",
    EXPERIENCE_STREAM: "stream",
    MINUTE_BOOKS: "zset",
    MINUTE_HINDSIGHT: "zset",
}
"""Type of every key that there is once."""


def dead_letter(kind: str) -> str:
    """Returns the key of what was refused of a kind of things."""
    return f"{PREFIX}:dead_letter:{kind}"


def aside(key: str) -> str:
    """Returns where a key goes that holds something else than it should."""
    return f"{PREFIX}:aside:{key.removeprefix(PREFIX + ':')}"


def lease(name: str) -> str:
    """Returns the key of a lease."""
    return f"{PREFIX}:lease:{name}"


def policy_id(name: str, version: str) -> str:
    """Returns the id of a policy; `@` is in neither names nor versions."""
    return f"{name}@{version}"


def policy_snapshot(name: str, version: str) -> str:
    """Returns the key of a policy's snapshot."""
    return POLICY_SNAPSHOT_PREFIX + policy_id(name, version)
