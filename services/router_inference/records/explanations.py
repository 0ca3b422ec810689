"""The last decisions of a process, kept small, so that any of them can be explained on demand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from router.explanation import Inputs
from services.router_inference.job import Choice

CHOICE_BYTES = 2_048
"""What a decision takes besides its arrays: its request, its traffic, its names."""


class Explanations:
    """A ring of decisions, bounded by the memory that they take; the oldest give way.

    What is shared by neighbouring decisions (the others' load of one state, a fleet) counts once.
    So the bound is exceeded by as much as one state and one fleet take, at most.
    """

    def __init__(self, memory_bytes: int) -> None:
        """Starts empty; `memory_bytes` 0 keeps nothing."""
        self._memory_bytes = memory_bytes
        self._choices: OrderedDict[str, tuple[Choice, int]] = OrderedDict()
        self._newest: Inputs | None = None
        self.used_bytes = 0

    def __len__(self) -> int:
        """Returns how many decisions are kept."""
        return len(self._choices)

    def keep(self, choice: Choice) -> None:
        """Keeps a decision, in the place of an earlier one of the same request id."""
        if not self._memory_bytes:
            return
        size, choices = self._size(choice.inputs), self._choices
        if choice.request_id in choices:
            self.used_bytes -= choices.pop(choice.request_id)[1]
        choices[choice.request_id] = choice, size
        self.used_bytes += size
        while self.used_bytes > self._memory_bytes:
            self.used_bytes -= choices.popitem(last=False)[1][1]

    def find(self, request_id: str) -> Choice | None:
        """Returns the decision of a request; None if it is not (or no longer) kept."""
        found = self._choices.get(request_id)
        return found[0] if found else None

    def newest(self, after_sequence: int, most: int) -> Iterator[Choice]:
        """Yields the newest decisions, newest first, down to a number; nothing may be kept then."""
        for choice, _ in islice(reversed(self._choices.values()), most):
            if choice.sequence <= after_sequence:
                return
            yield choice

    def _size(self, inputs: Inputs) -> int:
        """Returns what a decision takes beyond what it shares with the one before, bytes."""
        newest, self._newest = self._newest, inputs
        size = CHOICE_BYTES + inputs.own_LC.nbytes
        if newest is None or inputs.others_LC is not newest.others_LC:
            size += inputs.others_LC.nbytes
        if newest is None or inputs.availability_C is not newest.availability_C:
            size += inputs.availability_C.nbytes
        if newest is None or inputs.fleet is not newest.fleet:
            size += sum(array.nbytes for array in inputs.fleet.arrays)
        return size
