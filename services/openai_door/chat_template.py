"""How a conversation becomes the one text that a tier continues."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

CONTENT = "{content}"
"""Stands for a message's text in a template."""
ROLES = ("system", "user", "assistant")
_MARK = re.compile(
    r"<[|\uff5c][^|\uff5c<>]{1,64}[|\uff5c]>"  # <|im_end|>
    r"|<<?/?[A-Za-z][\w-]{0,63}>>?"  # <start_of_turn>, </s>, <<SYS>>
    r"|\[/?[A-Z][A-Z_]{1,63}\]"  # [/INST]
)
"""How families of models write their special tokens."""


class Message(NamedTuple):
    """One message of a conversation.

    Attributes:
        role: One of `ROLES`.
        text: What was said.
        field: Where it stands in the request, for messages.
    """

    role: str
    text: str
    field: str


@dataclass(frozen=True)
class ChatTemplate:
    """A template. Texts are put in as they are: it is no language, and nothing in them is read.

    Attributes:
        begin: Text before the first message.
        forms: Per role, its text with `CONTENT` once.
        joint: Text between two messages.
        answer: Text after the last one, where the tier goes on.
    """

    begin: str
    forms: Mapping[str, str]
    joint: str
    answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """Returns the prompt of a conversation."""
        around = self._around
        parts = [around[role][0] + text + around[role][1] for role, text, _ in messages]
        return f"{self.begin}{self.joint.join(parts)}{self.answer}"

    @cached_property
    def _around(self) -> Mapping[str, tuple[str, str]]:
        """What stands before and after the text of each role."""
        parts = {role: form.partition(CONTENT) for role, form in self.forms.items()}
        return {role: (before, after) for role, (before, _, after) in parts.items()}

    @property
    def marks(self) -> tuple[str, ...]:
        """Special tokens of the template: a message with one could speak in another's name."""
        text = "".join((self.begin, *self.forms.values(), self.answer))
        return tuple(dict.fromkeys(_MARK.findall(text)))


def _forms(form: str) -> Mapping[str, str]:
    return MappingProxyType({role: form.replace("{role}", role) for role in ROLES})


TEMPLATES: Mapping[str, ChatTemplate] = MappingProxyType(
    {
        "plain": ChatTemplate(
            begin="",
            forms=MappingProxyType(
                {
                    "system": "{content}\n\n",
                    "user": "User: {content}\n",
                    "assistant": "Assistant: {content}\n",
                }
            ),
            joint="",
            answer="Assistant:",
        ),
        "bare": ChatTemplate(begin="", forms=_forms(CONTENT), joint="\n", answer=""),
        "chatml": ChatTemplate(
            begin="",
            forms=_forms("<|im_start|>{role}\n{content}<|im_end|>\n"),
            joint="",
            answer="<|im_start|>assistant\n",
        ),
        "llama3": ChatTemplate(
            begin="",  # the tokenizer of these models puts its begin of text there
            forms=_forms("<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"),
            joint="",
            answer="<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    }
)
"""Templates by the name that settings give them."""
