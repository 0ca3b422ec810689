"""What a row of the policy table is, and the policy made of one that has a score kernel."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from router.ledger import LoadArrays
    from router.policies.scores import Query, Scratch

    ScoreKernel = Callable[[Any, LoadArrays, Any, Query, Any, Scratch], None]
    """`score(fleet, load, allowed_C, query, params_P, s)`."""


class PolicyParameterError(ValueError):
    """A policy parameter is unknown or out of range; the message names it and its limits."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number of a policy.

    Attributes:
        name: unique in its policy.
        default: value if none is given.
        low: smallest value allowed.
        high: largest value allowed.
        meaning: one sentence.
    """

    name: str
    default: float
    low: float
    high: float
    meaning: str


class Need(enum.Enum):
    """What a policy cannot be made without."""

    NOTHING = enum.auto()
    SNAPSHOT = enum.auto()
    PAPER_SNAPSHOT = enum.auto()
    SCHEDULE = enum.auto()


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the policy table.

    Attributes:
        name: by which the policy is chosen; "<tier>" in it stands for a tier's name, and the
            kernel finds that tier's index as its memory.
        kernel: gives the scores; None if a network gives them.
        parameters: what may be set, in the kernel's order.
        needs: what else it takes to make the policy.
        draws: the kernel reads a random number of its own.
        even: every allowed candidate is equally likely.
        has_price: it charges device time, so a target's pressure can raise the charge.
        memory: what the kernel finds after its parameters at the start; it may change it.
    """

    name: str
    kernel: ScoreKernel | None
    parameters: tuple[Parameter, ...] = ()
    needs: Need = Need.NOTHING
    draws: bool = False
    even: bool = False
    has_price: bool = False
    memory: tuple[float, ...] = ()

    @property
    def score(self) -> ScoreKernel:
        """The kernel of a policy that has one."""
        assert self.kernel is not None, self.name
        return self.kernel


def parameter_vector(
    policy: str, table: tuple[Parameter, ...], given: Mapping[str, float] | None
) -> NDArray[np.float64]:
    """Returns the values in the table's order.

    Raises:
        PolicyParameterError: a name is not in the table, or a value is not a number in its range.
    """
    values = dict(given or {})
    vector = np.array([values.pop(p.name, p.default) for p in table], dtype=np.float64)
    if values:
        known = ", ".join(p.name for p in table) or "none"
        raise PolicyParameterError(
            f"policy {policy!r} has no parameter {sorted(values)[0]!r}; known: {known}"
        )
    for parameter, value in zip(table, vector, strict=True):
        if not parameter.low <= value <= parameter.high:
            raise PolicyParameterError(
                f"policy {policy!r}: {parameter.name} must be from {parameter.low:g} to "
                f"{parameter.high:g} (got {value:g})"
            )
    return vector


class ScorePolicy:
    """A policy that scores every candidate with its kernel and takes the highest allowed score."""

    def __init__(
        self,
        name: str,
        entry: Entry,
        params: Mapping[str, float] | None = None,
        memory: tuple[float, ...] = (),
        version: str = "",
    ) -> None:
        """Checks the parameters.

        Args:
            name: by which the policy is chosen.
            entry: its row of the table.
            params: parameters by name; what is left out keeps its default.
            memory: what the kernel finds after its parameters at the start.
            version: of what is in the memory; empty for a digest of the parameters.

        Raises:
            PolicyParameterError: a parameter is unknown or out of range.
        """
        params_P = parameter_vector(name, entry.parameters, params)
        digest = hashlib.sha256(params_P.tobytes()).hexdigest()[:8]
        self._entry = entry
        self._name = name
        self._version = version or f"{name}@{digest}"
        self._params_P = np.append(params_P, memory)

    @property
    def name(self) -> str:
        """Name by which the policy is chosen."""
        return self._name

    @property
    def version(self) -> str:
        """Name and a digest of the parameters."""
        return self._version

    @property
    def entry(self) -> Entry:
        """Its row of the table."""
        return self._entry

    @property
    def params_P(self) -> NDArray[np.float64]:
        """Parameters in the table's order, and the kernel's memory."""
        return self._params_P.copy()
