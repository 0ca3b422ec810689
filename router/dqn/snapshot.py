"""Snapshots: the weights of a Q-network and what is known about them, as one safetensors file.

Data only, never code: a JSON header and raw little-endian numbers. The reader takes nothing on
trust, since a snapshot reaches a router over the network: `safetensors` checks lengths, offsets and
shapes, this module types, finiteness, schema and checksum. Bytes in, bytes out; files and sockets
are the callers' business.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize

from router.types import is_finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

FORMAT: Final = "tiercel-dqn/2"
"""Name and version of the layout; a reader refuses any other."""

MAX_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
MAX_HIDDEN_COUNT: Final = 1_024
MAX_COUNT: Final = 2**53
MAX_SCORE_COUNT: Final = 32
MAX_SCORE_NAME_CHARACTERS: Final = 64

REASON_TOO_LARGE: Final = "SNAPSHOT_TOO_LARGE"
REASON_MALFORMED: Final = "SNAPSHOT_MALFORMED"
REASON_FORMAT: Final = "SNAPSHOT_FORMAT_UNKNOWN"
REASON_SCHEMA: Final = "SNAPSHOT_SCHEMA_MISMATCH"
REASON_POLICY: Final = "SNAPSHOT_POLICY_UNKNOWN"
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

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> Weights:
        """Returns the weights among arrays by name."""
        layers = {name: arrays[name] for name in cls._fields}
        return cls(**layers | {"b3": np.float32(arrays["b3"])})

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

        An ablation shows with it whether the learned part does any work.
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
            `router/policies/scheduled_price.py`): first load, step, rows; empty = price itself.
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
        """Transitions it was trained on, 0 if not recorded or no sensible number."""
        count = self.training.get("transition_count", 0)
        return int(count) if is_finite_number(count) and 0 <= count <= MAX_COUNT else 0

    @property
    def scores(self) -> dict[str, float]:
        """The first of its evaluation scores, by name; what is no number is left out."""
        numbers = {
            name: float(value)
            for name, value in self.evaluation.items()
            if len(name) <= MAX_SCORE_NAME_CHARACTERS and is_finite_number(value)
        }
        return dict(islice(numbers.items(), MAX_SCORE_COUNT))


def save_snapshot(snapshot: Snapshot) -> bytes:
    """Returns the snapshot's file; the same content gives the same bytes and version.

    Raises:
        SnapshotError: shapes do not fit together or a number is not finite.
    """
    _check_weights(snapshot.weights, snapshot.feature_names)
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
    return pack(meta, snapshot.weights._asdict())


def pack(meta: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Returns a snapshot file of any kind: JSON metadata and named float32 arrays.

    Written here because `safetensors.numpy.save` puts metadata in an order that differs from call
    to call, and the same content must give the same bytes.

    Raises:
        SnapshotError: a number is not finite.
    """
    _check_finite(tensors)
    header: dict[str, Any] = {}
    data = b""
    for name, array in sorted(tensors.items()):
        start, data = len(data), data + np.asarray(array, dtype="<f4").tobytes()
        shape = list(np.shape(array))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
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
    meta, tensors, version = unpack(blob, FORMAT, Weights._fields, feature_schema, origin)
    if tensors["b3"].shape != ():
        raise SnapshotError(REASON_SHAPE, f"{origin}: b3 is not a scalar")
    weights = Weights.of(tensors)
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
    if not isinstance(base, dict) or not all(map(is_finite_number, base.values())):
        raise SnapshotError(
            REASON_BASE, f"{origin}: metadata.base must hold finite numbers by name"
        )
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
    if len(blob) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(
            REASON_TOO_LARGE, f"{origin}: {len(blob)} bytes, at most {MAX_SNAPSHOT_BYTES}"
        )
    tensors = _read_tensors(blob, origin)
    data_start = 8 + struct.unpack("<Q", blob[:8])[0]
    try:
        header = json.loads(blob[8:data_start], object_pairs_hook=_once)
    except ValueError as error:
        raise SnapshotError(REASON_MALFORMED, f"{origin}: header: {error}") from error
    metadata = header.get("__metadata__") or {}
    if not {"tiercel", "sha256"} <= metadata.keys():
        raise SnapshotError(REASON_FORMAT, f"{origin}: carries no tiercel metadata")
    text = metadata["tiercel"]
    meta = _parse_meta(text, layout, origin)
    if metadata["sha256"] != _content_hash(text, blob[data_start:]):
        raise SnapshotError(REASON_CHECKSUM, f"{origin}: checksum does not match the content")
    if feature_schema is not None and meta["feature_schema"] != feature_schema:
        raise SnapshotError(
            REASON_SCHEMA,
            f"{origin}: feature schema {meta['feature_schema']!r}, expected {feature_schema!r}",
        )
    missing = [name for name in names if name not in tensors]
    if missing:
        raise SnapshotError(REASON_SHAPE, f"{origin}: lacks {', '.join(missing)}")
    _check_finite(tensors, origin)
    return meta, tensors, metadata["sha256"][:12]


_META_TYPES: dict[str, type] = {
    "policy": str,
    "feature_schema": str,
    "feature_names": list,
    "training": dict,
    "evaluation": dict,
    "fleet": dict,
}


def _content_hash(meta_text: str, data: bytes) -> str:
    return hashlib.sha256(meta_text.encode() + b"\0" + data).hexdigest()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; of a name that is there twice nobody knows which one counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


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
    try:
        # JSON can spell half a surrogate pair, which nobody could store, send or print.
        json.dumps(meta, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise SnapshotError(
            REASON_MALFORMED, f"{origin}: metadata holds what is not text"
        ) from error
    return meta


def _read_tensors(blob: bytes, origin: str) -> dict[str, NDArray[np.float32]]:
    """Returns the arrays by name; each owns its memory."""
    try:
        found = dict(deserialize(blob))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise SnapshotError(
            REASON_MALFORMED, f"{origin}: damaged, cut short or no snapshot: {error}"
        ) from error
    for name, each in found.items():
        if each["dtype"] != "F32":
            raise SnapshotError(REASON_SHAPE, f"{origin}: {name} is {each['dtype']}, not F32")
    return {
        name: np.frombuffer(each["data"], dtype="<f4").reshape(each["shape"])
        for name, each in found.items()
    }


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
    if hidden > MAX_HIDDEN_COUNT:
        # A decision would take longer than any request can spare.
        raise SnapshotError(
            REASON_SHAPE, f"{origin}: {hidden} hidden units, at most {MAX_HIDDEN_COUNT}"
        )
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
