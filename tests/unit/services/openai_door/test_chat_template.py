"""Conversations as prompts."""

from __future__ import annotations

import pytest

from services.openai_door.chat_template import ROLES, TEMPLATES, ChatTemplate, Message

TALK = [
    Message("system", "Be short.", "messages[0].content"),
    Message("user", "1+1?", "messages[1].content"),
    Message("assistant", "2", "messages[2].content"),
    Message("user", "{content}", "messages[3].content"),
]


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("plain", "Be short.\n\nUser: 1+1?\nAssistant: 2\nUser: {content}\nAssistant:"),
        ("bare", "Be short.\n1+1?\n2\n{content}"),
        (
            "chatml",
            (
                "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n"
                "<|im_start|>assistant\n2<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
                "<|im_start|>assistant\n"
            ),
        ),
        (
            "llama3",
            (
                "<|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\n{content}<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
    ],
)
def test_every_template_renders_a_conversation(name: str, prompt: str) -> None:
    """Texts stand as they came, also one that looks like the template's own."""
    assert TEMPLATES[name].render(TALK) == prompt


def test_a_template_knows_its_marks() -> None:
    """Those that a message must not hold."""
    assert TEMPLATES["plain"].marks == ()
    assert TEMPLATES["chatml"].marks == ("<|im_start|>", "<|im_end|>")
    assert "<|eot_id|>" in TEMPLATES["llama3"].marks


@pytest.mark.parametrize(
    ("form", "answer", "marks"),
    [
        ("<start_of_turn>user\n{content}<end_of_turn>\n", "<start_of_turn>model\n",
         ("<start_of_turn>", "<end_of_turn>")),
        ("[INST] <<SYS>> {content} <</SYS>> [/INST]", "</s>",
         ("[INST]", "<<SYS>>", "<</SYS>>", "[/INST]", "</s>")),
        ("<\uff5cUser\uff5c>{content}", "<\uff5cAssistant\uff5c>",
         ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>")),
        ("USER: {content}\n", "a < b > [c] [D]", ()),
    ],
)  # fmt: skip
def test_marks_of_other_families_are_known(form: str, answer: str, marks: tuple[str, ...]) -> None:
    """As templates of one's own have them."""
    own = ChatTemplate(begin="", forms=dict.fromkeys(ROLES, form), joint="", answer=answer)
    assert set(own.marks) == set(marks)
