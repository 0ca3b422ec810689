"""Who may ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.access.access import AccessSettings, load_authenticator
from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.common.errors import PermissionDeniedError, UnauthenticatedError
from services.common.http_host import own_hosts
from services.common.log import get_logger
from services.openai_door.gate import Gate


def test_a_key_of_the_role_data_passes(tmp_path: Path) -> None:
    """None, a wrong one and one of another role do not."""
    path = tmp_path / "keys.toml"
    (shop, key), (board, reader) = new_key("shop", [Role.DATA]), new_key("board", [Role.READ])
    write_keys(path, [shop, board])
    gate = Gate(
        load_authenticator(
            AccessSettings(keys_file=str(path)), {}, monotonic_s=lambda: 0.0, log=get_logger("test")
        )
    )
    gate.check(f"Bearer {key}")
    for wrong in ("", f"Bearer {key}x", key, "Bearer"):
        with pytest.raises(UnauthenticatedError):
            gate.check(wrong)
    with pytest.raises(PermissionDeniedError, match="board"):
        gate.check(f"Bearer {reader}")


def test_without_keys_routers_decide() -> None:
    """The door lets everything pass, keys it does not know too."""
    Gate(None).check("")
    Gate(None).check("Bearer tck_x")


def test_without_keys_another_name_of_this_machine_is_refused() -> None:
    """A web page can have its own name lead here; it cannot guess a key."""
    gate = Gate(None, own_hosts("127.0.0.1:7440", []))
    gate.check("", "127.0.0.1:7440")
    with pytest.raises(PermissionDeniedError, match=r"mesh\.access\.http_hosts"):
        gate.check("", "rebound.example:7440")
