"""A policy's decision bound to arrays that stay where they are: one call per request.

The caller changes fleet, ledger and the others' load in place and asks; results lie in `board`
until the next call. Another fleet or another policy is another `BoundDecision`: they are cheap.

Shape letters: L the three rows of a load, C candidates, F features, T tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from router import decision
from router.decision import RESULTS, Board
from router.dqn.snapshot import Weights, zero_weights
from router.features import FEATURE_COUNT, feature_scratch
from router.fleet import FleetArrays
from router.ledger import LoadArrays
from router.picker import NO_PICKER
from router.policies.base import ScorePolicy
from router.policies.dqn import DqnPolicy
from router.policies.picked import PickedPolicy
from router.policies.table import DQN, ROW
from router.seat import NO_SEAT, Seat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.policies.scores import Query
    from router.policy import Policy

_NO_WEIGHTS = zero_weights(FEATURE_COUNT, 1)


class Rule(NamedTuple):
    """A policy as the kernels take it.

    Attributes:
        row: in the policy table.
        params_P: parameters and memory of a score kernel, which it may change; never empty.
        weights: of a network.
        picker: number of the endpoint picker that chooses inside the policy's tier; 0 = none.
        every: a network looks at every candidate, however large the fleet is.
    """

    row: int
    params_P: NDArray[np.float64]
    weights: Weights = _NO_WEIGHTS
    picker: int = NO_PICKER
    every: bool = False

    @classmethod
    def of(cls, policy: Policy) -> Rule:
        """Returns the rule of a policy of the table; raises TypeError for another."""
        if isinstance(policy, PickedPolicy):
            return cls.of(policy.inner)._replace(picker=policy.picker.number)
        if isinstance(policy, DqnPolicy):
            return cls(ROW[DQN], policy.base_P.copy(), policy.snapshot.weights)
        if isinstance(policy, ScorePolicy):
            # One number more: a policy without parameters has an array to bind, too.
            return cls(ROW[policy.entry.name], np.append(policy.params_P, 0.0))
        raise TypeError(f"policy {policy.name!r} is not in the policy table")


class Call(Protocol):
    """A decision bound to its arrays."""

    def __call__(
        self,
        query: Query,
        quality_floor: float,
        tier_pin: int,
        ramp_draw: float,
        pick_draw: float,
        admission_slack_s: float,
        admission_factor: float,
        seat: Seat = ...,
    ) -> int:
        """Returns the candidate for a request, or a code below zero; see `decide_request`."""


Bind = Callable[["Board", Rule], Call]
"""Binds a rule's decision to the arrays of a board: `bind_plain`, or compiled (`router.entry`)."""


class BoundDecision:
    """Decides by one rule on arrays that stay where they are.

    Attributes:
        rule: of the policy.
        board: the arrays.
        result_R: the board's scalars, which are read faster here.
        decide: the call.
    """

    def __init__(
        self,
        rule: Rule,
        fleet: FleetArrays,
        own_LC: NDArray[np.float64],
        others_LC: NDArray[np.float64],
        seen_LC: NDArray[np.float64],
        bind: Bind | None = None,
    ) -> None:
        """Binds the arrays and makes the working space.

        Args:
            rule: of the policy; its parameters are changed by policies with a memory.
            fleet: candidates; what is changed in it in place counts from the next decision on.
            own_LC: load this router sent itself, rows in the order of `LoadArrays`.
            others_LC: load all others sent.
            seen_LC: filled with their sum by every decision.
            bind: makes the call; in plain Python if there is none.
        """
        count = len(fleet.tier_C)
        scratch = feature_scratch(count)
        decided = scratch.seen._replace(score_C=np.zeros(count))
        features_CF = np.zeros((count, FEATURE_COUNT), np.float32)
        allowed_C = np.zeros(count, np.bool_)
        self.rule = rule
        self.board = Board(
            fleet=fleet,
            own=LoadArrays(*own_LC),
            others=LoadArrays(*others_LC),
            seen=LoadArrays(*seen_LC),
            excluded_C=np.zeros(count, np.bool_),
            allowed_C=allowed_C,
            usable_C=np.zeros(count),
            params_P=rule.params_P,
            weights=rule.weights,
            scratch=scratch,
            features_CF=features_CF,
            decided=decided,
            picked_T=np.full(1 + int(fleet.tier_C.max(initial=0)), -1, np.int64),
            rescue_C=np.zeros(count),
            result_R=np.zeros(len(RESULTS)),
        )
        self.result_R = _view(self.board.result_R)
        self.decide = (bind or bind_plain)(self.board, rule)


def bind_plain(board: Board, rule: Rule) -> Call:
    """Binds a decision in plain Python, which reads memory views faster than arrays."""
    decide = partial(decision.decide_request, _viewed(board), rule.row, rule.picker, rule.every)

    def call(
        query: Query,
        quality_floor: float,
        tier_pin: int,
        ramp_draw: float,
        pick_draw: float,
        admission_slack_s: float,
        admission_factor: float,
        seat: Seat = NO_SEAT,
    ) -> int:
        return decide(
            query, quality_floor, tier_pin, ramp_draw, pick_draw, admission_slack_s,
            admission_factor, *seat,
        )  # fmt: skip

    return call


def _viewed(b: Board) -> Board:
    """Returns the board as memory views, which plain Python reads faster than arrays."""
    return b._replace(
        fleet=FleetArrays(*map(_view, b.fleet)),
        own=LoadArrays(*map(_view, b.own)),
        others=LoadArrays(*map(_view, b.others)),
        seen=LoadArrays(*map(_view, b.seen)),
        excluded_C=_view(b.excluded_C),
        allowed_C=_view(b.allowed_C),
        usable_C=_view(b.usable_C),
        params_P=_view(b.params_P),
        scratch=type(b.scratch)(
            type(b.scratch.seen)(*map(_view, b.scratch.seen)),
            LoadArrays(*map(_view, b.scratch.load)),
            type(b.scratch.reckoned)(*map(_view, b.scratch.reckoned)),
            _view(b.scratch.band_C),
            type(b.scratch.listed)(*map(_view, b.scratch.listed)),
        ),
        features_CF=_view(b.features_CF),
        decided=type(b.decided)(*map(_view, b.decided)),
        picked_T=_view(b.picked_T),
        rescue_C=_view(b.rescue_C),
        result_R=_view(b.result_R),
    )


class _Rows(list[Any]):
    """A matrix as a view of each row, which numpy takes as the matrix that it is."""

    def __init__(self, array: NDArray[Any]) -> None:
        super().__init__(map(_view, array))
        self._array = array

    def __array__(self, dtype: object = None, copy: object = None) -> NDArray[Any]:
        return self._array


def _view(array: NDArray[Any]) -> Any:
    """Returns an array's memory as a view, a matrix's as one of each row."""
    if array.ndim > 1:
        return _Rows(array)
    return memoryview(array)  # type: ignore[arg-type]  # numpy's arrays are buffers
