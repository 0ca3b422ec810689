"""The policy interface: what a policy is called; how it decides is in its row of the table."""

from __future__ import annotations

from typing import Protocol


class Policy(Protocol):
    """A decision rule of the policy table: a score kernel or a network, and its numbers.

    `router.bound.Rule.of` makes it what the kernels take.
    """

    @property
    def name(self) -> str:
        """Name by which it is chosen, e.g. "price" or "static-large"."""

    @property
    def version(self) -> str:
        """Version of its parameters or snapshot; every decision carries it."""
