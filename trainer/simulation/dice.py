"""The simulator's dice: a generator for what routers draw, and one for what devices do.

Two, so that routers draw the same whether iteration times spread or not.
"""

from __future__ import annotations

import numpy as np

from trainer.simulation.compiled import jit_inner
from trainer.simulation.state import World


@jit_inner
def mixed(state: np.uint64) -> float:
    """Returns a uniform number in [0, 1) from a state (the finaliser of splitmix64)."""
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@jit_inner
def uniform(w: World) -> float:
    """Returns a uniform number in [0, 1) of the world's own generator (splitmix64)."""
    clock = w.clock[0]
    clock.random = clock.random + np.uint64(0x9E3779B97F4A7C15)
    return float(mixed(clock.random))


@jit_inner
def device_uniform(w: World) -> float:
    """Returns a uniform number in [0, 1) of the devices' generator."""
    clock = w.clock[0]
    clock.device_random = clock.device_random + np.uint64(0x9E3779B97F4A7C15)
    return float(mixed(clock.device_random))
