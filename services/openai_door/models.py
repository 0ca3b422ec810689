"""What a request may name as its model: the mesh, the mesh for a task, or one of its tiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.common.errors import NotFoundError

MESH = "tiercel"
"""The model that leaves the tier to the router; `tiercel/TASK` also says the task."""


class Model(NamedTuple):
    """What a name means.

    Attributes:
        task: The task; empty if it does not say.
        tier: The only tier to use; empty if the router chooses.
    """

    task: str = ""
    tier: str = ""


class ModelNames:
    """The names of a mesh.

    Args:
        tasks: Its tasks.
        tiers: Its tiers, lowest quality first.
    """

    def __init__(self, *, tasks: Sequence[str], tiers: Sequence[str]) -> None:
        self._by_name = {tier: Model(tier=tier) for tier in tiers}
        self._by_name |= {f"{MESH}/{task}": Model(task=task) for task in tasks}
        self._by_name[MESH] = Model()
        self.names = (MESH, *(f"{MESH}/{task}" for task in tasks), *tiers)

    @property
    def known(self) -> str:
        """The names, for messages."""
        return f"{MESH}, {MESH}/TASK, or a tier; see /v1/models"

    def find(self, name: str) -> Model:
        """Returns what a name means; raises NotFoundError if it means nothing."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFoundError("model", name, self.names)
        return found
