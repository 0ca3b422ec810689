"""What routers have reported of a rollout's stage, added up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from services.trainer.mesh_view import RouterSeen
from services.trainer.model import RolloutState, Stage
from services.trainer.rollout_verdicts import (
    CanarySeen,
    PeriodSeen,
    ShadowSeen,
    SwitchSeen,
    TrialSeen,
    total,
)

_KEPT_PERIODS = 4


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
        self._periods: dict[tuple[str, int], dict[int, PeriodSeen]] = {}

    def take(self, state: RolloutState, routers: Sequence[RouterSeen]) -> None:
        """Takes in the routers' newest reports; of another stage nothing is kept."""
        self._carried = state.carried
        key = StageKey(state.number, state.stage)
        if key != self._key:
            self._key, self._seen, self._periods = key, {}, {}
        is_canary = state.stage is not Stage.SHADOW
        is_switch = state.stage is Stage.SWITCHBACK
        for router in routers:
            trial = router.trial
            if trial is None or trial.rollout != state.number or trial.is_canary != is_canary:
                continue
            if (trial.switch is not None) is not is_switch and not trial.problem:
                continue
            self._seen[router.router_id, router.epoch] = trial
            if trial.switch is not None:
                self._take_periods((router.router_id, router.epoch), trial.switch)

    def _take_periods(self, router: tuple[str, int], seen: SwitchSeen) -> None:
        period, known = int(seen.period), self._periods.setdefault(router, {})
        known[period] = PeriodSeen(seen.request_count, seen.missed_count, seen.reward_sum)
        known[period - 1] = PeriodSeen(
            seen.last_request_count, seen.last_missed_count, seen.last_reward_sum
        )
        for old in [each for each in known if each < period - _KEPT_PERIODS]:
            del known[old]

    def period(self, number: int) -> PeriodSeen:
        """Returns what all have seen of a period of a switchback."""
        found = PeriodSeen()
        for known in self._periods.values():
            found = found.plus(known.get(number, PeriodSeen()))
        return found

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
