"""What is printed for people."""

from __future__ import annotations

import pytest

from services.cli.output import console, table


@pytest.mark.parametrize(
    "text", ["router [fd00:a:b::1]:7410: price", "by hand: see [/wiki], and :x:"]
)
def test_a_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and colons are marks of nothing: not in a line, nor in any part of a table."""
    console().print(text)
    console().print(table(text, (text,), [(text,)]))
    assert capsys.readouterr().out.count(text) == 4
