"""The list of endpoints: what the settings name, plus and minus what was changed while running.

Only the difference to the settings is stored, so that an edited settings file takes effect at the
next start: `added` (not in the file), `removed` (in the file, but taken out) and `draining`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from router.fleet import EndpointSpec
from services.common.errors import AlreadyExistsError, NotFoundError, ResourceExhaustedError


@dataclass(frozen=True, slots=True)
class Changes:
    """The stored difference to the settings.

    Args:
        version: Number of the endpoint list, growing with every join and leave.
        added: Endpoints by name.
        removed: Names taken out.
        draining: End of the drain by name, nanoseconds since 1970.
        fingerprint: Of the effective list; tells an edited settings file.
    """

    version: int = 0
    added: Mapping[str, EndpointSpec] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    draining: Mapping[str, int] = field(default_factory=dict)
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
    def draining(self) -> Mapping[str, int]:
        """End of the drain by name, nanoseconds since 1970."""
        return self.changes.draining

    def renumbered(self) -> Topology:
        """Returns the list with a new number if its content is not what the number stood for."""
        now = self._fingerprint()
        if now == self.changes.fingerprint and self.version > 0:
            return self
        return self._with(version=self.version + 1, fingerprint=now)

    def following(self, other: Topology) -> Topology:
        """Returns the list numbered so that it does not fall behind `other`, which clients know."""
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
        if self.configured.get(endpoint.name, endpoint) != endpoint:
            raise AlreadyExistsError(
                "endpoint", endpoint.name, "is defined differently in the settings"
            )
        added = dict(self.changes.added)
        if endpoint.name not in self.configured:
            added[endpoint.name] = endpoint
        removed = self.changes.removed - {endpoint.name}
        return self._with(added=added, removed=removed).renumbered()

    def drain(self, name: str, until_wall_ns: int) -> Topology:
        """Returns the list with an endpoint draining; itself if it drains already.

        Raises:
            NotFoundError: There is no such endpoint.
        """
        endpoints = self.endpoints
        if name not in endpoints:
            raise NotFoundError("endpoint", name, endpoints)
        if name in self.draining:
            return self
        return self._with(draining={**self.draining, name: until_wall_ns}).renumbered()

    def drop(self, name: str) -> Topology:
        """Returns the list without an endpoint; itself if there is none of that name."""
        if name not in self.endpoints:
            return self
        added = {key: value for key, value in self.changes.added.items() if key != name}
        removed = self.changes.removed | ({name} if name in self.configured else set())
        draining = {key: value for key, value in self.draining.items() if key != name}
        return self._with(added=added, removed=removed, draining=draining).renumbered()

    def adopting(self, stored: Changes) -> Topology:
        """Returns the list with stored changes; removals of names no longer set are dropped."""
        removed = stored.removed & self.configured.keys()
        return Topology(self.configured, replace(stored, removed=removed))

    def _with(self, **changes: object) -> Topology:
        return Topology(self.configured, replace(self.changes, **changes))  # type: ignore[arg-type]

    def _fingerprint(self) -> str:
        content = {name: _entry(endpoint) for name, endpoint in self.endpoints.items()}
        text = json.dumps([content, sorted(self.draining)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def decode_changes(payload: bytes) -> Changes:
    """Returns what `encode_changes` stored.

    Raises:
        ValueError: The bytes are something else.
    """
    try:
        document = json.loads(payload)
        return Changes(
            version=int(document["version"]),
            added={entry["name"]: _spec(entry) for entry in document["added"]},
            removed=frozenset(document["removed"]),
            draining={str(name): int(until) for name, until in document["draining"].items()},
            fingerprint=str(document["fingerprint"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"stored endpoint list cannot be read: {error!r}") from error


def _entry(spec: EndpointSpec) -> dict[str, Any]:
    fields = asdict(spec)
    models = fields.pop("models")
    return {**fields, "tiers": [{"tier": tier, "model": models[tier]} for tier in models]}


def _spec(entry: dict[str, Any]) -> EndpointSpec:
    models = {str(served["tier"]): str(served["model"]) for served in entry["tiers"]}
    fields = {key: value for key, value in entry.items() if key != "tiers"}
    return EndpointSpec(**fields, models=models)
