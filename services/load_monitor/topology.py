"""The list of endpoints: what the settings name, plus and minus what was changed while running.

Only the difference to the settings is stored, so that an edited settings file takes effect at the
next start: `added` (not in the file), `removed` (in the file, but taken out) and `draining`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from router.fleet import EndpointProtocol, EndpointSpec
from services.common.access.plain_text import Refusal
from services.common.checks import is_name
from services.common.convert import message_of_endpoint
from services.common.errors import (
    AlreadyExistsError,
    DomainError,
    NotFoundError,
    ResourceExhaustedError,
    cut,
)
from services.load_monitor.convert import endpoint_from_message
from services.load_monitor.model import (
    DEFAULT_DRAIN_S,
    LONGEST_DRAIN_S,
    MAX_ENDPOINTS_BYTES,
    MAX_REASON_BYTES,
)

_FINGERPRINT_CHARACTERS = 16
_LARGEST_VERSION = 2**52
# JSON writes a character beyond ASCII in six.
_MOST_STORED_BYTES = 4 * MAX_ENDPOINTS_BYTES
_LONGEST_PROBLEM_BYTES = 200
# Gauges of a tier, or what else the state says of an endpoint.
_GAUGE_BYTES = 256
_UNREADABLE = (DomainError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Changes:
    """The stored difference to the settings.

    Args:
        version: Number of the endpoint list, growing with every join and leave.
        added: Endpoints by name.
        removed: Names taken out.
        draining: Longest time of the drain by name, seconds from when a monitor sees it.
        fingerprint: Of the effective list; tells an edited settings file.
    """

    version: int = 0
    added: Mapping[str, EndpointSpec] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    draining: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""


Operation = Callable[["Topology"], "Topology"]


@dataclass(frozen=True, slots=True)
class Topology:
    """The effective endpoint list.

    Args:
        configured: Endpoints of the settings by name.
        changes: What was changed while running.
    """

    configured: Mapping[str, EndpointSpec]
    changes: Changes = Changes()

    @property
    def version(self) -> int:
        """Number of the list."""
        return self.changes.version

    @property
    def endpoints(self) -> dict[str, EndpointSpec]:
        """Every endpoint by name; where settings and additions disagree, the settings win."""
        found = {**self.changes.added, **self.configured}
        for name in self.changes.removed:
            found.pop(name, None)
        return dict(sorted(found.items()))

    @property
    def draining(self) -> Mapping[str, float]:
        """Longest time of the drain by name, seconds."""
        return self.changes.draining

    def renumbered(self) -> Topology:
        """Returns the list with a new number if its content is not what the number stood for."""
        now = self._fingerprint()
        if now == self.changes.fingerprint and self.version > 0:
            return self
        return self._with(version=self.version + 1, fingerprint=now)

    def following(self, other: Topology) -> Topology:
        """Returns the list numbered so that it does not fall behind `other`, which clients know."""
        if self == other:
            # Twice a second, and nearly always: fingerprints take long for a thousand endpoints.
            return self
        changed = self._fingerprint() != other._fingerprint()
        lowest = other.version + changed
        return self if self.version >= lowest else self._with(version=lowest)

    def add(self, endpoint: EndpointSpec, *, max_endpoints: int) -> Topology:
        """Returns the list with an endpoint more; itself if it is there already.

        Raises:
            AlreadyExistsError: The name is taken by another definition, or still draining.
            ResourceExhaustedError: The list is full.
        """
        known = self.endpoints.get(endpoint.name)
        if known is not None:
            if endpoint.name in self.draining:
                raise AlreadyExistsError("endpoint", endpoint.name, "is still draining")
            if known != endpoint:
                raise AlreadyExistsError("endpoint", endpoint.name)
            return self
        if len(self.endpoints) >= max_endpoints:
            raise ResourceExhaustedError(
                "TOO_MANY_ENDPOINTS",
                f"{max_endpoints} endpoints",
                f"{len(self.endpoints)} endpoints",
            )
        room_bytes = MAX_ENDPOINTS_BYTES - sum(map(_state_bytes, self.endpoints.values()))
        if _state_bytes(endpoint) > room_bytes:
            raise ResourceExhaustedError(
                "ENDPOINTS_TOO_LARGE",
                f"{MAX_ENDPOINTS_BYTES} bytes",
                f"{MAX_ENDPOINTS_BYTES - room_bytes + _state_bytes(endpoint)} bytes",
            )
        if self.configured.get(endpoint.name, endpoint) != endpoint:
            raise AlreadyExistsError(
                "endpoint", endpoint.name, "is defined differently in the settings"
            )
        added = dict(self.changes.added)
        if endpoint.name not in self.configured:
            added[endpoint.name] = endpoint
        removed = self.changes.removed - {endpoint.name}
        return self._with(added=added, removed=removed).renumbered()

    def drain(self, name: str, drain_s: float) -> Topology:
        """Returns the list with an endpoint draining; itself if it drains already.

        Raises:
            NotFoundError: There is no such endpoint.
        """
        endpoints = self.endpoints
        if name not in endpoints:
            raise NotFoundError("endpoint", name, endpoints)
        if name in self.draining:
            return self
        return self._with(draining={**self.draining, name: drain_s}).renumbered()

    def drop(self, name: str) -> Topology:
        """Returns the list without an endpoint; itself if there is none of that name."""
        if name not in self.endpoints:
            return self
        added = {key: value for key, value in self.changes.added.items() if key != name}
        removed = self.changes.removed | ({name} if name in self.configured else set())
        draining = {key: value for key, value in self.draining.items() if key != name}
        return self._with(added=added, removed=removed, draining=draining).renumbered()

    def adopting(self, stored: Changes) -> Topology:
        """Returns the list with stored changes; names no longer known are left out."""
        removed = stored.removed & self.configured.keys()
        known = self.configured.keys() | stored.added.keys()
        draining = {name: span for name, span in stored.draining.items() if name in known}
        return Topology(self.configured, replace(stored, removed=removed, draining=draining))

    def _with(self, **changes: object) -> Topology:
        return Topology(self.configured, replace(self.changes, **changes))  # type: ignore[arg-type]

    def _fingerprint(self) -> str:
        content = {name: _entry(endpoint) for name, endpoint in self.endpoints.items()}
        text = json.dumps([content, sorted(self.draining)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_FINGERPRINT_CHARACTERS]


def encode_changes(changes: Changes) -> bytes:
    """Returns the stored form, JSON."""
    return json.dumps(
        {
            "version": changes.version,
            "added": [_entry(endpoint) for endpoint in changes.added.values()],
            "removed": sorted(changes.removed),
            "draining": dict(changes.draining),
            "fingerprint": changes.fingerprint,
        }
    ).encode()


def decode_changes(
    payload: bytes, refusal: Callable[[str, str], Refusal | None]
) -> tuple[Changes, list[str]]:
    """Returns what `encode_changes` stored, and what is wrong with endpoints left out of it.

    Args:
        payload: The bytes.
        refusal: Tells by field and address why an endpoint may not have it.

    Raises:
        ValueError: The bytes are something else.
    """
    if len(payload) > _MOST_STORED_BYTES:
        raise ValueError(f"stored endpoint list has {len(payload)} bytes")
    added: dict[str, EndpointSpec] = {}
    problems: list[str] = []
    room_bytes = MAX_ENDPOINTS_BYTES
    try:
        document = json.loads(payload)
        version = document["version"]
        if type(version) is not int or not 0 <= version <= _LARGEST_VERSION:
            raise ValueError(f"stored endpoint list has version {version!r:.80}")
        for entry in document["added"]:
            try:
                spec = _spec(entry, refusal)
                room_bytes -= _state_bytes(spec)
                if room_bytes < 0:
                    raise ValueError("does not fit a state")
            except _UNREADABLE as error:
                problems.append(cut(f"{error!r}", _LONGEST_PROBLEM_BYTES))
            else:
                added[spec.name] = spec
        removed = frozenset(name for name in document["removed"] if is_name(str(name)))
        draining = {
            name: _drain_s(drain) for name, drain in document["draining"].items() if is_name(name)
        }
        fingerprint = str(document["fingerprint"])[:_FINGERPRINT_CHARACTERS]
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"stored endpoint list cannot be read: {error!r:.200}") from error
    return Changes(version, added, removed, draining, fingerprint), problems


def _drain_s(value: object) -> float:
    good = isinstance(value, int | float) and 0.0 <= value <= LONGEST_DRAIN_S
    return float(value) if good else DEFAULT_DRAIN_S  # type: ignore[arg-type]


def _state_bytes(spec: EndpointSpec) -> int:
    """Returns the most that an endpoint takes in a state, its gauges and reason included."""
    texts = [spec.name, spec.address, spec.device, spec.profile, spec.metrics_address]
    texts.append(spec.http_address)
    served = [text for pair in spec.models.items() for text in pair]
    definition = sum(len(text.encode()) for text in texts + served)
    return definition + MAX_REASON_BYTES + _GAUGE_BYTES * (1 + len(spec.models))


def _entry(spec: EndpointSpec) -> dict[str, Any]:
    # Releases before these fields read no endpoint that has them.
    newer = {"http_address": spec.http_address} if spec.http_address else {}
    if spec.protocol is not EndpointProtocol.TRITON:
        newer["protocol"] = spec.protocol.value
    return {
        "name": spec.name,
        "address": spec.address,
        "device": spec.device,
        "profile": spec.profile,
        "metrics_address": spec.metrics_address,
        "speed": spec.speed,
        **newer,
        "tiers": [{"tier": tier, "model": model} for tier, model in spec.models.items()],
    }


def _spec(entry: dict[str, Any], refusal: Callable[[str, str], Refusal | None]) -> EndpointSpec:
    models = {served["tier"]: served["model"] for served in entry["tiers"]}
    fields = {key: value for key, value in entry.items() if key != "tiers"}
    fields["protocol"] = EndpointProtocol(fields.get("protocol", EndpointProtocol.TRITON.value))
    # Through the door's own checks: what stands in the store may have been written by anybody.
    message = message_of_endpoint(EndpointSpec(**fields, models=models))
    return endpoint_from_message(message, None, refusal)
