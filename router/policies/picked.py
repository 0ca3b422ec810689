"""A policy whose tier stands and whose endpoint a picker chooses: tier first, endpoint second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.picker import Picker

if TYPE_CHECKING:
    from router.policy import Policy


class PickedPolicy:
    """Takes the tier of another policy's choice, and the endpoint a picker takes inside that tier.

    Its name is `POLICY+PICKER`. It is the ablation of choosing tier and endpoint jointly, and the
    way to compare pickers. Fails: where tiers share devices, since the best device for one tier is
    not the best for another. The probability of a choice stays that of the policy's own: a picker
    that draws (random, power of two) does not state its share.
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
