"""The endpoint list: joins, leaves, drains, and what is stored of them."""

from __future__ import annotations

import pytest

from router.fleet import EndpointSpec
from services.common.errors import AlreadyExistsError, NotFoundError, ResourceExhaustedError
from services.load_monitor.topology import Topology, decode_changes, encode_changes


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
    stored = decode_changes(encode_changes(changed.changes))
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
        decode_changes(payload)
