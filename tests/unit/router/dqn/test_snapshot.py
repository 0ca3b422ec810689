"""Snapshots survive a round trip, and nothing damaged gets in."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dqn import snapshot as snapshots
from router.dqn.paper_snapshot import load_paper_snapshot
from router.dqn.snapshot import Snapshot, SnapshotError, Weights, load_snapshot, save_snapshot
from tests.unit.deploy.manifests import ROOT

FEATURES = ("a", "b", "c")
POLICIES = ROOT / "policies"


def _snapshot(seed: int = 0, hidden: int = 4) -> Snapshot:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    n = len(FEATURES)
    weights = Weights(
        draw(n, hidden),
        draw(hidden),
        draw(2 * hidden, hidden),
        draw(hidden),
        draw(hidden + n),
        np.float32(0.5),
    )
    return Snapshot(
        weights,
        "schema-1",
        FEATURES,
        training={"seed": seed, "transition_count": 12},
        evaluation={"performance": 0.9},
        fleet={"tiers": ["s", "l"]},
        base={"level": -4.0},
    )


def _rewrite(blob: bytes, change: Any) -> bytes:
    """Returns the file with its JSON header changed in place by `change(header)`."""
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + blob[8 + length :]


def test_round_trip_keeps_everything() -> None:
    """What is loaded equals what was saved, and the version is a hash of the content."""
    before = _snapshot()
    blob = save_snapshot(before)
    after = load_snapshot(blob, "schema-1")
    for name, array in before.weights._asdict().items():
        np.testing.assert_array_equal(array, getattr(after.weights, name))
    assert (after.training, after.evaluation, after.fleet) == (
        before.training,
        before.evaluation,
        before.fleet,
    )
    assert after.transition_count == 12
    assert len(after.version) == 12
    assert save_snapshot(after) == blob


def test_version_follows_content() -> None:
    """Other weights or other metadata give another version."""
    base = load_snapshot(save_snapshot(_snapshot())).version
    assert load_snapshot(save_snapshot(_snapshot(seed=1))).version != base
    assert load_snapshot(save_snapshot(replace(_snapshot(), evaluation={}))).version != base


def test_file_is_safetensors() -> None:
    """The reference implementation of the format reads the same tensors."""
    before = _snapshot()
    tensors = safetensors.numpy.load(save_snapshot(before))
    np.testing.assert_array_equal(tensors["w2_GH"], before.weights.w2_GH)
    assert set(tensors) == set(Weights._fields)


def test_other_schema_is_refused() -> None:
    """A snapshot for other features is refused with its own reason."""
    with pytest.raises(SnapshotError, match="schema-1") as caught:
        load_snapshot(save_snapshot(_snapshot()), "schema-2")
    assert caught.value.reason == snapshots.REASON_SCHEMA


@pytest.mark.parametrize("field", ["w1_FH", "b2_H", "w3_P", "b3"])
def test_nan_is_refused_on_both_sides(field: str) -> None:
    """A number that is not finite is neither written nor read."""
    good = _snapshot()
    bad = np.array(getattr(good.weights, field))
    bad.flat[0] = np.nan
    broken = replace(good, weights=good.weights._replace(**{field: bad}))  # type: ignore[arg-type]
    with pytest.raises(SnapshotError) as caught:
        save_snapshot(broken)
    assert caught.value.reason == snapshots.REASON_NOT_FINITE


def test_nan_in_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader checks numbers itself, whatever the writer did."""
    good = _snapshot()
    b1_H = good.weights.b1_H.copy()
    b1_H[0] = np.inf
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "_check_finite", lambda *_: None)
        blob = save_snapshot(replace(good, weights=good.weights._replace(b1_H=b1_H)))
    with pytest.raises(SnapshotError) as caught:
        load_snapshot(blob)
    assert caught.value.reason == snapshots.REASON_NOT_FINITE


def test_wrong_shapes_are_refused() -> None:
    """Layers that do not fit together are refused."""
    good = _snapshot()
    for broken in (
        replace(good, weights=good.weights._replace(b1_H=np.zeros(5, np.float32))),
        replace(good, weights=good.weights._replace(w1_FH=np.zeros(3, np.float32))),
        replace(good, feature_names=("a", "b")),
    ):
        with pytest.raises(SnapshotError) as caught:
            save_snapshot(broken)
        assert caught.value.reason == snapshots.REASON_SHAPE


def test_every_truncation_is_refused() -> None:
    """No prefix of a snapshot is a snapshot."""
    blob = save_snapshot(_snapshot())
    for length in range(len(blob)):
        with pytest.raises(SnapshotError):
            load_snapshot(blob[:length])


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_flipped_byte_never_loads_as_something_else(position: int, flip: int) -> None:
    """A changed byte is refused, or hit only padding and changed nothing."""
    blob = bytearray(save_snapshot(_snapshot()))
    blob[position % len(blob)] ^= flip
    try:
        loaded = load_snapshot(bytes(blob), "schema-1")
    except SnapshotError:
        return
    expected = _snapshot().weights
    for name in Weights._fields:
        np.testing.assert_array_equal(getattr(loaded.weights, name), getattr(expected, name))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_refused(blob: bytes) -> None:
    """Arbitrary bytes end in SnapshotError, never in another exception."""
    with pytest.raises(SnapshotError):
        load_snapshot(blob)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: h.pop("__metadata__"), snapshots.REASON_FORMAT),
        (lambda h: h["__metadata__"].update(tiercel="{}"), snapshots.REASON_FORMAT),
        (lambda h: h["__metadata__"].update(sha256="0" * 64), snapshots.REASON_CHECKSUM),
        (lambda h: h["w1_FH"].update(dtype="I32"), snapshots.REASON_SHAPE),
        (lambda h: h["w1_FH"].update(dtype="BF16", shape=[3, 8]), snapshots.REASON_SHAPE),
        (lambda h: h["w1_FH"].update(dtype="F64"), snapshots.REASON_MALFORMED),
        (lambda h: h["w1_FH"].update(shape=[4, 3]), snapshots.REASON_SHAPE),
        (lambda h: h["w1_FH"].update(data_offsets=[0, 10**9]), snapshots.REASON_MALFORMED),
        (lambda h: h["w1_FH"].update(shape=[3, -4]), snapshots.REASON_MALFORMED),
        (lambda h: h["b2_H"].update(data_offsets=h["b1_H"]["data_offsets"]), "SNAPSHOT_MALFORMED"),
        (lambda h: h.update(w3_Q=h.pop("w3_P")), snapshots.REASON_SHAPE),
        (lambda h: h.pop("w3_P"), snapshots.REASON_MALFORMED),
    ],
)
def test_damaged_header_is_refused(change: Any, reason: str) -> None:
    """Each kind of damage has its own reason."""
    with pytest.raises(SnapshotError) as caught:
        load_snapshot(_rewrite(save_snapshot(_snapshot()), change))
    assert caught.value.reason == reason


def test_name_that_is_there_twice_is_refused() -> None:
    """Readers differ in which of two entries they take, so neither counts."""
    blob = save_snapshot(_snapshot())
    (length,) = struct.unpack("<Q", blob[:8])
    header = blob[8 : 8 + length].rstrip()
    entry = json.dumps(json.loads(header)["b1_H"]).encode()
    twice = header[:-1] + b',"b1_H":' + entry + b"}"
    with pytest.raises(SnapshotError, match="twice") as caught:
        load_snapshot(struct.pack("<Q", len(twice)) + twice + blob[8 + length :])
    assert caught.value.reason == snapshots.REASON_MALFORMED


@pytest.mark.parametrize("part", ["training", "evaluation", "fleet"])
def test_half_a_character_is_refused(part: str) -> None:
    """Wherever it stands: nothing that reads the file on could store, send or print it."""
    facts: Any
    for facts in ({"\ud800": 1.0}, {"note": ["\udfff"]}):
        with pytest.raises(SnapshotError, match="not text") as caught:
            load_snapshot(save_snapshot(replace(_snapshot(), **{part: facts})))
        assert caught.value.reason == snapshots.REASON_MALFORMED
    facts = {"\U0001f600": "\u00e9"}
    whole = replace(_snapshot(), **{part: facts})
    assert getattr(load_snapshot(save_snapshot(whole)), part) == facts


@pytest.mark.parametrize("length", [0, 7, 2**20, 2**60, 2**64 - 1])
def test_implausible_header_length_is_refused(length: int) -> None:
    """A header longer than the file is read no further than its length."""
    blob = struct.pack("<Q", length) + save_snapshot(_snapshot())[8:]
    with pytest.raises(SnapshotError, match="header") as caught:
        load_snapshot(blob)
    assert caught.value.reason == snapshots.REASON_MALFORMED


def test_shipped_snapshots_keep_their_versions() -> None:
    """A version is a digest of the content: what is shipped loads and is named as ever."""
    opt, reference = (
        load_snapshot((POLICIES / f"{name}.safetensors").read_bytes())
        for name in ("opt-a100", "reference")
    )
    paper = load_paper_snapshot((POLICIES / "opt-a100.dqn-paper.safetensors").read_bytes())
    assert (opt.version, reference.version) == ("90274fea73f0", "0bcfe00e0429")
    assert paper.version == "03a40de846d3"
    assert save_snapshot(opt) == (POLICIES / "opt-a100.safetensors").read_bytes()


def test_zeroed_network_says_nothing() -> None:
    """The ablation silences the network, hidden layers and linear term, and changes no original."""
    weights = _snapshot().weights
    zeroed = weights.zeroed()
    assert not zeroed.w3_P.any()
    assert zeroed.b3 == 0.0
    assert weights.w3_P.any()


@pytest.mark.parametrize("base", [{"level": "low"}, {"level": True}, {"level": 10**400}])
def test_base_must_hold_numbers(base: Any) -> None:
    """Parameters of the score it corrects that are no numbers are refused."""
    with pytest.raises(SnapshotError) as caught:
        load_snapshot(save_snapshot(replace(_snapshot(), base=base)))
    assert caught.value.reason == snapshots.REASON_BASE


@pytest.mark.parametrize("count", [math.inf, math.nan, -1, 2**80, True, "many", [1]])
def test_a_count_that_is_none_is_no_count(count: Any) -> None:
    """What a snapshot says of itself is a stranger's word."""
    assert replace(_snapshot(), training={"transition_count": count}).transition_count == 0


def test_a_network_too_wide_to_decide_with_is_refused() -> None:
    """It would hold up every request."""
    with pytest.raises(SnapshotError) as caught:
        save_snapshot(_snapshot(hidden=1_025))
    assert caught.value.reason == "SNAPSHOT_SHAPE_MISMATCH"
