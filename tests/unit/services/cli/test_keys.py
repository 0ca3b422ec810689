"""``tiercel keys``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli.app import run
from services.common.access.keys import KeyRing
from services.common.log import get_logger
from tests.unit.services.cli.said import complaint


def test_a_key_is_made_listed_and_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed once works until it is revoked; the list shows no hash."""
    path = tmp_path / "keys.toml"
    assert run(["keys", "add", str(path), "shop"]) == 0
    assert run(["keys", "add", str(path), "shop", "--role", "data", "--role", "read"]) == 0
    first, second = capsys.readouterr().out.split()
    now = [0.0]
    ring = KeyRing(path, monotonic_s=lambda: now[0], log=get_logger("test"))
    assert run(["keys", "list", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["roles"] for row in rows] == [["data"], ["data", "read"]]
    assert rows[0].keys() == {"id", "client", "roles", "created"}
    assert run(["keys", "list", str(path)]) == 0
    assert rows[0]["id"] in capsys.readouterr().out
    assert run(["keys", "revoke", str(path), rows[0]["id"]]) == 0
    now[0] = 5.0
    assert ring.find(first) is None
    assert ring.find(second) is not None
    assert run(["keys", "revoke", str(path), "shop"]) == 0
    now[0] = 10.0
    assert ring.find(second) is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["add", "FILE", "Not A Name"], "CLIENT: must be a name of 1 to 64"),
        (["add", "FILE", "shop", "--role", "king"], "--role: must be one of"),
        (["list", "FILE"], "cannot be read"),
        (["revoke", "FILE", "shop"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written then."""
    path = tmp_path / "keys.toml"
    assert run(["keys", *(str(path) if each == "FILE" else each for each in arguments)]) == 2
    assert problem in complaint(capsys)
    assert not path.exists()
