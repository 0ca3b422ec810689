"""What is printed for people."""

from __future__ import annotations

import pytest
from rich.text import Text
from rich.tree import Tree

from services.cli.output import console, note, table


@pytest.mark.parametrize(
    "text", ["router [fd00:a:b::1]:7410: price", "by hand: see [/wiki], and :x:"]
)
def test_a_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are marks of nothing: not in a line, nor in any part of a table."""
    console().print(text)
    console().print(table(text, (text,), [(text,)]))
    assert capsys.readouterr().out.count(text) == 4


def test_no_text_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Ids of requests, and what servers say, are other people's: escapes, marks of direction."""
    text = "id \x1b]0;title\x07 \x1b[2J\u202e \x9b31m\r end"
    tree = Tree(Text(text))
    tree.add(text)
    console().print(text, table(text, (text,), [(text,)]), tree)
    note(text)
    shown = capsys.readouterr()
    for said in (shown.out, shown.err):
        assert said.replace("\n", "").isprintable()
        assert "id  ]0;title" in said
        assert "end" in said
