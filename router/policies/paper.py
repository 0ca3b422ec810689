"""The policy of the paper: its state, its action (a model), its network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.dqn import paper
from router.dqn.paper_snapshot import POLICY, flat
from router.policies.base import PolicyParameterError, ScorePolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.dqn.paper_snapshot import PaperSnapshot


class PaperPolicy(ScorePolicy):
    """Takes the tier of the highest Q-value, as "Learned Best-Effort LLM Serving" describes it.

    State: one-hot task, outstanding requests per tier, arrival rate (arXiv 2401.07886); see
    `router.dqn.paper` for what is stated there and what is our choice. Parameters: none; it needs
    a snapshot trained for exactly this catalog. Fails: its state names no device, no prompt length
    and no slack, so it treats a loaded device and an idle one, a long prompt and a short one
    alike; other deadlines, profiles or fleet sizes than those trained on go unseen; and its
    discount per request reaches a shorter time the higher the rate is.
    """

    KERNEL = staticmethod(paper.score_dqn_paper)

    def __init__(self, snapshot: PaperSnapshot, params: Mapping[str, float] | None = None) -> None:
        """Takes a checked snapshot; raises PolicyParameterError if given parameters."""
        if params:
            raise PolicyParameterError(f"policy {POLICY!r} has no parameters")
        super().__init__(POLICY)
        self._params = flat(snapshot.weights).tolist()
        self._version = snapshot.version
        self._snapshot = snapshot

    @property
    def snapshot(self) -> PaperSnapshot:
        """The snapshot it decides with."""
        return self._snapshot
