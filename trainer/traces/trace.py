"""A trace: when requests really arrived and how long they were.

Shape letter: N requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.types import InvalidFileError
from trainer.simulation.workload import Times, WorkloadError


class TraceFileError(InvalidFileError):
    """A trace file is wrong; the message names file, line, column and what is wrong.

    Attributes:
        line: line of the file, counted from 1 (the header); 0 = the file as a whole.
        column: name of the column; empty = the line as a whole.
    """

    def __init__(self, origin: str, problem: str, line: int = 0, column: str = "") -> None:
        """Keeps where the mistake is; `origin` is the file's name."""
        parts = ([f"line {line}"] if line else []) + ([f"column {column}"] if column else [])
        super().__init__(origin, [f"{', '.join(parts)}: {problem}" if parts else problem])
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests by arrival.

    Attributes:
        arrival_N: times, seconds from 0, never falling.
        duration_s: length of the observed period, seconds; no arrival is later.
        prompt_tokens_N: prompt tokens, int64; 0 = not known; None if the trace has no lengths.
        output_tokens_N: output tokens, int64; 0 = the request failed; None as above.
        name: for tables: the file's name.
        kind: name of its kind, see `trainer.traces.read.KINDS`.
        share: share of the file's requests that are here; below 1 where counts were thinned.
    """

    arrival_N: Times
    duration_s: float
    prompt_tokens_N: NDArray[np.int64] | None = None
    output_tokens_N: NDArray[np.int64] | None = None
    name: str = ""
    kind: str = ""
    share: float = 1.0

    def __post_init__(self) -> None:
        """Checks what everything else relies on; raises WorkloadError."""
        if len(self.arrival_N) == 0 or not self.duration_s > 0:
            raise WorkloadError("a trace needs requests and a duration above 0")
        if self.arrival_N[0] < 0 or self.arrival_N[-1] > self.duration_s:
            raise WorkloadError("a trace's arrivals must lie between 0 and its duration")
        if (np.diff(self.arrival_N) < 0).any():
            raise WorkloadError("a trace's arrivals must not fall")
        for tokens_N in (self.prompt_tokens_N, self.output_tokens_N):
            if tokens_N is not None and len(tokens_N) != len(self.arrival_N):
                raise WorkloadError("a trace's lengths must be as many as its arrivals")

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.arrival_N)

    @property
    def rate_rps(self) -> float:
        """Mean arrival rate, requests per second."""
        return len(self) / self.duration_s
