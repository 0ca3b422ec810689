"""Paced tier: speaks the interface of Triton's vLLM backend, takes the time a profile says.

Nothing is computed and the text is the word "paced" once per token: it is no model's output. The
batching is in `paced_engine.py`, the clock that tiers of one device share in `device_clock.py`;
services/local/triton/repository puts both, the law by which iteration times spread, and the
profile beside this file.
"""

from __future__ import annotations

import json
import os
import queue
import random
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).resolve().parent))

from device_clock import DeviceClock
from iteration_spread import stretch
from paced_engine import (
    TOO_LARGE,
    Control,
    Job,
    PacedEngine,
    TierTiming,
    output_token_count,
    prompt_token_count,
)

WORD = b"paced"
CANCELLED = "cancelled"
MICROSECONDS_PER_S = 1e6
NO_DEADLINE_S = float("inf")
MAX_OUTPUT_TOKENS = 65_536
DEFAULT_OUTPUT_TOKENS = 16  # vLLM's default
# Asking Triton whether a request was cancelled is a round trip between processes, some 0.05 ms
# here and as much in Triton: one thread asks about all open requests, at most once per iteration (a
# slot is freed between iterations anyhow), with a pause that grows with their number and keeps it
# to about 5 % of a core.
CANCEL_SCAN_PAUSE_S = 0.01
CANCEL_SCAN_PAUSE_PER_REQUEST_S = 0.001
# Also how long it waits for an iteration: a device that hangs has none.
CANCEL_SCAN_LONGEST_PAUSE_S = 0.25
JOIN_TIMEOUT_S = 2.0


class TritonPythonModel:
    """Glue between Triton's requests and the engine; see Triton's python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Reads the configuration and starts the engine's threads."""
        parameters = {
            key: value["string_value"]
            for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._name = args["model_name"]
        self._output_mean = float(parameters["tiercel_output_tokens_mean"])
        self._output_variation = float(parameters["tiercel_output_tokens_variation"])
        profile = tomllib.loads(
            (Path(__file__).resolve().parent / "profile.toml").read_text("utf-8-sig")
        )
        state = Path(os.fsdecode(unquote_to_bytes(parameters["tiercel_state_directory"])))
        device = parameters["tiercel_device"]
        self._clock = DeviceClock(
            state / f"{device}.clock",
            int(parameters["tiercel_slot"]),
            slot_count=int(parameters["tiercel_slot_count"]),
        )
        self._engine = PacedEngine(
            timing=TierTiming.from_profile(
                profile, parameters["tiercel_tier"], float(parameters["tiercel_time_scale"])
            ),
            clock=self._clock,
            control=Control(state / f"{device}.control.json"),
            on_tokens=self._on_tokens,
            on_dropped=self._on_dropped,
            max_queue_count=int(parameters["tiercel_max_queue"]),
            stretch=lambda cv: stretch(cv, random.random(), random.random()),
        )
        self._outbox: queue.SimpleQueue[tuple[Job | None, str]] = queue.SimpleQueue()
        self._finalizing = threading.Event()
        self._busy = threading.Event()
        self._iterated = threading.Event()
        # The engine only notes who got a token; sending, which is slow, has its own thread.
        threads = {"engine": self._engine.run, "send": self._send, "cancel": self._watch_cancels}
        self._threads = {
            name: threading.Thread(target=target, name=name, daemon=True)
            for name, target in threads.items()
        }
        for thread in self._threads.values():
            thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Queues the requests; answers come from the sending thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                job = self._job(request, sender)
            except ValueError as error:
                _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            refusal = self._engine.submit(job)
            if refusal.startswith(TOO_LARGE):
                _fail(sender, refusal, pb_utils.TritonError.INVALID_ARG)
            elif refusal:
                _fail(sender, refusal, pb_utils.TritonError.UNAVAILABLE)
            else:
                self._busy.set()

    def finalize(self) -> None:
        """Stops the threads; open requests are answered with an error first."""
        self._finalizing.set()
        self._busy.set()
        self._iterated.set()
        self._engine.stop()
        self._threads["engine"].join(JOIN_TIMEOUT_S)
        self._outbox.put((None, ""))
        self._threads["send"].join(JOIN_TIMEOUT_S)
        self._threads["cancel"].join(JOIN_TIMEOUT_S)
        done = self._engine.statistics
        mean_ms = 1e3 * done.lateness_total_s / max(1, done.iteration_count)
        pb_utils.Logger.log_info(
            f"paced {self._name}: {done.iteration_count} iterations, "
            f"{done.sequence_count} tokens, lateness mean {mean_ms:.3f} ms, "
            f"max {1e3 * done.lateness_max_s:.3f} ms"
        )

    def _job(self, request: Any, sender: Any) -> Job:
        """Reads one request.

        Raises:
            ValueError: An input is missing or out of range; the text names it.
        """
        now = time.monotonic()
        inputs = {tensor.name(): tensor for tensor in request.inputs()}
        if "text_input" not in inputs:
            raise ValueError("text_input: missing")
        prompt = bytes(inputs["text_input"].as_numpy().reshape(-1)[0])
        limit, seed = _sampling(inputs.get("sampling_parameters"))
        timeout_us = int(request.timeout())
        answer = _Answer(
            sender,
            wants_reason=_flag(inputs, "return_finish_reason"),
            wants_count=_flag(inputs, "return_num_output_tokens"),
            wants_input_count=_flag(inputs, "return_num_input_tokens"),
            # vLLM repeats the prompt in a whole answer unless told otherwise.
            echo=b"" if _flag(inputs, "exclude_input_in_output", True) else prompt + b" ",
        )
        length = output_token_count(prompt, seed, limit, self._output_mean, self._output_variation)
        answer.reason = b"length" if length >= limit else b"stop"
        return Job(
            sink=answer,
            arrival_s=now,
            deadline_s=now + timeout_us / MICROSECONDS_PER_S if timeout_us else NO_DEADLINE_S,
            prompt_token_count=prompt_token_count(prompt),
            output_token_count=length,
            streams=_flag(inputs, "stream"),
        )

    def _on_tokens(self, jobs: Sequence[Job]) -> None:
        """Hands jobs with something to send over; a job waiting there already gets it along."""
        self._iterated.set()
        for job in jobs:
            answer = job.sink
            if not (job.streams or job.is_complete):
                continue
            with answer.lock:
                if answer.is_queued:
                    continue
                answer.is_queued = True
            self._outbox.put((job, ""))

    def _on_dropped(self, job: Job, reason: str) -> None:
        self._outbox.put((job, reason or CANCELLED))

    def _send(self) -> None:
        """Sends what the engine made; tokens of one job that have piled up go together."""
        while True:
            job, reason = self._outbox.get()
            if job is None:
                return
            try:
                if reason == CANCELLED:
                    job.sink.end()
                elif reason:
                    job.sink.fail(reason, pb_utils.TritonError.UNAVAILABLE)
                else:
                    job.sink.send_new(job)
            except Exception as error:
                # The request is gone (its client left); the engine learns it by the scan.
                pb_utils.Logger.log_warn(f"paced {self._name}: could not send: {error}")
                job.cancelled = True

    def _watch_cancels(self) -> None:
        """Asks Triton about each open request in turn; the engine frees the slots."""
        while not self._finalizing.is_set():
            jobs = self._engine.outstanding()
            if not jobs:
                self._busy.clear()
                # A request that came between the two lines above has set it again or is seen now.
                if not self._engine.outstanding() and not self._finalizing.is_set():
                    self._busy.wait()
                continue
            for job in jobs:
                if not job.cancelled and job.sink.is_cancelled():
                    job.cancelled = True
            pause_s = max(CANCEL_SCAN_PAUSE_S, len(jobs) * CANCEL_SCAN_PAUSE_PER_REQUEST_S)
            self._finalizing.wait(min(pause_s, CANCEL_SCAN_LONGEST_PAUSE_S))
            self._iterated.clear()
            self._iterated.wait(CANCEL_SCAN_LONGEST_PAUSE_S)


class _Answer:
    """The sending side of one request."""

    def __init__(
        self,
        sender: Any,
        *,
        wants_reason: bool,
        wants_count: bool,
        wants_input_count: bool,
        echo: bytes,
    ) -> None:
        self.sender = sender
        self.lock = threading.Lock()
        # Triton frees the sender with the final response: no question may be under way then.
        self._closing = threading.Lock()
        self._is_closed = False
        self.is_queued = False
        self.reason = b"stop"
        self._wants_reason = wants_reason
        self._wants_count = wants_count
        self._wants_input_count = wants_input_count
        self._echo = echo

    def send_new(self, job: Job) -> None:
        """Sends the tokens made since the last time, with the final flag if they are the last."""
        with self.lock:
            self.is_queued = False
            made = job.produced_count
        new = made - job.sent_count
        is_last = made >= job.output_token_count
        if new == 0:
            # Sent along with the time before.
            return
        text = b" ".join([WORD] * new)
        text = b" " + text if job.sent_count else self._echo + text
        job.sent_count = made
        outputs = [_text("text_output", text)]
        if self._wants_reason:
            outputs.append(_text("finish_reason", self.reason if is_last else b"null"))
        if self._wants_count:
            outputs.append(_count("num_output_tokens", new))
        if self._wants_input_count:
            outputs.append(_count("num_input_tokens", job.prompt_token_count))
        response = pb_utils.InferenceResponse(outputs)
        if not is_last:
            self.sender.send(response)
            return
        with self._closing:
            self._is_closed = True
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def fail(self, reason: str, code: int) -> None:
        """Ends the request with an error, once."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                _fail(self.sender, reason, code)

    def end(self) -> None:
        """Ends the request of a client that is gone, without a word."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True
                self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def is_cancelled(self) -> bool:
        """Asks Triton whether the client is gone; a request that has ended is not asked for."""
        with self._closing:
            return not self._is_closed and bool(self.sender.is_cancelled())


def _fail(sender: Any, reason: str, code: int) -> None:
    """Ends a request with an error."""
    error = pb_utils.TritonError(reason, code)
    sender.send(
        pb_utils.InferenceResponse(error=error),
        flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    )


def _text(name: str, text: bytes) -> Any:
    return pb_utils.Tensor(name, np.array([text], dtype=np.object_))


def _count(name: str, count: int) -> Any:
    return pb_utils.Tensor(name, np.array([count], dtype=np.uint32))


def _flag(inputs: dict[str, Any], name: str, default: bool = False) -> bool:
    return bool(inputs[name].as_numpy().reshape(-1)[0]) if name in inputs else default


def _sampling(tensor: Any) -> tuple[int, int]:
    """Returns limit of output tokens and seed of the sampling parameters.

    Raises:
        ValueError: They are no JSON object, or out of range.
    """
    text = bytes(tensor.as_numpy().reshape(-1)[0]) if tensor is not None else b"{}"
    try:
        values = json.loads(text or b"{}")
        limit = int(values.get("max_tokens", DEFAULT_OUTPUT_TOKENS))
        seed = int(values.get("seed") or 0)
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ValueError("sampling_parameters: must be a JSON object of numbers") from None
    if not 1 <= limit <= MAX_OUTPUT_TOKENS:
        raise ValueError(
            f"sampling_parameters.max_tokens: must be between 1 and {MAX_OUTPUT_TOKENS} "
            f"(got {limit})"
        )
    if not -(2**63) <= seed < 2**63:
        raise ValueError("sampling_parameters.seed: must fit 64 bits")
    return limit, seed
