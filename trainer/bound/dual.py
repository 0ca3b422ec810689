"""The dual of the relaxation: any prices give a bound, good prices a tight one.

Let lambda_gm >= 0 be a price per second of nominal work on group g in cell m of time. A job with
window [a, e] that occupies `cost` of the group's time pays at least cost mu, with mu the least
price of the cells its window touches. Hence, for whatever a policy does,

    sum_i reward_i <= sum_gm lambda_gm capacity_gm
                      + sum_i max(0, max over i's windows and options of (value - cost mu)),

by adding to the rewards the price of the time left over, which is not negative, and letting each
request choose for itself (weak duality). The right side is what `value` computes; no solver's
accuracy enters. It is convex in lambda; `improve` lowers it by L-BFGS on a smoothed minimum.

Shape letters: N requests, J (request, window) pairs, O options, G groups, M cells, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Dual:
    """The relaxation over cells of time.

    Attributes:
        capacity_GM: nominal work a group can do per cell, seconds.
        first_W: first cell of each distinct window.
        last_W: its last cell.
        window_J: window of each job.
        start_N1: jobs of request i are start_N1[i] to start_N1[i + 1].
        value_JO: reward of each option.
        cost_JO: its cost, seconds of nominal work.
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
        price_GW = least_prices(price_GM, self.first_W, self.last_W)
        surplus, _ = self._respond(price_GW)
        return float((price_GM * self.capacity_GM).sum() + surplus)

    def flat(self, price: float) -> tuple[float, float]:
        """Returns value and slope of the bound at one price for all time."""
        groups = len(self.capacity_GM)
        surplus, work_GW = self._respond(np.full((groups, len(self.first_W)), price))
        capacity = float(self.capacity_GM.sum())
        return price * capacity + surplus, capacity - float(work_GW.sum())

    def best_flat_price(self) -> float:
        """Returns the best price for all time, by bisection on the slope."""
        low, high = 0.0, 1.0
        while self.flat(high)[1] < 0.0:
            low, high = high, high * 4.0
        for _ in range(40):
            middle = (low + high) / 2.0
            if self.flat(middle)[1] < 0.0:
                low = middle
            else:
                high = middle
        return high

    def improve(self, price_GM: Floats, sharpness: Sequence[float], steps: int) -> Floats:
        """Returns better prices than those given.

        Args:
            price_GM: prices to start from.
            sharpness: of the smoothed minimum, one round each, in units of 1 / mean price.
            steps: most L-BFGS steps per round.
        """
        best_GM, best = price_GM, self.value(price_GM)
        scale = max(1e-9, float(price_GM.mean()))
        shape = price_GM.shape

        def objective(x: Floats, sharp: float) -> tuple[float, Floats]:
            trial_GM = x.reshape(shape)
            price_GW, weight_GWS = soft_prices(trial_GM, self.first_W, self.last_W, sharp)
            surplus, work_GW = self._respond(price_GW * scale)
            slope_GM = self.capacity_GM * scale
            spread(slope_GM, work_GW * scale, weight_GWS, self.first_W, self.last_W)
            total = float((trial_GM * self.capacity_GM).sum()) * scale + surplus
            return total / norm, slope_GM.ravel() / norm

        norm = max(1.0, best)
        x = (price_GM / scale).ravel()
        for sharp in sharpness:
            result = minimize(
                objective,
                x,
                args=(sharp,),
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, None)] * len(x),
                options={"maxiter": steps, "maxcor": 20, "ftol": 1e-9},
            )
            x = result.x
            trial_GM = x.reshape(shape) * scale
            if (value := self.value(trial_GM)) < best:
                best_GM, best = trial_GM, value
        return best_GM

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
        return surplus, work_GW


_jit = numba.njit(cache=True, error_model="numpy")


@_jit
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


@_jit
def least_prices(price_GM: Floats, first_W: Integers, last_W: Integers) -> Floats:
    """Returns the least price in each window [G, W]."""
    price_GW = np.empty((len(price_GM), len(first_W)))
    for g in range(len(price_GM)):
        for w in range(len(first_W)):
            least = np.inf
            for m in range(first_W[w], last_W[w] + 1):
                least = min(least, price_GM[g, m])
            price_GW[g, w] = least
    return price_GW


@_jit
def soft_prices(
    price_GM: Floats, first_W: Integers, last_W: Integers, sharp: float
) -> tuple[Floats, NDArray[np.float64]]:
    """Returns the smoothed least price in each window [G, W] and its gradient [G, W, cells]."""
    width = int((last_W - first_W).max()) + 1
    price_GW = np.empty((len(price_GM), len(first_W)))
    weight_GWS = np.zeros((len(price_GM), len(first_W), width))
    for g in range(len(price_GM)):
        for w in range(len(first_W)):
            least = np.inf
            for m in range(first_W[w], last_W[w] + 1):
                least = min(least, price_GM[g, m])
            total = 0.0
            mean = 0.0
            for m in range(first_W[w], last_W[w] + 1):
                weight = np.exp(-sharp * (price_GM[g, m] - least))
                weight_GWS[g, w, m - first_W[w]] = weight
                total += weight
            # Weighted log-mean-exp: exact where all prices are equal, so flat prices stay best.
            count = last_W[w] + 1 - first_W[w]
            mean = least - np.log(total / count) / sharp
            for s in range(count):
                weight_GWS[g, w, s] /= total
            price_GW[g, w] = max(0.0, mean)
    return price_GW, weight_GWS


@_jit
def spread(
    slope_GM: Floats,
    work_GW: Floats,
    weight_GWS: NDArray[np.float64],
    first_W: Integers,
    last_W: Integers,
) -> None:
    """Takes the work of each window off the slopes of its cells, by weight."""
    for g in range(len(slope_GM)):
        for w in range(len(first_W)):
            for m in range(first_W[w], last_W[w] + 1):
                slope_GM[g, m] -= work_GW[g, w] * weight_GWS[g, w, m - first_W[w]]
