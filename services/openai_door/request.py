"""What a request asks for: from its headers and its JSON body to one checked record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from services.common.errors import InvalidArgumentError
from services.common.openai.body import (
    MOST_TOKENS,
    Fields,
    as_text,
    kind_of,
    not_served,
    parse_json,
    token_limit,
)
from services.common.openai.wishes import Wishes, conversation_id, wishes_of
from services.openai_door.chat_template import ROLES, ChatTemplate, Message
from services.openai_door.models import ModelNames

MAX_SEED = 2**63 - 1
_MOST_MESSAGES = 4_096
_DEVELOPER = "developer"
_SERVED = frozenset(
    {"model", "max_tokens", "temperature", "seed", "stream", "stream_options", "metadata", "user"}
)
_CACHE_KEY = "prompt_cache_key"
"""OpenAI's own field for requests whose prompts begin alike: a conversation's id where none of our
own is given."""
_CHAT_SERVED = _SERVED | {"messages", "max_completion_tokens", _CACHE_KEY}
_COMPLETION_SERVED = _SERVED | {"prompt"}
_MESSAGE_SERVED = frozenset({"role", "content"})
_PART_SERVED = frozenset({"type", "text"})
_STREAM_SERVED = frozenset({"include_usage"})
_NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "n": (1,),
        "presence_penalty": (0,),
        "stop": ([], ""),
        "top_p": (1,),
    }
)
_CHAT_NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        **_NEUTRAL,
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "logprobs": (False,),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "safety_identifier": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "top_logprobs": (0,),
        "verbosity": (),
        "web_search_options": (),
    }
)
_COMPLETION_NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {**_NEUTRAL, "best_of": (1,), "echo": (False,), "logprobs": (), "suffix": ("",)}
)
_MESSAGE_NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "name": (),
        "refusal": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
)


@dataclass(slots=True, kw_only=True)
class Ask:
    """A request, read and checked as far as this door can.

    Attributes:
        model: As the request names it.
        prompt: What the tier continues.
        task: Empty for the router's default.
        tier: The only tier to use; empty for the router's choice.
        wishes: Deadline and other wishes of our own.
        max_output_tokens: None for the task's default.
        temperature: None for greedy.
        seed: None for the router's choice.
        is_chat: True for a conversation.
        is_stream: True for an answer piece by piece.
        with_usage: True tells the usage at the end of a stream.
        limit_name: The field that gave the limit of tokens, or may give it.
        conversation_id: The client's id of the conversation that this continues; empty for none.
    """

    model: str
    prompt: str
    task: str
    tier: str
    wishes: Wishes
    max_output_tokens: int | None
    temperature: float | None
    seed: int | None
    is_chat: bool
    is_stream: bool
    with_usage: bool
    limit_name: str
    conversation_id: str = ""

    def names(self) -> Mapping[str, str]:
        """Returns this door's name of each field of the router's request."""
        name_of = self.wishes.name_of
        is_named_by_model = self.task and not self.wishes.task
        return {
            "spec.prompt": "messages" if self.is_chat else "prompt",
            "spec.task": "model" if is_named_by_model else name_of("task"),
            "spec.tier": "model",
            "spec.max_output_tokens": self.limit_name,
            "spec.sampling.temperature": "temperature",
            "spec.sampling.seed": "seed",
            "spec.deadline": name_of("deadline_ms"),
            "spec.slo_kind": name_of("slo_kind"),
            "spec.token_interval": name_of("token_interval_ms"),
            "spec.quality_floor": name_of("quality_floor"),
            "spec.priority": name_of("priority"),
            "spec.request_id": "x-request-id",
            "spec.conversation_id": name_of("conversation_id"),
        }


class RequestReader:
    """Reads requests.

    Args:
        models: What a request may name as its model.
        template: How a conversation becomes a prompt.
    """

    def __init__(self, *, models: ModelNames, template: ChatTemplate) -> None:
        self._models = models
        self._template = template
        self._marks = template.marks

    def chat(self, data: bytes, headers: Mapping[str, str]) -> Ask:
        """Reads a request for `/v1/chat/completions`.

        Args:
            data: The body.
            headers: The request's headers of our own.

        Raises:
            InvalidArgumentError: Names the field or header that is wrong.
            NotFoundError: There is no such model or task.
        """
        fields = Fields(parse_json(data))
        fields.only(_CHAT_SERVED, _CHAT_NEUTRAL)
        messages = self._messages(fields)
        limit_name, limit = token_limit(fields)
        prompt = self._template.render(messages)
        return self._ask(fields, headers, prompt, limit_name, limit, is_chat=True)

    def completion(self, data: bytes, headers: Mapping[str, str]) -> Ask:
        """Reads a request for `/v1/completions`; see `chat`."""
        fields = Fields(parse_json(data))
        fields.only(_COMPLETION_SERVED, _COMPLETION_NEUTRAL)
        limit = fields.whole("max_tokens", 1, MOST_TOKENS)
        return self._ask(fields, headers, _prompt(fields), "max_tokens", limit, is_chat=False)

    def _ask(
        self,
        fields: Fields,
        headers: Mapping[str, str],
        prompt: str,
        limit_name: str,
        limit: int | None,
        *,
        is_chat: bool,
    ) -> Ask:
        name = fields.text("model")
        if not name:
            raise InvalidArgumentError("model", "is missing", self._models.known)
        model = self._models.find(name)
        wishes = wishes_of(headers, fields.table("metadata") or {})
        if model.task and wishes.task and wishes.task != model.task:
            problem = f"is {wishes.task!r}, but the model is {name!r}"
            raise InvalidArgumentError(wishes.name_of("task"), problem)
        if fields.get("user") is not None:
            fields.text("user")
        cache_key = fields.get(_CACHE_KEY)
        if cache_key is not None:
            cache_key = conversation_id(_CACHE_KEY, cache_key)
        is_stream = fields.flag("stream")
        return Ask(
            model=name,
            prompt=prompt,
            task=model.task or wishes.task,
            tier=model.tier,
            wishes=wishes,
            max_output_tokens=limit,
            temperature=fields.number("temperature"),
            seed=fields.whole("seed", 0, MAX_SEED),
            is_chat=is_chat,
            is_stream=is_stream,
            with_usage=_with_usage(fields, is_stream=is_stream),
            limit_name=limit_name,
            conversation_id=wishes.conversation_id or cache_key or "",
        )

    def _messages(self, fields: Fields) -> list[Message]:
        found = fields.get("messages")
        if not isinstance(found, list) or not found:
            problem = "is empty" if found == [] else f"is {kind_of(found)}"
            raise InvalidArgumentError("messages", problem, "a list of messages")
        if len(found) > _MOST_MESSAGES:
            problem = f"has {len(found)} messages"
            raise InvalidArgumentError("messages", problem, f"at most {_MOST_MESSAGES}")
        messages = [_message(f"messages[{index}]", each) for index, each in enumerate(found)]
        for message in messages if self._marks else ():
            for mark in self._marks:
                if mark in message.text:
                    raise InvalidArgumentError(
                        message.field, f"holds {mark}, a mark of the chat template", "other text"
                    )
        return messages


def _message(path: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise InvalidArgumentError(path, f"is {kind_of(value)}", "an object")
    fields = Fields(value, path)
    role = fields.text("role") or ""
    role = "system" if role == _DEVELOPER else role
    if role in ("tool", "function"):
        raise not_served(fields.path("role"), ", ".join((*ROLES, _DEVELOPER)))
    if role not in ROLES:
        problem = "is missing" if not role else "is none of them"
        raise InvalidArgumentError(
            fields.path("role"), problem, f"{', '.join(ROLES)}, {_DEVELOPER}"
        )
    fields.only(_MESSAGE_SERVED, _MESSAGE_NEUTRAL)
    where, content = fields.path("content"), fields.get("content")
    if isinstance(content, str):
        return Message(role, as_text(where, content), where)
    return Message(role, "".join(_texts(where, content)), where)


def _texts(path: str, content: object) -> Iterable[str]:
    """Yields the texts of a message's content, a list of parts of which each has one."""
    if not isinstance(content, list) or not content:
        problem = "is missing" if content is None else f"is {kind_of(content)}"
        raise InvalidArgumentError(path, problem, "a text, or a list of text parts")
    for index, part in enumerate(content):
        where = f"{path}[{index}]"
        if not isinstance(part, dict):
            raise InvalidArgumentError(where, f"is {kind_of(part)}", "an object")
        fields = Fields(part, where)
        if fields.text("type") != "text":
            raise not_served(fields.path("type"), 'only "text"')
        fields.only(_PART_SERVED)
        yield as_text(fields.path("text"), fields.get("text"))


def _prompt(fields: Fields) -> str:
    """Returns the prompt of a completion: a text, or a list with one."""
    found = fields.get("prompt")
    if isinstance(found, list):
        if len(found) != 1 or not isinstance(found[0], str):
            raise not_served("prompt", "a text, or a list with one text")
        return as_text("prompt[0]", found[0])
    if found is None:
        raise InvalidArgumentError("prompt", "is missing", "a text")
    return as_text("prompt", found)


def _with_usage(fields: Fields, *, is_stream: bool) -> bool:
    options = fields.table("stream_options")
    if options is None:
        return False
    if not is_stream:
        raise InvalidArgumentError("stream_options", "is given without a stream", "stream = true")
    below = Fields(options, "stream_options")
    below.only(_STREAM_SERVED, {"include_obfuscation": (False,)})
    return below.flag("include_usage")
