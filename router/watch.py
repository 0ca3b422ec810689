"""Is a policy that has become active worse than the one it replaced was, under the same load?

A canary has its control beside it. A policy that decides everything has none: a share kept for the
old one would share its devices, and miss its deadlines with it. So it is compared with the last
figures of the policy it replaced, and what differs between then and now is taken into account as
far as the policy has no hand in it. That is the load that is offered: arrivals per second in the
mesh, per device that can be used, when a request is decided for. What is under way is not taken,
for it is the policy's own doing. Loads are cut into classes of half an octave, and each request is
compared with what the replaced policy had in its class.

The rule, for the share missed, the share failed, and the share whose decision took too long alike
(a mean of times would blame a policy for a machine that was busy for a second):

- What a class may have is the largest share that the replaced policy's figures there leave possible
  (Chernoff's bound in Kullback and Leibler's divergence, all classes together at BASELINE_ALPHA),
  and the limit on top of it.
- A class in which it served fewer than LEAST_KNOWN takes in the classes above until there are as
  many: at more load no less is missed. A class above all that it served is not compared, for
  nothing is known of it: its requests are counted, and break no limit.
- Excess over what the classes may have is tested in windows of WINDOW requests by the sequential
  test (`router.sequential`); window k has TEST_ALPHA / (k (k + 1)), so all of them together,
  however many there are and however often one looks, have TEST_ALPHA.

Shape letters: L classes of load, E what is counted of ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.sequential import is_above

CLASSES = 32
"""Classes of load, the first for all below LOWEST_RPS."""
LOWEST_RPS = 1.0 / 16.0
"""Arrivals per second and device from which classes are half an octave wide."""
REQUESTS, MISSED, FAILED, SLOW = range(4)
"""What is counted of ends in each class."""
KINDS = 4
SLOW_LIMIT = 0.5
"""By how much the share of slow decisions may exceed that of the replaced policy: one that is slow
is so nearly always, and others are where something else takes the machine's time."""
LEAST_KNOWN = 100.0
"""Requests of the replaced policy that a class is compared with, where there are as many."""
WINDOW = 1_000.0
"""Compared requests after which the test begins anew, so that a new fault shows soon after calm."""
BASELINE_ALPHA = 0.0005
"""Chance that the replaced policy's true share is above what its figures leave possible."""
TEST_ALPHA = 0.0005
"""Chance that a policy within its limit is ever sent back for one kind of end."""
MOST_FAULTS = 3.0
"""A policy that fails in so many decisions is broken, whatever the load."""

REASON_MISSES = "WATCH_MISSES"
REASON_ERRORS = "WATCH_ERRORS"
REASON_FAULTS = "WATCH_FAULTS"
REASON_SLOW = "WATCH_SLOW"
REASONS = ("", REASON_MISSES, REASON_ERRORS, REASON_FAULTS, REASON_SLOW)
"""Why a policy is sent back; the first is for none."""

_TAIL = 3
WIDTH = KINDS * CLASSES + _TAIL
"""Numbers of `Figures` in a row."""
_HALVINGS = 40


def load_class(rate_rps: float, devices: float) -> int:
    """Returns the class of load of a request, 0 to CLASSES - 1.

    Args:
        rate_rps: arrivals in the mesh as its decision saw them, requests per second.
        devices: that can be used; fewer than one count as one.
    """
    share = rate_rps / (LOWEST_RPS * max(1.0, devices))
    if not share >= 1.0:  # also what is no number
        return 0
    return min(CLASSES - 1, 1 + int(2.0 * math.log2(share))) if share < math.inf else CLASSES - 1


@dataclass(slots=True)
class Figures:
    """What became of a policy's requests; figures of several processes add up.

    Attributes:
        ends_LE: requests by class of load: all, those missed, those failed, those whose decision
            took too long.
        decisions: decisions that were timed.
        decision_s: time they took, seconds.
        faults: decisions in which the policy failed, and the fallback decided.
    """

    ends_LE: NDArray[np.float64] = field(default_factory=lambda: np.zeros((CLASSES, KINDS)))
    decisions: float = 0.0
    decision_s: float = 0.0
    faults: float = 0.0

    @property
    def requests(self) -> float:
        """Requests of all classes."""
        return float(self.ends_LE[:, REQUESTS].sum())

    @property
    def on_time_share(self) -> float:
        """Share that was in time, 1 where there was nothing."""
        return 1.0 - float(self.ends_LE[:, MISSED].sum()) / max(1.0, self.requests)

    def add(self, at: int, *, is_missed: bool, is_failed: bool, is_slow: bool = False) -> None:
        """Counts an end in a class."""
        row_E = self.ends_LE[at]
        row_E[REQUESTS] += 1.0
        if is_missed:
            row_E[MISSED] += 1.0
        if is_failed:
            row_E[FAILED] += 1.0
        if is_slow:
            row_E[SLOW] += 1.0

    def plus(self, other: Figures, sign: float = 1.0) -> Figures:
        """Returns both together, or with a sign of -1 what came since the other."""
        return Figures(
            self.ends_LE + sign * other.ends_LE,
            self.decisions + sign * other.decisions,
            self.decision_s + sign * other.decision_s,
            self.faults + sign * other.faults,
        )

    def row(self) -> NDArray[np.float64]:
        """Returns the numbers in one row of WIDTH."""
        return np.append(self.ends_LE.ravel(), (self.decisions, self.decision_s, self.faults))

    @classmethod
    def of_row(cls, row: NDArray[np.float64]) -> Figures:
        """Returns the figures of a row."""
        decisions, decision_s, faults = row[-_TAIL:].tolist()
        return cls(row[:-_TAIL].reshape(CLASSES, KINDS).copy(), decisions, decision_s, faults)

    def __str__(self) -> str:
        """Returns them for people."""
        failed = float(self.ends_LE[:, FAILED].sum()) / max(1.0, self.requests)
        each_us = 1e6 * self.decision_s / max(1.0, self.decisions)
        return (
            f"{self.requests:.0f} requests, in time {self.on_time_share:.4f}, failed {failed:.4f}, "
            f"{each_us:.0f} us a decision"
        )


class WatchReport(NamedTuple):
    """What a router reports of a watch.

    Attributes:
        activation: what is watched.
        problem: why it went back by itself, a reason; empty if it did not.
        detail: the same in words.
        before: last figures of the replaced policy.
        after: figures of the watched one.
    """

    activation: int
    problem: str
    detail: str
    before: Figures
    after: Figures


class WatchLimits(NamedTuple):
    """What a policy that has become active must keep to.

    Attributes:
        misses: by how much its share of missed requests may exceed that of the one it replaced.
        errors: the same of failed requests.
    """

    misses: float
    errors: float


class Broken(NamedTuple):
    """A limit that was broken.

    Attributes:
        reason: which, of REASONS.
        detail: the same in words.
    """

    reason: str
    detail: str


class Watcher:
    """Judges a policy by its figures as they grow; one for each watch."""

    def __init__(self, limits: WatchLimits) -> None:
        """Begins with the first window."""
        self._limits = limits
        self._start = Figures()
        self._window = 1
        self._known: NDArray[np.float64] | None = None
        self._may_LE = np.ones((CLASSES, KINDS))

    def look(self, before: Figures, after: Figures) -> Broken | None:
        """Returns which limit is broken, None for none.

        Args:
            before: last figures of the replaced policy.
            after: figures of the watched one, since it became active.
        """
        if after.faults >= MOST_FAULTS:
            return Broken(REASON_FAULTS, f"it failed in {after.faults:.0f} decisions")
        limits = self._limits
        if self._known is None or not np.array_equal(self._known, before.ends_LE):
            self._known = before.ends_LE.copy()
            kinds = (MISSED, limits.misses), (FAILED, limits.errors), (SLOW, SLOW_LIMIT)
            for kind, limit in kinds:
                self._may_LE[:, kind] = allowed(before.ends_LE, kind, limit)
        now = after.plus(self._start, -1.0)
        if (now.ends_LE < 0.0).any():
            # A process is no longer among them; what it had counted says nothing any more.
            self._start, now = Figures(), after
        alpha = TEST_ALPHA / (self._window * (self._window + 1.0))
        for kind, reason, word in (
            (MISSED, REASON_MISSES, "misses"),
            (FAILED, REASON_ERRORS, "fails in"),
            (SLOW, REASON_SLOW, "decides too slowly in"),
        ):
            excess = Excess.of(now.ends_LE, self._may_LE[:, kind], kind)
            if is_above(excess.total, excess.square, alpha, 1.0):
                detail = (
                    f"it {word} {excess.found:.3f} of {excess.requests:.0f} requests, where the "
                    f"policy it replaced leaves {excess.may:.3f} at the same load"
                )
                return Broken(reason, detail)
        compared = now.ends_LE[self._may_LE[:, MISSED] < 1.0, REQUESTS].sum()
        if compared >= WINDOW:
            self._start, self._window = after.plus(Figures()), self._window + 1
        return None


class Excess(NamedTuple):
    """How far ends of one kind exceed what classes may have.

    Attributes:
        requests: that are compared.
        found: share of them that ended so.
        may: share that was allowed.
        total: sum over requests of 1 or 0 less the share allowed in its class.
        square: sum of the squares.
    """

    requests: float
    found: float
    may: float
    total: float
    square: float

    @classmethod
    def of(cls, ends_LE: NDArray[np.float64], may_L: NDArray[np.float64], kind: int) -> Excess:
        """Returns it; classes that may have everything are not compared."""
        is_known_L = may_L < 1.0
        count_L, hits_L = ends_LE[is_known_L, REQUESTS], ends_LE[is_known_L, kind]
        share_L = may_L[is_known_L]
        count, allowed_sum = float(count_L.sum()), float((count_L * share_L).sum())
        square_L = hits_L * (1.0 - share_L) ** 2 + (count_L - hits_L) * share_L**2
        found = float(hits_L.sum())
        each = max(1.0, count)
        return cls(
            count, found / each, allowed_sum / each, found - allowed_sum, float(square_L.sum())
        )


def allowed(ends_LE: NDArray[np.float64], kind: int, limit: float) -> NDArray[np.float64]:
    """Returns the share of ends of a kind that each class may have; 1 where nothing is known.

    Args:
        ends_LE: of the replaced policy.
        kind: MISSED, FAILED or SLOW.
        limit: what is allowed on top, a share.
    """
    log_odds = math.log(CLASSES / BASELINE_ALPHA)
    may_L = np.ones(CLASSES)
    for at in range(CLASSES):
        count = hits = 0.0
        for above in range(at, CLASSES):
            count += float(ends_LE[above, REQUESTS])
            hits += float(ends_LE[above, kind])
            if count >= LEAST_KNOWN:
                break
        if count > 0.0:
            may_L[at] = min(1.0, largest_share(count, hits, log_odds) + limit)
    return may_L


def largest_share(count: float, hits: float, log_odds: float) -> float:
    """Returns the largest share that leaves `hits` of `count` possible, 0 to 1.

    It is the q above hits / count with count x KL(hits / count, q) = log_odds: of ends that come
    with a share of q or more, as few are seen with probability exp(-log_odds) at most.
    """
    share = min(1.0, hits / count)
    low, high = share, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if count * _divergence(share, middle) < log_odds:
            low = middle
        else:
            high = middle
    return high


def _divergence(share: float, other: float) -> float:
    """Returns Kullback and Leibler's divergence of two shares; `other` is the larger one."""
    found = 0.0
    if share > 0.0:
        found += share * math.log(share / other)
    if share < 1.0:
        rest = 1.0 - other
        found += (1.0 - share) * math.log((1.0 - share) / rest) if rest > 0.0 else math.inf
    return found
