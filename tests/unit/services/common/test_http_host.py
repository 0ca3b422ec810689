"""By which host an HTTP service may be asked."""

from __future__ import annotations

import pytest

from services.common.http_host import own_hosts


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:7440", True),
        ("127.0.0.1", True),
        ("[::1]:7440", True),
        ("LOCALHOST:7440", True),
        ("mesh.localhost", True),
        ("localhost.:80", True),
        ("mesh.example:7440", True),
        ("", True),
        ("rebound.example:7440", False),
        ("127.0.0.1.rebound.example", False),
        ("localhost.rebound.example:7440", False),
        ("other.mesh.example", False),
        ("[rebound.example]", False),
        ("127.0.0.1,rebound.example", False),
    ],
)
def test_on_loopback_only_own_names_are_taken(host: str, is_own: bool) -> None:
    """Any other name may be that of a web page, which leads it here."""
    assert own_hosts("127.0.0.1:7440", ["mesh.example"])(host) is is_own


@pytest.mark.parametrize("listen", ["0.0.0.0:7440", "10.0.0.1:7440", "[::]:0"])
def test_elsewhere_every_name_is_taken(listen: str) -> None:
    """Other machines reach it by whatever name they know."""
    assert own_hosts(listen, [])("rebound.example:7440")
