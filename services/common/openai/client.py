"""Asynchronous client of one endpoint that speaks OpenAI over HTTP: vLLM, or another such server.

Bytes are taken apart by httptools in the event loop's own callbacks, so that a token costs no task
and no coroutine (ADR 26).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Never

from services.common.access.tls import Tls
from services.common.openai.errors import error_of_status
from services.common.openai.exchanges import AskingOpenAI, Page
from services.common.openai.pool import ConnectionPool
from services.common.prompt_sizes import MOST_PROMPT_BYTES, body_bytes
from services.common.tiers.answer import TierChunk
from services.common.tiers.client import TierClient
from services.common.tiers.errors import (
    REASON_DEADLINE,
    TierDeadlineError,
    TierError,
    TierInvalidError,
    bad_answer,
)
from services.common.tiers.model import TierModelConfig

CONTROL_TIMEOUT_S = 2.0
_MOST_SENT_BYTES = body_bytes(MOST_PROMPT_BYTES)
"""Room for the longest prompt that settings allow."""
_MOST_MODELS = 2_000
_MOST_NAME_CHARACTERS = 512
_LIVE_WITHOUT_PAGE = frozenset({401, 403, 404, 405})
"""What servers say of /health that have no such page, or show it to nobody."""
_OK = 200
_NOT_FOUND = 404
_MOST_ADDED_TOKENS = 16
"""Marks that servers put before and after a prompt."""


class OpenAIClient(TierClient):
    """Calls one endpoint. Make it once per endpoint inside a running event loop."""

    def __init__(
        self,
        address: str,
        *,
        control_timeout_s: float = CONTROL_TIMEOUT_S,
        most_idle_connections: int = 0,
        tls: Tls | None = None,
        api_key: Callable[[], str] = lambda: "",
    ) -> None:
        """Connects with the first request.

        Args:
            address: `host:port` of the server.
            control_timeout_s: Longest time of every call but `ask`.
            most_idle_connections: How many connections are kept for the next requests; 0 makes one
                for each request.
            tls: Certificates; None means plain text.
            api_key: Tells what is shown to the server now, characters of ASCII that can be seen;
                empty means nothing.
        """
        self.address = address
        self._control_timeout_s = control_timeout_s
        self._connections = ConnectionPool(address, most_idle_connections, tls)
        self._api_key = api_key
        self._shared = (
            f" HTTP/1.1\r\nHost: {address}\r\nUser-Agent: tiercel\r\n"
            # Nothing is unpacked here, and without a word a server may pack what it likes.
            "Accept-Encoding: identity\r\n"
        )
        self._openings: dict[str, str] = {}

    async def close(self) -> None:
        """Closes every connection; requests under way are cancelled."""
        await self._connections.close()

    @property
    def busy_count(self) -> int:
        """How many connections carry a request now."""
        return self._connections.busy_count

    @property
    def connection_count(self) -> int:
        """How many connections are open, idle ones included."""
        return len(self._connections)

    def ask(
        self,
        model: str,
        prompt: str,
        max_output_tokens: int,
        *,
        timeout_s: float,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
        temperature: float = 0.0,
        seed: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        stream: bool = True,
    ) -> AskingOpenAI:
        """Asks a tier for an answer, which comes by callbacks; see `TierClient`.

        The server is told no deadline, since the API has none: at the end of the time left the
        connection is closed. Metadata become headers.
        """
        if timeout_s <= 0.0:
            raise TierDeadlineError(REASON_DEADLINE, "no time was left for the tier")
        body = self._body(model, prompt, max_output_tokens, temperature, seed, stream)
        if len(body) > _MOST_SENT_BYTES:
            raise TierInvalidError("MESSAGE_TOO_LARGE", "the prompt is too long for one request")
        asking = AskingOpenAI(max_output_tokens, on_chunk, on_end, is_stream=stream)
        asking.timer = asyncio.get_running_loop().call_later(timeout_s, asking.expire)
        self._connections.send(asking, self._post(body, metadata))
        return asking

    def _body(
        self,
        model: str,
        prompt: str,
        max_output_tokens: int,
        temperature: float,
        seed: int,
        stream: bool,
    ) -> bytes:
        opening = self._openings.get(model)
        if opening is None:
            opening = self._openings[model] = f'{{"model":{json.dumps(model)},"prompt":'
        text = json.dumps(prompt, ensure_ascii=False)
        # A greedy answer needs no seed, and servers that take none are not asked to.
        seeded = f',"seed":{seed:d}' if temperature else ""
        form = ',"stream":true,"stream_options":{"include_usage":true}}' if stream else "}"
        return (
            f'{opening}{text},"max_tokens":{max_output_tokens:d}'
            f',"temperature":{temperature!r}{seeded}{form}'
        ).encode()

    # ---- what the monitor and commands ask ----

    async def statistics(self, model: str = "") -> dict[str, Never]:
        """Returns no counters, which the API has not, if the server says that it is well.

        Raises:
            TierError: It did not answer, or says that it is not.
        """
        status, body = await self._page("/health")
        if status != _OK and status not in _LIVE_WITHOUT_PAGE:
            raise error_of_status(status, body)
        return {}

    async def is_live(self) -> bool:
        """Returns whether the server answers and does not say that it is ill."""
        try:
            await self.statistics()
        except TierError:
            return False
        return True

    async def is_ready(self, model: str = "") -> bool:
        """Returns whether the server lists a model, or without a name any."""
        try:
            models = await self.loaded_models()
        except TierError:
            return False
        return model in models if model else bool(models)

    async def loaded_models(self) -> tuple[str, ...]:
        """Returns the names of the models that the server lists, in order of name.

        Raises:
            TierError: It did not answer, or not with a list of models.
        """
        status, body = await self._page("/v1/models")
        if status != _OK:
            raise error_of_status(status, body)
        try:
            found = json.loads(body)["data"]
            if len(found) > _MOST_MODELS:
                raise bad_answer(f"a list of {len(found)} models")
            names = [each["id"] for each in found]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise bad_answer("no list of models") from None
        if not all(isinstance(name, str) and len(name) <= _MOST_NAME_CHARACTERS for name in names):
            raise bad_answer("a model whose name is none")
        return tuple(sorted(names))

    async def model_config(self, model: str) -> TierModelConfig:
        """Returns what is known of a model: the API says no more than its name.

        Raises:
            TierError: The server did not answer, or lists no such model.
        """
        if model not in await self.loaded_models():
            raise error_of_status(_NOT_FOUND, f"there is no model {model}".encode())
        return TierModelConfig(
            model=model,
            backend="",
            parameters={},
            max_batch=0,
            inputs=frozenset(),
            counts_prompts=True,
        )

    async def prompt_token_count(self, model: str, prompt: str, *, timeout_s: float) -> int:
        """Returns the length of a prompt in a tier's own tokens, by an answer of one token.

        Raises:
            TierError: The endpoint did not answer, or did not count.
        """
        body = self._body(model, prompt, 1, 0.0, 0, stream=False)
        page = Page()
        self._connections.send(page, self._post(body))
        status, answer = await page.read(timeout_s)
        if status != _OK:
            raise error_of_status(status, answer)
        try:
            count = json.loads(answer)["usage"]["prompt_tokens"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise bad_answer("no usage.prompt_tokens") from None
        if type(count) is not int or not 0 < count <= len(prompt.encode()) + _MOST_ADDED_TOKENS:
            raise bad_answer("a usage.prompt_tokens that no prompt of this length has")
        return count

    def _post(self, body: bytes, metadata: Sequence[tuple[str, str]] = ()) -> bytes:
        """Returns a request for an answer."""
        more = "".join(f"{name}: {text}\r\n" for name, text in metadata)
        more += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return self._head("POST", "/v1/completions") + more.encode() + body

    def _head(self, method: str, path: str) -> bytes:
        """Returns the beginning of every request: its line, and the headers that all have."""
        key = self._api_key()
        shown = f"Authorization: Bearer {key}\r\n" if key else ""
        return f"{method} {path}{self._shared}{shown}".encode()

    async def _page(self, path: str) -> tuple[int, bytes]:
        page = Page()
        self._connections.send(page, self._head("GET", path) + b"\r\n")
        return await page.read(self._control_timeout_s)
