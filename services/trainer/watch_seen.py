"""What routers have reported of the policy that is watched, added up."""

from __future__ import annotations

from collections.abc import Iterable

from router.watch import Figures, WatchReport


class WatchTally:
    """The newest report of every router, those that are gone among them."""

    def __init__(self) -> None:
        """Has heard nothing."""
        self._activation = 0
        self._seen: dict[tuple[str, int], WatchReport] = {}

    def take(
        self, activation: int, reports: Iterable[tuple[tuple[str, int], WatchReport | None]]
    ) -> None:
        """Takes in reports by router and epoch; of another activation nothing is kept."""
        if activation != self._activation:
            self._activation, self._seen = activation, {}
        for router, report in reports:
            if report is not None and report.activation == activation:
                self._seen[router] = report

    @property
    def problem(self) -> str:
        """Why a router went back by itself, empty if none did."""
        for (router_id, _), seen in self._seen.items():
            if seen.problem:
                return f"router {router_id[:64]} went back: {seen.problem}: {seen.detail}"
        return ""

    @property
    def before(self) -> Figures:
        """Last figures of the replaced policy at all routers."""
        return _sum(seen.before for seen in self._seen.values())

    @property
    def after(self) -> Figures:
        """Figures of the watched policy at all routers."""
        return _sum(seen.after for seen in self._seen.values())

    def __str__(self) -> str:
        """Returns it for people."""
        return f"{self.after}; the policy it replaced: {self.before}"


def _sum(parts: Iterable[Figures]) -> Figures:
    total = Figures()
    for part in parts:
        total = total.plus(part)
    return total
