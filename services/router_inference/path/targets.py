"""The targets in force: those of the settings, and what was set while the mesh runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router.types import RewardKind, Task
from services.common.clock import Clock
from services.common.log import Logger
from services.common.times import from_ns
from services.router_inference.path.hold import TargetHold
from services.router_inference.view.seen import SeenTarget


class Targets:
    """Follows settings and mesh; what is in force is held from the next decision on."""

    def __init__(
        self,
        *,
        hold: TargetHold,
        tasks: Sequence[Task],
        is_held: bool,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Starts with the targets of the settings.

        Args:
            hold: what holds them.
            tasks: the mesh's.
            is_held: False where the safety net is off: then no target is held.
            clock: tells the time.
            log: of changes.
        """
        self._hold = hold
        self._tasks = tuple(tasks)
        self._is_held = is_held
        self._clock = clock
        self._log = log
        self._set: dict[str, SeenTarget] = {}
        # When those of them that end do so, monotonic seconds.
        self._ends_s: dict[str, float] = {}
        self._follow()

    def configure(self, tasks: Sequence[Task], *, is_held: bool) -> None:
        """Takes the tasks of other settings; what was set while the mesh runs stays."""
        self._tasks, self._is_held = tuple(tasks), is_held
        self._follow()

    def _follow(self) -> None:
        self._hold.configure(self._in_force(), [task.name for task in self._tasks])

    def apply(self, told: Sequence[SeenTarget]) -> None:
        """Takes in all targets that were set while the mesh runs.

        What is told is in force. How long it lasts without further word goes by this process's own
        clock: by the wall it may be over here and not begun there.
        """
        now_s = self._clock.monotonic_s()
        ends_s = {}
        for each in told:
            if not each.expire_ns:
                continue
            end_s = now_s + self._left_s(each)
            if each == self._set.get(each.task):
                end_s = min(end_s, self._ends_s[each.task])
            ends_s[each.task] = end_s
        self._ends_s = ends_s
        self._change({each.task: each for each in told})

    def expire(self) -> None:
        """Ends what was set for a time that is over, whether or not a monitor is there to say so.

        Call it now and then.
        """
        now_s = self._clock.monotonic_s()
        over = {name for name, end_s in self._ends_s.items() if end_s <= now_s}
        if over & self._set.keys():
            self._change({name: e for name, e in self._set.items() if name not in over})

    def by_task(self) -> Mapping[str, tuple[float, float]]:
        """Returns of each task the target in force, and that of the settings; 0 is none."""
        targets = self._in_force() or [0.0] * len(self._tasks)
        return {
            task.name: (target, _of_settings(task))
            for task, target in zip(self._tasks, targets, strict=True)
        }

    def _left_s(self, each: SeenTarget) -> float:
        """Returns how long a target lasts from now: not longer than it was set for in all."""
        left_s = from_ns(each.expire_ns - self._clock.wall_ns())
        whole_s = from_ns(each.expire_ns - each.set_ns)
        # Told, and over by the clock here: the clocks differ.
        return left_s if 0.0 < left_s <= whole_s else whole_s

    def _in_force(self) -> list[float]:
        if not self._is_held:
            return []
        return [self._target(task) for task in self._tasks]

    def _target(self, task: Task) -> float:
        found = self._set.get(task.name)
        if found is None or task.reward_kind is not RewardKind.HARD:
            return _of_settings(task)
        return found.target

    def _change(self, targets: dict[str, SeenTarget]) -> None:
        before, self._set = self.by_task(), targets
        self._follow()
        for name, (now, _) in self.by_task().items():
            was = before[name][0]
            if now != was:
                by = targets[name].set_by if name in targets else "settings"
                self._log.info("target_changed", task=name, was=was, now=now, set_by=by)


def _of_settings(task: Task) -> float:
    return task.target if task.reward_kind is RewardKind.HARD else 0.0
