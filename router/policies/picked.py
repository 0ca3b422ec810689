"""A policy whose tier stands and whose endpoint a picker chooses: tier first, endpoint second."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from router.picker import Picker
from router.policies.base import query_of

if TYPE_CHECKING:
    import numpy as np

    from router.policy import Observation, Policy
    from router.types import Decision


class PickedPolicy:
    """Takes the tier of another policy's choice, and the endpoint a picker takes inside that tier.

    Its name is `POLICY+PICKER`. It is the ablation of choosing tier and endpoint jointly, and the
    way to compare pickers. Fails: where tiers share devices, since the best device for one tier is
    not the best for another.
    """

    def __init__(self, policy: Policy, picker: str) -> None:
        """Raises UnknownPickerError naming the known pickers."""
        self._policy = policy
        self._picker = Picker(picker)

    @property
    def name(self) -> str:
        """Name by which it is chosen."""
        return f"{self._policy.name}+{self._picker.name}"

    @property
    def version(self) -> str:
        """Version of the policy that chooses the tier, and the picker."""
        return f"{self._policy.version}+{self._picker.name}"

    @property
    def inner(self) -> Policy:
        """The policy that chooses the tier."""
        return self._policy

    @property
    def picker(self) -> Picker:
        """The picker that chooses the endpoint."""
        return self._picker

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the picker's endpoint in the tier of the policy's choice.

        Scores and predictions are the policy's. `behavior_probability` stays that of the policy's
        own choice: a picker that draws (random, power of two) does not state its share.

        Raises:
            NoCandidateError: nothing is allowed.
        """
        decision = self._policy.decide(observation, rng)
        fleet = observation.fleet.lists
        row = self._picker.pick(
            fleet,
            observation.load,
            observation.allowed_C,
            query_of(observation, 0.0),
            fleet.tier_C[decision.action],
            rng,
        )
        return dataclasses.replace(decision, action=row)
