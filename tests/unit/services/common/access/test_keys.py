"""API keys: kept as hashes, several at once, added and revoked while the process runs."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.access.keys import (
    Key,
    KeyFileError,
    KeyRing,
    changing,
    new_key,
    read_keys,
    write_keys,
)
from services.common.access.roles import Role
from services.common.log import get_logger


class Rig:
    """A file of keys and a ring that reads it, on a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.toml"
        self.now_s = 0.0
        self.first, self.first_text = new_key("shop", [Role.DATA])
        write_keys(self.path, [self.first])
        self.ring = KeyRing(self.path, monotonic_s=lambda: self.now_s, log=get_logger("test"))

    def write(self, *keys: Key) -> None:
        """Changes the file, and lets the time pass in which it is not looked at."""
        write_keys(self.path, keys)
        self.now_s += 2.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A ring with one key."""
    return Rig(tmp_path)


def test_the_file_does_not_hold_the_key(rig: Rig) -> None:
    """Who reads the file cannot call."""
    # The secret itself may hold an underscore.
    _, _, secret = rig.first_text.split("_", 2)
    assert secret not in rig.path.read_text()
    assert rig.ring.find(rig.first.sha256) is None


def test_a_key_is_found_whole_only(rig: Rig) -> None:
    """Every other text is nobody's."""
    text = rig.first_text
    assert rig.ring.find(text) == rig.first
    others = ["", "tck_", text[:-1], text + "x", text.swapcase(), f"tck_{rig.first.id}_", "ü" * 99]
    assert [rig.ring.find(each) for each in others] == [None] * len(others)
    assert rig.ring.find(text + "x" * 100_000) is None


def test_keys_come_and_go_without_a_restart(rig: Rig) -> None:
    """A second key of the same client works beside the first, then alone."""
    second, text = new_key("shop", [Role.DATA, Role.READ])
    rig.write(rig.first, second)
    assert rig.ring.find(rig.first_text) == rig.first
    assert rig.ring.find(text) == second
    rig.write(second)
    assert rig.ring.find(rig.first_text) is None
    assert rig.ring.find(text) == second


def test_a_broken_file_leaves_the_keys_in_use(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once; a good file after it is taken in."""
    for text in ("nonsense", "[[keys]]\nid = 3\n"):
        rig.path.write_text(text)
        rig.now_s += 2.0
        assert rig.ring.find(rig.first_text) == rig.first
    assert [record.getMessage() for record in caplog.records] == ["keys_refused"] * 2
    rig.write()
    assert rig.ring.find(rig.first_text) is None


def test_no_two_keys_are_alike() -> None:
    """Ids and secrets are drawn anew."""
    texts = {new_key("shop", [Role.DATA])[1] for _ in range(100)}
    assert len(texts) == 100
    assert len({text.split("_")[1] for text in texts}) == 100


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("", "keys.0: must have exactly"),
        ("id = 1\nclient = 'a'\nroles = ['data']\nsha256 = ''\ncreated = ''", "keys.0.id: must be"),
        (
            "id = 'short'\nclient = 'A B'\nroles = ['king']\nsha256 = 'x'\ncreated = ''",
            "keys.0.client: must be a name",
        ),
        ("id = 'x'\nsha256 = 'y'\nextra = 1", "keys.0: must have exactly"),
    ],
)
def test_a_mistake_is_named_with_its_row(tmp_path: Path, row: str, problem: str) -> None:
    """A file edited by hand says what is wrong with it."""
    path = tmp_path / "keys.toml"
    path.write_text(f"[[keys]]\n{row}\n")
    with pytest.raises(KeyFileError) as caught:
        read_keys(path)
    assert any(problem in line and str(path) in line for line in caught.value.problems)


def test_a_file_that_is_missing_is_one_line(tmp_path: Path) -> None:
    """The start is refused, not served without keys."""
    with pytest.raises(KeyFileError, match="cannot be read"):
        KeyRing(tmp_path / "none.toml", monotonic_s=lambda: 0.0, log=get_logger("test"))


@pytest.mark.parametrize("text", ["", "[[key]]\nid = 'x'\n", "keys = []\nmore = 1\n"])
def test_a_file_that_says_nothing_of_keys_takes_none_away(rig: Rig, text: str) -> None:
    """An editor may empty it before it writes, and a slip in a table's name is no wish."""
    rig.path.write_text(text)
    with pytest.raises(KeyFileError, match=r"must hold \[\[keys\]\], or keys = \[\] for none"):
        read_keys(rig.path)
    write_keys(rig.path, [])
    assert read_keys(rig.path) == ()


def test_a_link_to_a_file_of_keys_stays_one(rig: Rig) -> None:
    """Who reads the file that it names hears of a revoked key."""
    link = rig.path.with_name("link.toml")
    link.symlink_to(rig.path)
    write_keys(link, [])
    assert link.is_symlink()
    assert read_keys(rig.path) == ()


def test_who_changes_the_file_waits_for_the_other(rig: Rig) -> None:
    """So a key that is revoked does not come back with one that is added at that time."""
    began = threading.Event()

    def add() -> None:
        began.set()
        with changing(rig.path):
            write_keys(rig.path, (*read_keys(rig.path), new_key("till", [Role.DATA])[0]))

    other = threading.Thread(target=add)
    with changing(rig.path):
        kept = [key for key in read_keys(rig.path) if key.client != "shop"]
        other.start()
        assert began.wait(10.0)
        other.join(0.05)
        write_keys(rig.path, kept)
    other.join(10.0)
    assert [key.client for key in read_keys(rig.path)] == ["till"]


def test_no_file_is_written_that_cannot_be_read(rig: Rig) -> None:
    """One key more than there may be leaves the file as it was."""
    with pytest.raises(KeyFileError, match="must be at most 10000"):
        write_keys(rig.path, [rig.first] * 10_001)
    assert read_keys(rig.path) == (rig.first,)


@pytest.mark.parametrize("created", ["x" * 65, "\x1b[2J"])
def test_a_moment_is_no_text_of_its_own(rig: Rig, created: str) -> None:
    """What a list prints is short and printable."""
    write_keys(rig.path, [replace(rig.first, created=created)])
    with pytest.raises(KeyFileError, match="created: must be a moment"):
        read_keys(rig.path)
