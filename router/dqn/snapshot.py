"""Snapshots: the weights of a Q-network and what is known about them, as one safetensors file.

Data only, never code: a JSON header and raw little-endian numbers. The reader takes nothing on
trust, since a snapshot reaches a router over the network: lengths, offsets, types, shapes,
finiteness, schema and checksum are all checked. Bytes in, bytes out; files and sockets are the
callers' business. The format is that of the `safetensors` package (8 bytes header length, JSON
header, data), written here because `router` needs nothing but numpy.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

FORMAT: Final = "tiercel-dqn/2"
"""Name and version of the layout; a reader refuses any other."""

MAX_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
MAX_HEADER_BYTES: Final = 1024 * 1024

REASON_TRUNCATED: Final = "SNAPSHOT_TRUNCATED"
REASON_TOO_LARGE: Final = "SNAPSHOT_TOO_LARGE"
REASON_MALFORMED: Final = "SNAPSHOT_MALFORMED"
REASON_FORMAT: Final = "SNAPSHOT_FORMAT_UNKNOWN"
REASON_SCHEMA: Final = "SNAPSHOT_SCHEMA_MISMATCH"
REASON_SHAPE: Final = "SNAPSHOT_SHAPE_MISMATCH"
REASON_BASE: Final = "SNAPSHOT_BASE_INVALID"
REASON_NOT_FINITE: Final = "SNAPSHOT_NOT_FINITE"
REASON_CHECKSUM: Final = "SNAPSHOT_CHECKSUM_MISMATCH"


class SnapshotError(ValueError):
    """A snapshot was refused; `reason` is one of the REASON_ constants."""

    def __init__(self, reason: str, message: str) -> None:
        """Keeps the machine-readable reason beside the message."""
        super().__init__(f"{message} ({reason})")
        self.reason = reason


class Weights(NamedTuple):
    """Arguments of `network.q_values`, float32. Shapes: [F, H], [H], [2H, H], [H], [H + F], scalar.

    A NamedTuple of arrays, so that the simulator can hand it to compiled code.
    """

    w1_FH: NDArray[np.float32]
    b1_H: NDArray[np.float32]
    w2_GH: NDArray[np.float32]
    b2_H: NDArray[np.float32]
    w3_P: NDArray[np.float32]
    b3: np.float32

    @property
    def feature_count(self) -> int:
        """Number of features per candidate."""
        return int(self.w1_FH.shape[0])

    @property
    def hidden_count(self) -> int:
        """Number of hidden units per layer."""
        return int(self.w1_FH.shape[1])

    def zeroed(self) -> Weights:
        """Returns the network with an output of zero: what is left is the score it corrects.

        For the ablation that shows whether the learned part does any work.
        """
        return self._replace(w3_P=np.zeros_like(self.w3_P), b3=np.float32(0.0))


def zero_weights(feature_count: int, hidden_count: int) -> Weights:
    """Returns weights of which every one is zero."""
    return Weights(
        np.zeros((feature_count, hidden_count), np.float32),
        np.zeros(hidden_count, np.float32),
        np.zeros((2 * hidden_count, hidden_count), np.float32),
        np.zeros(hidden_count, np.float32),
        np.zeros(hidden_count + feature_count, np.float32),
        np.float32(0.0),
    )


@dataclass(frozen=True)
class Snapshot:
    """Weights of a policy and where they come from.

    Attributes:
        weights: the network.
        feature_schema: id of the feature schema the weights were trained on.
        feature_names: names of the features, in column order.
        policy: name of the policy they belong to.
        version: content hash, set by `load_snapshot`; empty on a snapshot never saved.
        training: training config, seed, profile, transition count: JSON values only.
        evaluation: scores by policy or by name: JSON values only.
        base: parameters of the price score that the network corrects, by name; those left out
            have their defaults.
        schedule: table of the scheduled price that the features read (see
            `router/policies/schedule.py`): first load, step, rows; empty = price itself.
        fleet: hints on the fleet it was trained for (tiers, devices, deadlines): JSON values.
    """

    weights: Weights
    feature_schema: str
    feature_names: tuple[str, ...]
    policy: str = "dqn"
    version: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    fleet: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, float] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)

    @property
    def transition_count(self) -> int:
        """Transitions it was trained on, 0 if not recorded."""
        count = self.training.get("transition_count", 0)
        return int(count) if isinstance(count, int | float) else 0


def save_snapshot(snapshot: Snapshot) -> bytes:
    """Returns the snapshot's file; the same content gives the same bytes and version.

    Raises:
        SnapshotError: shapes do not fit together or a number is not finite.
    """
    tensors = _tensors(snapshot)
    _check_weights(snapshot.weights, snapshot.feature_names)
    _check_finite(tensors)
    meta = {
        "format": FORMAT,
        "policy": snapshot.policy,
        "feature_schema": snapshot.feature_schema,
        "feature_names": list(snapshot.feature_names),
        "training": dict(snapshot.training),
        "evaluation": dict(snapshot.evaluation),
        "fleet": dict(snapshot.fleet),
        "base": dict(snapshot.base),
        "schedule": dict(snapshot.schedule),
    }
    return pack(meta, tensors)


def pack(meta: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Returns a snapshot file of any kind: JSON metadata and named float32 arrays."""
    header: dict[str, Any] = {}
    chunks: list[bytes] = []
    offset = 0
    for name, array in sorted(tensors.items()):
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    data = b"".join(chunks)
    text = json.dumps(meta, sort_keys=True, allow_nan=False)
    header["__metadata__"] = {"tiercel": text, "sha256": _content_hash(text, data)}
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded + data


def load_snapshot(
    blob: bytes, feature_schema: str | None = None, origin: str = "snapshot"
) -> Snapshot:
    """Reads and checks a snapshot.

    Args:
        blob: the file.
        feature_schema: schema it must follow, or None to accept any.
        origin: its name, for messages.

    Raises:
        SnapshotError: with the reason why it was refused.
    """
    meta, tensors, version = unpack(blob, FORMAT, _WEIGHT_NAMES, feature_schema, origin)
    if tensors["b3"].shape != ():
        raise SnapshotError(REASON_SHAPE, f"{origin}: b3 is not a scalar")
    w1_FH, b1_H, w2_GH, b2_H, w3_P, b3 = (tensors[name] for name in _WEIGHT_NAMES)
    weights = Weights(w1_FH, b1_H, w2_GH, b2_H, w3_P, np.float32(b3))
    names = tuple(meta["feature_names"])
    _check_weights(weights, names, origin)
    return Snapshot(
        weights=weights,
        feature_schema=meta["feature_schema"],
        feature_names=names,
        policy=meta["policy"],
        version=version,
        training=meta["training"],
        evaluation=meta["evaluation"],
        fleet=meta["fleet"],
        base=_base(meta.get("base"), origin),
        schedule=_schedule(meta.get("schedule", {}), origin),
    )


def _base(base: Any, origin: str) -> dict[str, float]:
    """Returns the base's parameters; whether they suit a policy is for the policy to say."""
    numbers = isinstance(base, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in base.values()
    )
    if not numbers:
        raise SnapshotError(REASON_BASE, f"{origin}: metadata.base must hold numbers by name")
    return {str(name): float(value) for name, value in base.items()}


def _schedule(schedule: Any, origin: str) -> dict[str, Any]:
    """Returns the table of a scheduled price; whether it suits is for the policy to say."""
    if not isinstance(schedule, dict):
        raise SnapshotError(REASON_BASE, f"{origin}: metadata.schedule is not an object")
    return schedule


def unpack(
    blob: bytes,
    layout: str,
    names: Sequence[str],
    feature_schema: str | None = None,
    origin: str = "snapshot",
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]], str]:
    """Reads and checks a snapshot file of any kind; returns metadata, arrays and version.

    Args:
        blob: the file.
        layout: name and version of its layout, the `format` of its metadata.
        names: arrays it must hold.
        feature_schema: schema it must follow, or None to accept any.
        origin: its name, for messages.

    Raises:
        SnapshotError: with the reason why it was refused.
    """
    header, data = _split(blob, origin)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tiercel"), str):
        raise SnapshotError(REASON_FORMAT, f"{origin}: carries no tiercel metadata")
    text = metadata["tiercel"]
    meta = _parse_meta(text, layout, origin)
    if metadata.get("sha256") != _content_hash(text, data):
        raise SnapshotError(REASON_CHECKSUM, f"{origin}: checksum does not match the content")
    if feature_schema is not None and meta["feature_schema"] != feature_schema:
        raise SnapshotError(
            REASON_SCHEMA,
            f"{origin}: feature schema {meta['feature_schema']!r}, expected {feature_schema!r}",
        )
    tensors = {name: _tensor(name, entry, data, origin) for name, entry in header.items()}
    missing = [name for name in names if name not in tensors]
    if missing:
        raise SnapshotError(REASON_SHAPE, f"{origin}: lacks {', '.join(missing)}")
    _check_finite(tensors, origin)
    return meta, tensors, str(metadata["sha256"])[:12]


def snapshot_version(blob: bytes) -> str:
    """Returns the version of a snapshot's bytes, checked like `load_snapshot`."""
    return load_snapshot(blob).version


_WEIGHT_NAMES = Weights._fields
_META_TYPES: dict[str, type] = {
    "policy": str,
    "feature_schema": str,
    "feature_names": list,
    "training": dict,
    "evaluation": dict,
    "fleet": dict,
}


def _tensors(snapshot: Snapshot) -> dict[str, NDArray[np.float32]]:
    return {
        name: np.asarray(array, dtype=np.float32)
        for name, array in snapshot.weights._asdict().items()
    }


def _content_hash(meta_text: str, data: bytes) -> str:
    return hashlib.sha256(meta_text.encode() + b"\0" + data).hexdigest()


def _split(blob: bytes, origin: str) -> tuple[dict[str, Any], bytes]:
    """Returns header and data; checks the outer lengths."""
    if len(blob) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(
            REASON_TOO_LARGE, f"{origin}: {len(blob)} bytes, at most {MAX_SNAPSHOT_BYTES}"
        )
    if len(blob) < 8:
        raise SnapshotError(REASON_TRUNCATED, f"{origin}: {len(blob)} bytes are no snapshot")
    (length,) = struct.unpack("<Q", blob[:8])
    if length > MAX_HEADER_BYTES:
        raise SnapshotError(REASON_MALFORMED, f"{origin}: header length {length} is not plausible")
    if len(blob) < 8 + length:
        raise SnapshotError(REASON_TRUNCATED, f"{origin}: ends inside its header")
    try:
        header = json.loads(blob[8 : 8 + length])
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SnapshotError(REASON_MALFORMED, f"{origin}: header is not JSON") from error
    if not isinstance(header, dict):
        raise SnapshotError(REASON_MALFORMED, f"{origin}: header is not an object")
    return header, blob[8 + length :]


def _parse_meta(text: str, layout: str, origin: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(REASON_MALFORMED, f"{origin}: metadata is not JSON") from error
    if not isinstance(meta, dict) or meta.get("format") != layout:
        raise SnapshotError(REASON_FORMAT, f"{origin}: format is not {layout}")
    for key, kind in _META_TYPES.items():
        if not isinstance(meta.get(key), kind):
            raise SnapshotError(REASON_MALFORMED, f"{origin}: metadata.{key} is missing or wrong")
    if not all(isinstance(name, str) for name in meta["feature_names"]):
        raise SnapshotError(REASON_MALFORMED, f"{origin}: metadata.feature_names is wrong")
    return meta


def _tensor(name: str, entry: Any, data: bytes, origin: str) -> NDArray[np.float32]:
    """Returns one tensor; every number in its entry is checked before it is used."""
    try:
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, start, end))
    except (TypeError, KeyError, ValueError) as error:
        raise SnapshotError(
            REASON_MALFORMED, f"{origin}: header entry {name!r} is wrong"
        ) from error
    if entry.get("dtype") != "F32":
        raise SnapshotError(REASON_SHAPE, f"{origin}: {name} is not F32")
    count = 1
    for n in shape:
        count *= n if whole else 0
    if not whole or end - start != 4 * count:
        raise SnapshotError(REASON_MALFORMED, f"{origin}: {name} has wrong offsets")
    if end > len(data):
        raise SnapshotError(REASON_TRUNCATED, f"{origin}: ends inside {name}")
    # A copy: the result owns its memory, aligned and writable.
    return np.frombuffer(data[start:end], dtype="<f4").reshape(shape).astype(np.float32)


def _check_weights(weights: Weights, names: tuple[str, ...], origin: str = "snapshot") -> None:
    features, hidden = weights.w1_FH.shape if weights.w1_FH.ndim == 2 else (-1, -1)
    expected = {
        "w1_FH": (features, hidden),
        "b1_H": (hidden,),
        "w2_GH": (2 * hidden, hidden),
        "b2_H": (hidden,),
        "w3_P": (hidden + features,),
    }
    for name, shape in expected.items():
        actual = getattr(weights, name).shape
        if actual != shape or hidden < 1:
            raise SnapshotError(REASON_SHAPE, f"{origin}: {name} has shape {actual}, not {shape}")
    if len(names) != features:
        raise SnapshotError(
            REASON_SHAPE, f"{origin}: {features} feature columns, {len(names)} feature names"
        )


def _check_finite(tensors: Mapping[str, NDArray[np.float32]], origin: str = "snapshot") -> None:
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise SnapshotError(
                REASON_NOT_FINITE, f"{origin}: {name} has values that are not finite"
            )
