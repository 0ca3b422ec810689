"""The dual of the relaxation: any prices give a bound, good prices a tight one.

Let lambda_gm >= 0 be a price per second of work at full speed on group g in cell m of time. A job
that occupies `cost` of the group's time inside its window pays at least cost mu, with mu the least
price of the cells its window touches. Hence, for whatever a policy does,

    sum_i reward_i <= sum_gm lambda_gm capacity_gm
                      + sum_i max(0, max over i's windows and options of (value - cost mu)),

by adding to the rewards the price of the time left over, which is not negative, and letting each
request choose for itself (weak duality). The right side is what `Dual.value` computes; it is a
bound at any prices, so the accuracy of how they were found does not matter to its validity.

The best prices of one group, the others' held, are found by levels. With d_w(p) the work the
requests of window w ask for at price p, the right side is a constant plus

    integral over p of [capacity of S_p - sum over windows w inside S_p of d_w(p)],

S_p being the cells with a price of p or more. S_p can be chosen for each p by itself: the set of
cells that maximises the work asked for inside it less its capacity, a union of intervals, by
dynamic programming. Since d_w falls with p, the sets are nested and make up a price.

Shape letters: N requests, J (request, window) pairs, O options, G groups, M cells, W windows,
P levels of price, S cells a window spans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.compiled import jit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Dual:
    """The relaxation over cells of time.

    Attributes:
        capacity_GM: work a group at full speed can do per cell, seconds.
        first_W: first cell of each distinct window.
        last_W: its last cell.
        window_J: window of each job.
        start_N1: jobs of request i are start_N1[i] to start_N1[i + 1].
        value_JO: reward of each option.
        cost_JO: its cost, seconds of work at full speed.
        group_O: group of each option.
    """

    capacity_GM: Floats
    first_W: Integers
    last_W: Integers
    window_J: Integers
    start_N1: Integers
    value_JO: Floats
    cost_JO: Floats
    group_O: Integers

    def value(self, price_GM: Floats) -> float:
        """Returns the bound on the sum of rewards at any prices >= 0."""
        surplus, _ = self._respond(least_prices(price_GM, self.first_W, self.last_W))
        return float((price_GM * self.capacity_GM).sum() + surplus)

    def flat(self) -> Floats:
        """Returns the best single price for all groups and all time, by bisection [G, M]."""
        shape = (len(self.capacity_GM), len(self.first_W))
        capacity = float(self.capacity_GM.sum())

        def too_low(price: float) -> bool:
            _, work_GW = self._respond(np.full(shape, price))
            return float(work_GW.sum()) > capacity

        low, high = 0.0, 1.0
        while too_low(high) and high < _HIGHEST_PRICE:
            low, high = high, high * 4.0
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if too_low(middle) else (low, middle)
        return np.full(self.capacity_GM.shape, high)

    def improve(self, price_GM: Floats, levels: int, rounds: int) -> Floats:
        """Returns prices over time at least as good as those given.

        Args:
            price_GM: prices to start from.
            levels: levels of price per round.
            rounds: rounds over all groups, each with levels closer to the last prices.
        """
        best_GM, best = price_GM, self.value(price_GM)
        top = float((self.value_JO / self.cost_JO)[self.cost_JO > _NOTHING_S].max(initial=0.0))
        for turn in range(rounds * len(price_GM)):
            group = turn % len(price_GM)
            edge_P1 = _levels(best_GM[group], levels, top, first=turn < len(price_GM))
            trial_GM = best_GM.copy()
            trial_GM[group] = self._levelled(group, best_GM, edge_P1)
            if (value := self.value(trial_GM)) < best:
                best_GM, best = trial_GM, value
        return best_GM

    def _levelled(self, group: int, price_GM: Floats, edge_P1: Floats) -> Floats:
        """Returns a group's prices of least bound on the levels given, the others' held [M]."""
        price_GW = least_prices(price_GM, self.first_W, self.last_W)
        middle_P = (edge_P1[1:] + edge_P1[:-1]) / 2.0
        work_PW = _demand(
            group,
            middle_P,
            price_GW,
            self.start_N1,
            self.window_J,
            self.value_JO,
            self.cost_JO,
            self.group_O,
        )
        inside_PM = _dense_sets(work_PW, self.capacity_GM[group], self.first_W, self.last_W)
        price_M: Floats = (np.diff(edge_P1)[:, None] * inside_PM).sum(axis=0)
        return price_M

    def _respond(self, price_GW: Floats) -> tuple[float, Floats]:
        """Returns the requests' total surplus at window prices, and the work they ask for."""
        work_GW = np.zeros_like(price_GW)
        surplus = _respond(
            price_GW,
            self.start_N1,
            self.window_J,
            self.value_JO,
            self.cost_JO,
            self.group_O,
            work_GW,
        )
        return float(surplus), work_GW


_HIGHEST_PRICE = 1e12
_NOTHING_S = 1e-11
"""What costs less says nothing of the price that anybody pays."""
_SPAN = 1e5
"""Highest price anybody pays, over the least that is told from nothing."""


def _levels(price_M: Floats, levels: int, top: float, *, first: bool) -> Floats:
    """Returns edges of levels: up to the highest price anybody pays, later about the last prices.

    Even in the logarithm, since prices span decades.
    """
    low, high = float(price_M.min()), float(price_M.max())
    if first or high <= 0.0:
        low, high = 0.0, max(top, 1e-9)
    inner_P = np.geomspace(max(low * 0.9, high / _SPAN), high * 1.05, levels)
    return np.concatenate([[0.0], inner_P])


@jit
def _respond(
    price_GW: Floats,
    start_N1: Integers,
    window_J: Integers,
    value_JO: Floats,
    cost_JO: Floats,
    group_O: Integers,
    work_GW: Floats,
) -> float:
    """Lets every request choose; adds the chosen work per group and window to `work_GW`."""
    total = 0.0
    for i in range(len(start_N1) - 1):
        best = 0.0
        best_job = -1
        best_option = -1
        for j in range(start_N1[i], start_N1[i + 1]):
            window = window_J[j]
            for o in range(len(group_O)):
                gain = value_JO[j, o] - cost_JO[j, o] * price_GW[group_O[o], window]
                if gain > best:
                    best = gain
                    best_job = j
                    best_option = o
        if best_job >= 0:
            total += best
            work_GW[group_O[best_option], window_J[best_job]] += cost_JO[best_job, best_option]
    return total


@jit
def least_prices(price_GM: Floats, first_W: Integers, last_W: Integers) -> Floats:
    """Returns the least price of the cells of each window [G, W]."""
    price_GW = np.empty((len(price_GM), len(first_W)))
    for g in range(len(price_GM)):
        for w in range(len(first_W)):
            least = np.inf
            for m in range(first_W[w], last_W[w] + 1):
                least = min(least, price_GM[g, m])
            price_GW[g, w] = least
    return price_GW


@jit
def _demand(
    group: int,
    price_P: Floats,
    price_GW: Floats,
    start_N1: Integers,
    window_J: Integers,
    value_JO: Floats,
    cost_JO: Floats,
    group_O: Integers,
) -> Floats:
    """Returns the work asked of a group per window at each of its prices [P, W]."""
    work_PW = np.zeros((len(price_P), price_GW.shape[1]))
    for i in range(len(start_N1) - 1):
        elsewhere = 0.0
        for j in range(start_N1[i], start_N1[i + 1]):
            for o in range(len(group_O)):
                g = group_O[o]
                if g != group:
                    gain = value_JO[j, o] - cost_JO[j, o] * price_GW[g, window_J[j]]
                    elsewhere = max(elsewhere, gain)
        for p in range(len(price_P)):
            best = elsewhere
            best_job = -1
            best_option = -1
            for j in range(start_N1[i], start_N1[i + 1]):
                for o in range(len(group_O)):
                    if group_O[o] == group:
                        gain = value_JO[j, o] - cost_JO[j, o] * price_P[p]
                        if gain > best:
                            best = gain
                            best_job = j
                            best_option = o
            if best_job < 0:
                break  # dearer levels find no taker either
            work_PW[p, window_J[best_job]] += cost_JO[best_job, best_option]
    return work_PW


@jit
def _dense_sets(
    work_PW: Floats, capacity_M: Floats, first_W: Integers, last_W: Integers
) -> NDArray[np.bool_]:
    """Returns, per level, the cells whose windows ask most beyond the cells' capacity [P, M].

    best[e] is the most over sets of cells before e: either e - 1 is left out, or an interval
    [s, e) of the set ends there.
    """
    count = len(capacity_M)
    width = 1
    for w in range(len(first_W)):
        width = max(width, last_W[w] - first_W[w] + 1)
    inside_PM = np.zeros((len(work_PW), count), np.bool_)
    best = np.zeros(count + 1)
    start = np.zeros(count + 1, np.int64)
    for p in range(len(work_PW)):
        work_MS = np.zeros((count, width))  # by first cell and length, summed up over lengths
        for w in range(len(first_W)):
            work_MS[first_W[w], last_W[w] - first_W[w]] += work_PW[p, w]
        for m in range(count):
            for s in range(1, width):
                work_MS[m, s] += work_MS[m, s - 1]
        for e in range(1, count + 1):
            best[e] = best[e - 1]
            start[e] = -1
            excess = 0.0
            for s in range(e - 1, -1, -1):
                excess += work_MS[s, min(width, e - s) - 1] - capacity_M[s]
                if best[s] + excess > best[e]:
                    best[e] = best[s] + excess
                    start[e] = s
        e = count
        while e > 0:
            if start[e] < 0:
                e -= 1
            else:
                for m in range(start[e], e):
                    inside_PM[p, m] = True
                e = start[e]
    return inside_PM
