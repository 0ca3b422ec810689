"""Character tokenizer: round trips and clear errors."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.reference_tiers.tokenizer import (
    CHARACTERS,
    EOS_ID,
    FILE_NAME,
    PAD_ID,
    CharTokenizer,
    TokenizerError,
)


@given(st.text(CHARACTERS))
def test_round_trip(text: str) -> None:
    """Decoding gives the text back, one token per character."""
    ids = CharTokenizer().encode(text)
    assert len(ids) == len(text)
    assert CharTokenizer().decode(ids) == text


@given(st.text().filter(lambda text: set(text) - set(CHARACTERS)))
def test_unknown_character_is_named(text: str) -> None:
    """A character outside the vocabulary is an error, whatever it is."""
    with pytest.raises(TokenizerError, match="outside the vocabulary"):
        CharTokenizer().encode(text)


def test_special_tokens_decode_to_nothing() -> None:
    """Padding and end tokens leave no text."""
    assert CharTokenizer().decode([PAD_ID, *CharTokenizer().encode("ab"), EOS_ID]) == "ab"


@pytest.mark.parametrize("token", [-1, CharTokenizer().vocab_size])
def test_ids_outside_the_vocabulary_are_refused(token: int) -> None:
    """Ids that no character has are an error."""
    with pytest.raises(TokenizerError, match="is not in 0"):
        CharTokenizer().decode([token])


def test_saved_file_gives_the_same_tokenizer(tmp_path: pathlib.Path) -> None:
    """What one writes the other reads."""
    CharTokenizer().save(tmp_path)
    assert CharTokenizer.load(tmp_path) == CharTokenizer()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"characters": "ab"}',
        '{"characters": "ab", "first_character_id": 1, "pad_id": 0, "eos_id": 2}',
    ],
)
def test_broken_file_is_named(tmp_path: pathlib.Path, content: str) -> None:
    """A file that is no tokenizer file is an error with its path."""
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(TokenizerError, match=FILE_NAME):
        CharTokenizer.load(tmp_path)


def test_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    """So is one that is not there."""
    with pytest.raises(TokenizerError, match=FILE_NAME):
        CharTokenizer.load(tmp_path)
