"""Times iterations on a CUDA card, or on this processor for a check of the script itself."""

from __future__ import annotations

import gc
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from trainer.profiling.gpu.decoder import Decoder, DecoderShape, Iteration

WARM_UP_COUNT = 3
FEWEST_RUNS, MOST_RUNS = 5, 400
BYTES_PER_GIB = 2**30
Call = Callable[[], object]


class DeviceError(Exception):
    """The device cannot be used; the message says why and what else can be done."""


class DeviceMemoryError(Exception):
    """Something does not fit the device's memory."""


class Machine(Protocol):
    """What a measurement needs of the device it measures."""

    def load(self, shape: DecoderShape) -> Any:
        """Returns a model of this shape; raises DeviceMemoryError where it does not fit."""

    def iteration_s(self, model: Any, work: Iteration) -> float:
        """Returns the time of one iteration, seconds; raises DeviceMemoryError."""

    def together_s(self, parts: Sequence[tuple[Any, Iteration]]) -> float:
        """Returns the time of one iteration of each at once, seconds; raises DeviceMemoryError."""

    def memory_bytes(self) -> int | None:
        """Returns the device's memory, bytes; None where it is not the device's own."""

    def bytes_per_value(self) -> int:
        """Returns the size of a weight or a cached value, bytes."""

    def describe(self) -> str:
        """Returns card, versions and number format."""


class TorchMachine:
    """A device that torch knows: bf16 and CUDA graphs on a card, float32 on a processor."""

    def __init__(self, device: str, *, point_s: float = 0.3) -> None:
        """Opens the device.

        Args:
            device: "cuda", "cuda:1", "cpu".
            point_s: time spent on each point after its warm-up, seconds.

        Raises:
            DeviceError: torch does not know it, or there is no such card.
        """
        try:
            self._device = torch.device(device)
        except RuntimeError:
            raise DeviceError(
                f"--device: unknown device {device!r}; known: cuda, cuda:N, cpu"
            ) from None
        if self._device.type not in ("cuda", "cpu"):
            raise DeviceError(f"--device: {device!r} is neither cuda, cuda:N nor cpu")
        self._on_card = self._device.type == "cuda"
        if self._on_card:
            self._device = _checked_card(self._device)
            torch.cuda.set_device(self._device)
        self._dtype = torch.bfloat16 if self._on_card else torch.float32
        self._point_s = point_s

    def load(self, shape: DecoderShape) -> Decoder:
        """Draws a model's weights on the device."""
        try:
            return Decoder(shape, device=self._device, dtype=self._dtype)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError from self._forget(error)

    def iteration_s(self, model: Decoder, work: Iteration) -> float:
        """Returns the median time of one iteration, seconds, on the device itself."""
        try:
            return statistics.median(self._times_s(self._prepared(model, work)))
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError from self._forget(error)

    def together_s(self, parts: Sequence[tuple[Decoder, Iteration]]) -> float:
        """Keeps several models busy at once, one stream each, and returns the time per round.

        A processor has no streams: there the iterations run one after the other.
        """
        try:
            calls = [self._prepared(model, work) for model, work in parts]
            streams = [_new_stream() if self._on_card else None for _ in parts]
            self._round_s(calls, streams, 1)
            rounds = self._run_count(self._round_s(calls, streams, 2) / 2)
            return self._round_s(calls, streams, rounds) / rounds
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError from self._forget(error)

    def memory_bytes(self) -> int | None:
        """Returns the card's memory, bytes; None for a processor, whose memory others use too."""
        if not self._on_card:
            return None
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    def bytes_per_value(self) -> int:
        """Returns the size of a weight, bytes."""
        return self._dtype.itemsize

    def describe(self) -> str:
        """Returns card, versions and number format."""
        number = str(self._dtype).removeprefix("torch.")
        if not self._on_card:
            threads = torch.get_num_threads()
            processor = f"{platform.machine()} processor, {threads} threads"
            return f"{processor}, torch {torch.__version__}, {number}"
        memory = (self.memory_bytes() or 0) / BYTES_PER_GIB
        name = torch.cuda.get_device_name(self._device)
        return (
            f"{name} ({memory:.0f} GiB), torch {torch.__version__}, CUDA {torch.version.cuda}, "
            f"{number}, CUDA graphs, scaled_dot_product_attention"
        )

    def card_name(self) -> str:
        """Returns the card's name, or "cpu"."""
        return torch.cuda.get_device_name(self._device) if self._on_card else "cpu"

    def _prepared(self, model: Decoder, work: Iteration) -> Call:
        """Returns a call that runs the iteration: a CUDA graph's replay on a card."""
        with torch.inference_mode():
            cache = model.new_cache(work.batch, work.cached_tokens)
            positions_N = model.positions_of(work)
            tokens_N = torch.randint(
                model.shape.vocabulary_size, positions_N.shape, device=self._device
            )

        def run() -> torch.Tensor:
            with torch.inference_mode():
                return model.step(work, tokens_N, positions_N, cache).argmax(dim=-1)

        if not self._on_card:
            for _ in range(WARM_UP_COUNT):
                run()
            return run
        # Libraries set themselves up at a shape's first runs, which a capture would not survive.
        stream = _new_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_COUNT):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            result = run()
        # What the graph reads and writes must live as long as it does.
        held = (cache, positions_N, tokens_N, result)

        def replay() -> object:
            graph.replay()
            return held

        return replay

    def _times_s(self, call: Call) -> list[float]:
        """Returns the times of runs in a row, seconds."""
        call()
        if not self._on_card:
            first = _wall_s(call)
            return [_wall_s(call) for _ in range(self._run_count(first))]
        torch.cuda.synchronize()
        runs = self._run_count(self._event_times_s(call, FEWEST_RUNS)[-1])
        return self._event_times_s(call, runs)

    def _event_times_s(self, call: Call, runs: int) -> list[float]:
        """Returns the card's own times of `runs` calls: the launching processor is left out."""
        marks = [_new_mark() for _ in range(runs + 1)]
        marks[0].record()
        for mark in marks[1:]:
            call()
            mark.record()
        torch.cuda.synchronize()
        return [1e-3 * before.elapsed_time(after) for before, after in itertools.pairwise(marks)]

    def _round_s(self, calls: Sequence[Call], streams: Sequence[Any], rounds: int) -> float:
        """Returns the time of `rounds` runs of every call, seconds."""
        if self._on_card:
            torch.cuda.synchronize()
        start_s = time.perf_counter()
        for _ in range(rounds):
            for call, stream in zip(calls, streams, strict=True):
                with torch.cuda.stream(stream):  # None: nothing happens
                    call()
        if self._on_card:
            torch.cuda.synchronize()
        return time.perf_counter() - start_s

    def _run_count(self, one_s: float) -> int:
        return min(MOST_RUNS, max(FEWEST_RUNS, int(self._point_s / max(one_s, 1e-6))))

    def _forget(self, error: BaseException) -> BaseException:
        """Lets go of what a failed call still holds; its frames keep tensors alive."""
        error.__traceback__ = None
        gc.collect()
        if self._on_card:
            torch.cuda.empty_cache()
        return error


def _checked_card(device: torch.device) -> torch.device:
    """Returns the card with its number; raises DeviceError where there is none."""
    if not torch.cuda.is_available():
        built = "built without CUDA" if torch.version.cuda is None else "no card or driver found"
        raise DeviceError(
            f"no CUDA device (torch {torch.__version__}, {built}); "
            "--device cpu --shapes tiny checks the script on this processor"
        )
    count = torch.cuda.device_count()
    index = device.index or 0
    if index >= count:
        raise DeviceError(f"--device: there is no {device}; cards: 0 to {count - 1}")
    return torch.device("cuda", index)


def _new_stream() -> Any:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _new_mark() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _wall_s(call: Call) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s
