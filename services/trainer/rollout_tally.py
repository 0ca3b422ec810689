"""What routers have reported of a rollout's stage, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.trainer.mesh_view import RouterSeen
from services.trainer.model import RolloutState, Stage
from services.trainer.rollout_verdicts import CanarySeen, ShadowSeen, TrialSeen, total


class StageKey(NamedTuple):
    """What counts of reports belong to."""

    rollout: int
    stage: Stage


class Tally:
    """What routers have reported of one stage of a rollout, those that are gone among them."""

    def __init__(self) -> None:
        """Has heard nothing."""
        self._key: StageKey | None = None
        self._seen: dict[tuple[str, int], TrialSeen] = {}
        self._carried = CanarySeen()

    def take(self, state: RolloutState, routers: Sequence[RouterSeen]) -> None:
        """Takes in the routers' newest reports; of another stage nothing is kept."""
        self._carried = state.carried
        key = StageKey(state.number, state.stage)
        if key != self._key:
            self._key, self._seen = key, {}
        is_canary = state.stage is Stage.CANARY
        for router in routers:
            trial = router.trial
            if trial is None or trial.rollout != state.number or trial.is_canary != is_canary:
                continue
            self._seen[router.router_id, router.epoch] = trial

    @property
    def problem(self) -> str:
        """Why a router stopped by itself, empty if none did."""
        for (router_id, _), trial in self._seen.items():
            if trial.problem:
                return f"router {router_id[:64]} stopped it: {trial.problem}: {trial.detail}"
        return ""

    @property
    def shadow(self) -> ShadowSeen:
        """What all have seen in shadow."""
        return total(ShadowSeen, [each.shadow for each in self._seen.values()])

    @property
    def canary(self) -> CanarySeen:
        """What all have seen of the canary, before pauses too."""
        return total(CanarySeen, [self._carried, *(each.canary for each in self._seen.values())])
