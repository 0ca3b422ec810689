"""What the workers of a router have counted together, those that ended among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from services.router_inference.records.accounts import Accounts, Counts
from services.router_inference.workers.siblings import NoSiblings

_NAMES = tuple(field.name for field in fields(Counts))
_ENDS = [_NAMES.index(name) for name in ("on_time", "late", "refused", "cancelled", "failed")]
_OFFERED, _FAILED = _NAMES.index("offered"), _NAMES.index("failed")


class RouterCounts:
    """The counts of a router: those of its one process, or the sum over its workers."""

    def __init__(self, accounts: Accounts, tiers: Sequence[str], siblings: NoSiblings) -> None:
        """Takes the counts of this process and the mesh's tiers."""
        self._accounts = accounts
        self._tiers = tiers
        self._siblings = siblings

    def show(self) -> None:
        """Shows the siblings what this worker has counted up to now."""
        own = self._accounts
        counts = [own.counts, *(own.tier_counts.get(tier) or Counts() for tier in self._tiers)]
        values = [float(getattr(each, name)) for each in counts for name in _NAMES]
        self._siblings.show_counts(np.array(values))

    def read(self) -> tuple[Counts, Mapping[str, Counts]]:
        """Returns the router's counts, and those by tier that answered."""
        if self._siblings.is_alone:
            return self._accounts.counts, self._accounts.tier_counts
        self.show()
        whole, *by_tier = (
            _counts(row) for row in self._siblings.all_counts().reshape(-1, len(_NAMES))
        )
        return whole, dict(zip(self._tiers, by_tier, strict=True))

    @property
    def in_flight(self) -> int:
        """Requests under way in the router."""
        whole, _ = self.read()
        return whole.offered - whole.ended


def counts_width(tiers: Sequence[str]) -> int:
    """Returns how many numbers a worker's counts are."""
    return (1 + len(tiers)) * len(_NAMES)


def as_ended(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the counts of a worker that is gone: what it had under way has failed."""
    ended = values.copy()
    ended[_FAILED] += ended[_OFFERED] - ended[_ENDS].sum()
    return ended


def _counts(row: NDArray[np.float64]) -> Counts:
    values = dict(zip(_NAMES, map(float, row), strict=True))
    reward_sum = values.pop("delivered_reward_sum")
    return Counts(
        **{name: round(value) for name, value in values.items()}, delivered_reward_sum=reward_sum
    )
