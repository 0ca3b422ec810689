"""What all policies made of a score kernel share: parameters, the decision, its explanation."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from router import kernels
from router.ledger import LoadArrays
from router.policies import scores
from router.policies.scores import Query
from router.types import Decision, NoCandidateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.policy import Observation


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


def query_of(observation: Observation, draw: float) -> Query:
    """Returns an observation's request and traffic as the kernels take them."""
    request, signals = observation.request, observation.signals
    return Query(
        task=request.task,
        slack_s=request.slack_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        event_tokens=request.event_tokens,
        soft_decay_s=request.reward_decay_s,
        mean_prompt_tokens=signals.mean_prompt_tokens,
        rate_short_rps=signals.rate_short_rps,
        rate_long_rps=signals.rate_long_rps,
        state_age_s=signals.state_age_s,
        draw=draw,
        own_share=signals.own_share,
        own_rate_rps=signals.own_rate_rps,
        burstiness=signals.burstiness,
        slowdown=signals.slowdown,
    )


def load_lists(load: LoadArrays) -> LoadArrays:
    """Returns the load with plain lists for arrays, which kernels in plain Python read faster."""
    lists: tuple[Any, ...] = tuple(array.tolist() for array in load)
    return LoadArrays(*lists)


ScoreKernel = "Callable[..., None]"
"""Signature of `router.policies.scores`; spelled loosely, since kernels take lists and arrays."""


class ScorePolicy:
    """A policy that scores every candidate with a kernel and takes the highest allowed score.

    Subclasses set PARAMETERS and KERNEL; their docstring says what the policy does, what its
    parameters mean and when it fails.
    """

    PARAMETERS: ClassVar[tuple[Parameter, ...]] = ()
    KERNEL: ClassVar[Callable[..., None]]
    EXPLAINS: ClassVar[bool] = True
    """The kernel fills predictions itself; where it has no use for them, `decide` does."""

    def __init__(self, name: str, params: Mapping[str, float] | None = None) -> None:
        """Checks the parameters; raises PolicyParameterError."""
        self._name = name
        self._set_params(parameter_vector(name, self.PARAMETERS, params))

    def _set_params(self, params_P: NDArray[np.float64]) -> None:
        digest = hashlib.sha256(params_P.tobytes()).hexdigest()[:8]
        self._params: list[float] = params_P.tolist()
        self._version = f"{self._name}@{digest}"

    @property
    def name(self) -> str:
        """Name by which the policy is chosen."""
        return self._name

    @property
    def version(self) -> str:
        """Name and a digest of the parameters."""
        return self._version

    @property
    def params_P(self) -> NDArray[np.float64]:
        """Parameters in the order of PARAMETERS (the kernel's order)."""
        return np.array(self._params)

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the allowed candidate of the highest score.

        Raises:
            NoCandidateError: nothing is allowed (an observation never says so by itself).
        """
        fleet = observation.fleet.lists
        load = load_lists(observation.load)
        allowed: list[bool] = observation.allowed_C.tolist()
        count = len(allowed)
        predicted, probability, work, score = ([0.0] * count for _ in range(4))
        query = query_of(observation, self._draw(rng))
        if not self.EXPLAINS:
            scores.explain(fleet, load, query, 1.0, 8.0, predicted, probability, work)  # type: ignore[arg-type]
        type(self).KERNEL(
            fleet, load, allowed, query, self._params, predicted, probability, work, score
        )
        action = kernels.best_allowed(score, allowed)  # type: ignore[arg-type]
        if action < 0:
            raise NoCandidateError(f"policy {self._name} has no finite score among the allowed")
        self._chosen(action)
        for c in range(count):
            if not allowed[c]:
                score[c] = -math.inf
        return Decision(
            action=action,
            score_C=np.array(score),
            predicted_latency_s_C=np.array(predicted),
            on_time_probability_C=np.array(probability),
        )

    def _draw(self, rng: np.random.Generator) -> float:
        """Returns the uniform number of this decision; policies that need none draw none."""
        return 0.0

    def _chosen(self, action: int) -> None:
        """Tells a policy with a memory what it chose."""


def compute_scores(
    kernel: Callable[..., None],
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns a kernel's scores as an array [C]; for tests and tables."""
    count = len(allowed_C)
    scratch = [np.zeros(count) for _ in range(4)]
    kernel(fleet, load, allowed_C, query, params_P, *scratch)
    return scratch[3]
