"""Files of JSON lines: what is wrong is named by file and line."""

from __future__ import annotations

import pathlib

import pytest

from services.calibrate.lines import MOST_SHOWN, name_at, number_at, read_lines, text_at
from services.local.errors import InputError


def read(path: pathlib.Path) -> list[tuple[str, float]]:
    """A file of names with numbers."""
    return read_lines(path, lambda line: (name_at(line, "name"), number_at(line, "n", 0, 9)))


def test_every_mistake_is_named_with_its_line(tmp_path: pathlib.Path) -> None:
    """Lines that are right or empty are passed over; all that are wrong are listed at once."""
    path = tmp_path / "own.jsonl"
    lines = ['{"name": "a", "n": 1}', "", "{", "[]", '{"n": 1}', '{"name": "A b", "n": 1}']
    path.write_text("\n".join([*lines, '{"name": "a", "n": 10}', '{"name": "a", "n": true}']))
    with pytest.raises(InputError) as error:
        read(path)
    said = str(error.value).splitlines()
    assert [each.partition(": ")[0] for each in said] == [str(path)] * 6
    assert [each.split(": ")[1] for each in said] == [f"line {n}" for n in range(3, 9)]
    assert "name: is missing" in said[2]
    assert "got 'A b'" in said[3]
    assert "n: must be 0 to 9, got 10" in said[4]


def test_a_file_of_mistakes_is_not_printed_whole(tmp_path: pathlib.Path) -> None:
    """Beyond some twenty mistakes only their number is told."""
    path = tmp_path / "own.jsonl"
    path.write_text("{\n" * 1000)
    with pytest.raises(InputError, match="980 more mistakes") as error:
        read(path)
    assert len(str(error.value).splitlines()) == MOST_SHOWN + 1


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "no line"), (b"\xff\xfe\x00", "UTF-8"), (None, "cannot be read")]
)
def test_a_file_that_is_none_is_named(
    tmp_path: pathlib.Path, content: bytes | None, said: str
) -> None:
    """An empty file, one of other letters and one that is not there are one line each."""
    path = tmp_path / "own.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        read(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("start", ["", '{"name": "a", "n": 1}\n'])
def test_a_line_without_an_end_is_not_read_to_its_end(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """A device that gives bytes for ever would fill the memory."""
    monkeypatch.setattr("services.calibrate.lines._LONGEST_LINE_BYTES", 100)
    path = tmp_path / "own.jsonl"
    path.write_text(start + "x" * 1000)
    with pytest.raises(InputError, match=r"line [12]: is longer than 100 characters") as error:
        read(path)
    assert len(str(error.value).splitlines()) == 1


def test_keys_that_are_not_there_may_have_a_default() -> None:
    """A default stands for what is missing, never for what is wrong."""
    assert text_at({}, "a", "default") == "default"
    assert number_at({}, "a", 0, 1, 0.5) == 0.5
    with pytest.raises(ValueError, match="a: must be"):
        text_at({"a": 3}, "a", "default")
