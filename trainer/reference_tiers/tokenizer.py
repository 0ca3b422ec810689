"""Character tokenizer of the reference tiers."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import string
from collections.abc import Iterable

from router.documents import parse_json

CHARACTERS = string.ascii_lowercase + string.digits + ":=+?"
"""Every character of prompts and answers; place plus ``FIRST_CHARACTER_ID`` is the token id."""

PAD_ID = 0
BOS_ID = 1
EOS_ID = 2
FIRST_CHARACTER_ID = 3
FILE_NAME = "tokenizer.json"


class TokenizerError(ValueError):
    """Text that cannot be encoded, or a tokenizer file that cannot be read."""


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
    """Maps characters to token ids and back; one character is one token.

    Attributes:
        characters: The vocabulary in the order of ids, without the special tokens.
    """

    characters: str = CHARACTERS

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return FIRST_CHARACTER_ID + len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Encodes text, one id per character, without special tokens.

        Raises:
            TokenizerError: A character is outside the vocabulary; the text names it and its
                position.
        """
        ids = [self.characters.find(character) for character in text]
        if -1 in ids:
            at = ids.index(-1)
            raise TokenizerError(
                f"text: character {text[at]!r} at position {at} is outside the vocabulary "
                f"{self.characters!r}"
            )
        return [each + FIRST_CHARACTER_ID for each in ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes token ids; special tokens decode to nothing.

        Raises:
            TokenizerError: An id is negative or beyond the vocabulary.
        """
        parts = []
        for each in ids:
            if not 0 <= each < self.vocab_size:
                raise TokenizerError(f"ids: {each} is not in 0..{self.vocab_size - 1}")
            if each >= FIRST_CHARACTER_ID:
                parts.append(self.characters[each - FIRST_CHARACTER_ID])
        return "".join(parts)

    def save(self, folder: pathlib.Path) -> None:
        """Writes ``tokenizer.json`` into a model's folder, where the serving side reads it."""
        content = {
            "type": "character",
            "characters": self.characters,
            "first_character_id": FIRST_CHARACTER_ID,
            "pad_id": PAD_ID,
            "bos_id": BOS_ID,
            "eos_id": EOS_ID,
        }
        (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: pathlib.Path) -> CharTokenizer:
        """Reads what ``save`` wrote.

        Raises:
            TokenizerError: The file is missing, not JSON, or made for other special tokens.
        """
        path = folder / FILE_NAME
        try:
            content = parse_json(path.read_text(), str(path))
            special = (content["first_character_id"], content["pad_id"], content["eos_id"])
            characters = str(content["characters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"{path}: not a tokenizer file: {error}") from error
        if special != (FIRST_CHARACTER_ID, PAD_ID, EOS_ID):
            raise TokenizerError(f"{path}: special tokens {special} differ from this tokenizer's")
        return cls(characters)
