"""The endpoint list: joins, leaves, drains, and what is stored of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet import EndpointSpec
from services.common.errors import AlreadyExistsError, NotFoundError, ResourceExhaustedError
from services.load_monitor.convert_state import stored_picture
from services.load_monitor.model import (
    DEFAULT_DRAIN_S,
    MAX_ENDPOINTS_BYTES,
    MAX_REASON_BYTES,
    EndpointView,
    Health,
    TierGauge,
)
from services.load_monitor.topology import Changes, Topology, decode_changes, encode_changes
from tests.unit.services.load_monitor.rig import picture, refused_if_evil


def read(payload: bytes) -> tuple[Changes, list[str]]:
    """Decodes what is stored, where no endpoint may have an address of `evil`."""
    return decode_changes(payload, refused_if_evil)


def endpoint(name: str, port: int = 8001) -> EndpointSpec:
    """Returns a definition."""
    return EndpointSpec(name, f"127.0.0.1:{port}", name, {"small": "small"})


@pytest.fixture
def topology() -> Topology:
    """A list with one configured endpoint, number 1."""
    return Topology({"a": endpoint("a")}).renumbered()


def test_every_join_and_leave_has_a_larger_number(topology: Topology) -> None:
    """Adding, draining and dropping count up; repeating them does not."""
    assert topology.version == 1
    two = topology.add(endpoint("b"), max_endpoints=9)
    assert (two.version, list(two.endpoints)) == (2, ["a", "b"])
    assert two.add(endpoint("b"), max_endpoints=9) is two
    three = two.drain("b", 123)
    assert (three.version, dict(three.draining)) == (3, {"b": 123})
    assert three.drain("b", 999) is three
    four = three.drop("b")
    assert (four.version, list(four.endpoints), dict(four.draining)) == (4, ["a"], {})
    assert four.drop("b") is four


def test_name_taken_by_another_definition(topology: Topology) -> None:
    """A different definition, a draining one, or the settings' own are ALREADY_EXISTS."""
    with pytest.raises(AlreadyExistsError, match="different definition"):
        topology.add(endpoint("a", 9), max_endpoints=9)
    with pytest.raises(AlreadyExistsError, match="still draining"):
        topology.drain("a", 1).add(endpoint("a"), max_endpoints=9)
    with pytest.raises(AlreadyExistsError, match="differently in the settings"):
        topology.drop("a").add(endpoint("a", 9), max_endpoints=9)
    assert list(topology.drop("a").add(endpoint("a"), max_endpoints=9).endpoints) == ["a"]


def test_unknown_name_and_full_list(topology: Topology) -> None:
    """Both errors name what would be right."""
    with pytest.raises(NotFoundError, match="unknown endpoint 'x'; known: a"):
        topology.drain("x", 1)
    with pytest.raises(ResourceExhaustedError, match="limit 1 endpoints"):
        topology.add(endpoint("b"), max_endpoints=1)


def test_stored_changes_are_merged_with_the_settings(topology: Topology) -> None:
    """A restart keeps additions and removals; the settings' new endpoints join."""
    changed = topology.add(endpoint("b"), max_endpoints=9).drop("a")
    stored, problems = read(encode_changes(changed.changes))
    assert not problems
    assert stored == changed.changes
    same = Topology({"a": endpoint("a")}).adopting(stored).renumbered()
    assert (same.version, list(same.endpoints)) == (changed.version, ["b"])
    edited = Topology({"a": endpoint("a"), "c": endpoint("c")}).adopting(stored).renumbered()
    assert (edited.version, list(edited.endpoints)) == (changed.version + 1, ["b", "c"])


def test_edited_settings_win_over_an_addition_of_the_same_name(topology: Topology) -> None:
    """Who edits the file means it."""
    stored = topology.add(endpoint("b", 1), max_endpoints=9).changes
    edited = Topology({"a": endpoint("a"), "b": endpoint("b", 2)}).adopting(stored).renumbered()
    assert edited.endpoints["b"].address == "127.0.0.1:2"
    assert edited.version == stored.version + 1


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b'{"version": 1}', b"\xff"])
def test_damaged_store_is_a_value_error(payload: bytes) -> None:
    """Whatever is stored, the monitor gets one kind of error."""
    with pytest.raises(ValueError, match=r"Expecting|cannot be read|decode"):
        read(payload)


def stored_with(**fields: Any) -> bytes:
    """Returns a stored list with fields of its own."""
    whole = {"version": 3, "added": [], "removed": [], "draining": {}, "fingerprint": ""}
    return json.dumps(whole | fields).encode()


def entry(**fields: Any) -> dict[str, Any]:
    """Returns a stored endpoint with fields of its own."""
    tiers = [{"tier": "small", "model": "m"}]
    whole = {"name": "b", "address": "h:1", "device": "b", "tiers": tiers, "profile": ""}
    return whole | {"metrics_address": "", "speed": 1.0} | fields


@pytest.mark.parametrize(
    "bad",
    [
        entry(profile="x" * 3_000_000),
        entry(name="x" * 65),
        entry(name=7),
        entry(speed=100.0),
        entry(speed=10**400),
        entry(speed="fast"),
        entry(tiers=[{"tier": f"t{index}", "model": "m"} for index in range(65)]),
        entry(tiers=[{"tier": "small"}]),
        entry(address="h:1 --flag"),
        entry(surprise=1),
        {},
        [],
        None,
    ],
)
def test_a_poisoned_endpoint_is_left_out_and_the_others_stay(bad: object) -> None:
    """What stands in the store passes the door's own checks, one endpoint at a time."""
    changes, problems = read(stored_with(added=[bad, entry(name="good")]))
    assert list(changes.added) == ["good"]
    assert len(problems) == 1
    assert len(problems[0].encode()) <= 200


@pytest.mark.parametrize(
    "payload",
    [
        stored_with(version=2**63),
        stored_with(version=-1),
        stored_with(version="3"),
        stored_with(version=1e400),
        stored_with(added=7),
        stored_with(draining=[]),
        b"[" * 100_000,
        b" " * (33 * 1024 * 1024),
    ],
)
def test_a_list_that_cannot_be_gone_on_from_is_a_value_error(payload: bytes) -> None:
    """A number at the end of what messages hold, nesting without end, bytes without end."""
    with pytest.raises(ValueError, match=r"stored endpoint list|Expecting"):
        read(payload)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
_FIELDS = ("version", "added", "removed", "draining", "fingerprint")


@given(
    st.dictionaries(st.sampled_from(_FIELDS), _VALUES),
    st.lists(st.dictionaries(st.sampled_from(list(entry())), _VALUES), max_size=2),
)
def test_any_stored_list_is_read_or_refused(
    fields: dict[str, Any], entries: list[dict[str, Any]]
) -> None:
    """What is read fits a state; what cannot be read is one kind of error."""
    payload = stored_with(**({"added": [entry(**each) for each in entries]} | fields))
    try:
        changes, _problems = read(payload)
    except ValueError:
        return
    topology = Topology({}).adopting(changes).renumbered()
    again, problems = read(encode_changes(topology.changes))
    assert not problems
    assert again == topology.changes


@pytest.mark.parametrize("drain", [-1, 1.7e18, 1e400, "x", None])
def test_a_drain_without_sense_takes_the_default(drain: object) -> None:
    """An endpoint cannot be made to drain for ever by what stands in the store."""
    changes, _problems = read(stored_with(draining={"b": drain}))
    assert changes.draining == {"b": DEFAULT_DRAIN_S}


def test_a_drain_of_nothing_is_dropped(topology: Topology) -> None:
    """It could never end."""
    changes, _problems = read(stored_with(draining={"a": 1.0, "gone": 1.0}))
    assert topology.adopting(changes).draining == {"a": 1.0}


def test_endpoints_that_would_not_fit_a_state_are_refused() -> None:
    """Whatever the number allowed: the state must stay below what a message holds."""
    models = {f"t{index}": "m" * 128 for index in range(64)}
    first = {f"e{n}": EndpointSpec(f"e{n}", "h:1", "d", models) for n in range(300)}
    topology = Topology(first).renumbered()
    with pytest.raises(ResourceExhaustedError) as caught:  # noqa: PT012 - the end of a loop
        for index in range(300, 100_000):
            spec = EndpointSpec(f"e{index}", "h:1", "d", models)
            topology = topology.add(spec, max_endpoints=100_000)
    assert caught.value.reason == "ENDPOINTS_TOO_LARGE"
    views = tuple(
        EndpointView(spec, Health.PARTIAL, 1.0, 2**60, gauges_of(spec), "r" * MAX_REASON_BYTES)
        for spec in topology.endpoints.values()
    )
    size = len(stored_picture(picture(1, views), by_name=True))
    assert MAX_ENDPOINTS_BYTES / 4 < size <= MAX_ENDPOINTS_BYTES


def gauges_of(spec: EndpointSpec) -> tuple[TierGauge, ...]:
    """Returns the largest gauges an endpoint can have."""
    most = 2**53
    return tuple(
        TierGauge(tier, True, 2**31 - 1, most, most, 1e9 + 0.1, 1e9 + 0.1, "k" * 64)
        for tier in spec.models
    )


def test_stored_endpoints_that_would_not_fit_a_state_are_left_out() -> None:
    """The first ones are kept, else no router would get a state, after a restart either."""
    models = {f"t{index}": "m" * 128 for index in range(64)}
    tiers = [{"tier": tier, "model": model} for tier, model in models.items()]
    added = [entry(name=f"e{number}", tiers=tiers) for number in range(600)]
    changes, problems = read(stored_with(added=added))
    assert list(changes.added) == [each["name"] for each in added[: len(changes.added)]]
    assert 300 < len(changes.added) < len(added)
    assert len(problems) == len(added) - len(changes.added)
    with pytest.raises(ResourceExhaustedError, match="endpoints too large"):
        Topology({}, changes).add(EndpointSpec("f", "h:1", "d", models), max_endpoints=1_000)


@pytest.mark.parametrize("field", ["address", "metrics_address"])
def test_a_stored_endpoint_at_an_address_that_is_not_allowed_is_left_out(field: str) -> None:
    """Whoever writes to Redis sends no prompts elsewhere."""
    changes, problems = read(stored_with(added=[entry(**{field: "evil:1"}), entry(name="good")]))
    assert set(changes.added) == {"good"}
    assert len(problems) == 1
    assert "mesh.endpoint_addresses" in problems[0]
