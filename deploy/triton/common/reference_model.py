"""Triton model of the reference tiers: continuous batching, interface of Triton's vLLM backend.

One engine thread per tier admits waiting requests between decode steps, streams tokens as they come
and frees a slot as soon as its request ends, is cancelled or fails. ``execute`` only checks and
queues, so it never blocks Triton.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import tempfile
import threading
import time
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb_utils

from device_turn import DeviceTurn, device_of_server
from reference_engine import SlotDecoder
from reference_request import Limits, RequestError, Sequence, parse_request

WATCH_INTERVAL_S = 0.01
CANCEL_POLL_INTERVAL_S = 0.02
CANCEL_POLLS_PER_ROUND = 8
"""Bounds what asking for cancellations costs, however long the queue is."""

WARM_UP_TOKENS = 4

_SENDING = threading.Lock()
"""A final response frees what ``is_cancelled`` reads; where the two cross, Triton dies."""


class TritonPythonModel:
    """A reference tier, as Triton's python backend wants it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the weights, warms up and starts the threads."""
        torch.set_num_threads(1)
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self._limits = Limits.from_model(config.get("parameters", {}), folder)
        self._logger = pb_utils.Logger
        self._decoder = SlotDecoder(folder, self._limits.slot_count)
        self._waiting: collections.deque[Sequence] = collections.deque()
        self._active: list[Sequence] = []
        self._outbox: list[tuple[Sequence, Any, bool]] = []
        self._changed = threading.Condition()
        self._stopping = False
        # All reference tiers of a Triton server share its device: the processors it runs on.
        self._turn = DeviceTurn(device_of_server(pathlib.Path(tempfile.gettempdir()), os.getppid()))
        self._warm_up()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._run, self._watch_cancellation)
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Checks requests and queues them; answers go out through the response senders."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                sequence = parse_request(request, sender, self._limits, pb_utils)
            except RequestError as error:
                _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            except Exception as error:
                self._logger.log_error(f"request could not be read: {error!r}")
                _fail(
                    sender,
                    "internal error while reading the request",
                    pb_utils.TritonError.INTERNAL,
                )
                continue
            with self._changed:
                if self._stopping:
                    refused = "the model is being unloaded"
                elif len(self._waiting) >= self._limits.max_queue_count:
                    refused = f"queue is full: {self._limits.max_queue_count} requests wait"
                else:
                    refused = ""
                    self._waiting.append(sequence)
                    self._changed.notify_all()
            if refused:
                _fail(sender, refused, pb_utils.TritonError.UNAVAILABLE)

    def finalize(self) -> None:
        """Answers what is left with an error and stops the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=5.0)
        for sequence in [*self._active, *self._waiting]:
            _fail_sequence(
                sequence, "the model is being unloaded", pb_utils.TritonError.UNAVAILABLE
            )
        self._turn.close()

    def _warm_up(self) -> None:
        """Runs both kernels at the full batch, so that the first request meets a warm allocator."""
        slots = self._limits.slot_count
        self._decoder.prefill([[self._limits.first_character_id] * WARM_UP_TOKENS] * slots)
        for _ in range(WARM_UP_TOKENS):
            self._decoder.step([self._limits.first_character_id] * slots)
        self._decoder.clear()

    def _run(self) -> None:
        """Engine loop: admit, decode one token for all, send; sleeps while there is no work."""
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._active):
                    self._changed.wait()
                if self._stopping:
                    return
            admitted: list[Sequence] = []
            try:
                with self._turn:
                    # Admitted when the turn comes, so that nobody waits for the next one in vain.
                    self._admit(admitted)
                    self._iterate(admitted)
                # Sending waits for the server process: the device is not held meanwhile.
                self._flush()
            except Exception as error:
                self._logger.log_error(f"engine iteration failed: {error!r}")
                self._flush()
                for sequence in {id(each): each for each in [*self._active, *admitted]}.values():
                    if not sequence.closed:
                        _fail_sequence(
                            sequence,
                            "internal error in the engine",
                            pb_utils.TritonError.INTERNAL,
                        )
                self._active.clear()
                self._decoder.clear()

    def _admit(self, admitted: list[Sequence]) -> None:
        """Moves waiting requests to ``admitted``, as many as there is room for."""
        with self._changed:
            room = min(self._limits.slot_count - len(self._active), self._limits.max_prefill_count)
            while self._waiting and len(admitted) < room:
                admitted.append(self._waiting.popleft())

    def _iterate(self, admitted: list[Sequence]) -> None:
        """One iteration: drop the dead, one decode step for the running, prefill for the new."""
        for row in reversed(range(len(self._active))):
            dead = _why_dead(self._active[row])
            if dead:
                self._outbox.append((self._active[row], _error(*dead), True))
                self._free(row)
        if self._active:
            self._advance(0, self._decoder.step([each.last_token for each in self._active]))
        entering = []
        for sequence in admitted:
            dead = _why_dead(sequence)
            if dead:
                self._outbox.append((sequence, _error(*dead), True))
            else:
                entering.append(sequence)
        if entering:
            first = len(self._active)
            logits = self._decoder.prefill([each.prompt_ids for each in entering])
            self._active.extend(entering)
            self._advance(first, logits)

    def _advance(self, first: int, logits_BV: torch.Tensor) -> None:
        """Chooses the next token of the rows from ``first`` on; frees finished rows."""
        chosen = logits_BV.argmax(-1).tolist()
        for row in reversed(range(first, first + len(chosen))):
            sequence = self._active[row]
            token = chosen[row - first]
            if sequence.temperature > 0.0:
                token = sequence.draw(logits_BV[row - first].numpy())
            finished = sequence.append(token)
            if finished or sequence.chunk_is_due():
                self._outbox.append((sequence, _response(sequence), finished))
            if finished:
                self._free(row)

    def _flush(self) -> None:
        """Sends what the iteration made, in order."""
        outbox, self._outbox = self._outbox, []
        for sequence, response, final in outbox:
            _send(sequence, response, final)

    def _free(self, row: int) -> None:
        """Frees a row of the cache and mirrors the decoder's move of the last row."""
        self._decoder.release(row)
        last = self._active.pop()
        if row < len(self._active):
            self._active[row] = last

    def _watch_cancellation(self) -> None:
        """Asks Triton who was cancelled; answers waiting requests that are cancelled or too old.

        The question is a blocking round trip to the server process, so it stays off the engine
        thread.
        """
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._active):
                    self._changed.wait()
                if self._stopping:
                    return
                watched = [*self._active, *self._waiting]
            now_s = time.monotonic()
            due = [each for each in watched if each.next_poll_s <= now_s and not each.cancelled]
            for sequence in due[:CANCEL_POLLS_PER_ROUND]:
                sequence.next_poll_s = now_s + CANCEL_POLL_INTERVAL_S
                with _SENDING:
                    if not sequence.closed:
                        sequence.cancelled = sequence.sender.is_cancelled()
            with self._changed:
                judged = [(each, _why_dead(each)) for each in self._waiting]
                dead = [(each, why) for each, why in judged if why]
                if dead:
                    self._waiting = collections.deque(each for each, why in judged if not why)
            for sequence, why in dead:
                _fail_sequence(sequence, *why)
            time.sleep(WATCH_INTERVAL_S)


def _why_dead(sequence: Sequence) -> tuple[str, int] | None:
    """Message and code for a request that nobody wants any more, else None."""
    if sequence.cancelled:
        return "cancelled by the client", pb_utils.TritonError.CANCELLED
    late_s = time.monotonic() - sequence.expires_s
    if late_s > 0.0:
        return (
            f"Request timeout expired: {sequence.timeout_us} us, {late_s * 1e6:.0f} us ago",
            pb_utils.TritonError.UNAVAILABLE,
        )
    return None


def _send(sequence: Sequence, response: Any, final: bool) -> None:
    """Sends a response; a final one frees what ``is_cancelled`` reads, hence one lock for both."""
    with _SENDING:
        if not final:
            sequence.sender.send(response)
            return
        sequence.closed = True
        sequence.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _fail_sequence(sequence: Sequence, message: str, code: int) -> None:
    _send(sequence, _error(message, code), True)


def _error(message: str, code: int) -> Any:
    error = pb_utils.TritonError(message, code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _fail(sender: Any, message: str, code: int) -> None:
    response = _error(message, code)
    with _SENDING:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(sequence: Sequence) -> Any:
    """Packs what the sequence has not sent yet, with the extra outputs its request asked for."""
    text, token_count = sequence.take_unsent()
    tensors = [pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))]
    if sequence.return_finish_reason:
        reason = str(sequence.finish_reason).encode()
        tensors.append(pb_utils.Tensor("finish_reason", np.array([reason], dtype=np.object_)))
    if sequence.return_num_input_tokens:
        count = np.array([len(sequence.prompt_ids)], dtype=np.uint32)
        tensors.append(pb_utils.Tensor("num_input_tokens", count))
    if sequence.return_num_output_tokens:
        tensors.append(
            pb_utils.Tensor("num_output_tokens", np.array([token_count], dtype=np.uint32))
        )
    return pb_utils.InferenceResponse(output_tensors=tensors)
