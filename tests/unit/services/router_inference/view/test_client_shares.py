"""One client says as much as all others together, and a little more."""

from __future__ import annotations

from services.router_inference.view.client_shares import (
    FREE,
    HALVED_S,
    MOST_CLIENTS,
    ClientShares,
)

AT = 0, 1


def admitted(shares: ClientShares, client: str, count: int, now_s: float = 0.0) -> int:
    """Returns how many of so many reports count."""
    return sum(shares.admit(AT, client, now_s) for _ in range(count))


def test_who_is_alone_is_heard() -> None:
    """Most meshes have one client."""
    assert admitted(ClientShares(0.0), "one", 1_000) == 1_000


def test_who_says_most_counts_as_all_others_and_a_few() -> None:
    """Whether it spoke first or last, and however many the others are."""
    shares = ClientShares(0.0)
    assert [admitted(shares, name, 10) for name in ("a", "b", "c")] == [10, 10, 10]
    assert admitted(shares, "loud", 1_000) == 30 + FREE
    assert admitted(shares, "a", 1) == 1
    assert admitted(shares, "loud", 1_000) == 1
    assert shares.admit((1, 1), "loud", 0.0)


def test_others_are_forgotten_in_time() -> None:
    """Who said something once does not hold back the one client of a mesh for ever."""
    shares = ClientShares(0.0)
    assert admitted(shares, "once", 1) == 1
    assert admitted(shares, "usual", 1_000) == FREE + 1
    assert admitted(shares, "usual", 1_000, HALVED_S - 1.0) == 0
    assert admitted(shares, "usual", 1_000, HALVED_S) == 1_000


def test_clients_without_number_are_not_all_remembered() -> None:
    """Those who said least are forgotten."""
    shares = ClientShares(0.0)
    assert admitted(shares, "usual", 5) == 5
    for number in range(2 * MOST_CLIENTS):
        assert admitted(shares, f"c{number}", 1) == 1
    assert len(shares._counted[AT]) == MOST_CLIENTS
    assert shares._counted[AT]["usual"] == 5


def test_who_comes_when_as_many_as_are_remembered_have_spoken_has_no_more_of_a_say() -> None:
    """Half of it at most: its first report must not be forgotten before its second comes."""
    shares = ClientShares(0.0)
    for number in range(MOST_CLIENTS):
        assert admitted(shares, f"c{number}", 2) == 2
    assert admitted(shares, "loud", 10_000) <= 2 * MOST_CLIENTS + FREE
    assert admitted(shares, "another", 1) == 1
    assert len(shares._counted[AT]) == MOST_CLIENTS
