"""How commands call: by what the environment names, and never a key in plain text."""

from __future__ import annotations

import pytest

from services.common.access.caller import (
    API_KEY_VARIABLE,
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    ROOTS_VARIABLE,
    Caller,
    CallerError,
)
from tests import certificates

OWN = certificates.folder() / "operator"


def test_without_variables_calls_go_in_plain_text() -> None:
    """A mesh of this machine needs nothing."""
    assert Caller.of_environment({}).credentials("127.0.0.1:7410") is None


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_a_key_is_sent_to_this_machine_without_tls(address: str) -> None:
    """What stays on the machine needs no certificates."""
    caller = Caller.of_environment({API_KEY_VARIABLE: "tck_x"})
    assert caller.credentials(address) is not None


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({API_KEY_VARIABLE: "tck_x"}, "is not sent to example.com:7410 in plain text"),
        ({API_KEY_VARIABLE: "tck_x\r"}, "must be printable ASCII; is a line end in it?"),
        ({ROOTS_VARIABLE: "missing.pem"}, "missing.pem: cannot be read"),
        ({ROOTS_VARIABLE: __file__}, "is no PEM file"),
        ({CERTIFICATE_VARIABLE: str(OWN / "tls.crt")}, "give the roots alone, or all three"),
        (
            {ROOTS_VARIABLE: str(OWN / "ca.crt"), KEY_VARIABLE: str(OWN / "tls.key")},
            "give the roots alone, or all three",
        ),
    ],
)
def test_a_mistake_is_one_line(variables: dict[str, str], problem: str) -> None:
    """The variable is named with what is wrong."""
    with pytest.raises(CallerError) as caught:
        Caller.of_environment(variables).credentials("example.com:7410")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
