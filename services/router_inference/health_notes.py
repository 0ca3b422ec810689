"""Why the mesh is degraded, as this router sees it; serving goes on all the same."""

from __future__ import annotations

from services.common.log import Logger
from services.router_inference.records.metrics import RouterMetrics

NO_SYSTEM_STATE = "NO_SYSTEM_STATE"
STALE_SYSTEM_STATE = "STALE_SYSTEM_STATE"
MONITOR_UNREACHABLE = "MONITOR_UNREACHABLE"
REPORTS_REFUSED = "REPORTS_REFUSED"
TRAINER_UNREACHABLE = "TRAINER_UNREACHABLE"
REDIS_UNREACHABLE = "REDIS_UNREACHABLE"
POLICY_UNAVAILABLE = "POLICY_UNAVAILABLE"
UNKNOWN_ENDPOINTS = "UNKNOWN_ENDPOINTS"
NO_USABLE_ENDPOINT = "NO_USABLE_ENDPOINT"
DECISION_NOT_COMPILED = "DECISION_NOT_COMPILED"


class HealthNotes:
    """Reasons set and cleared by whoever sees them; changes are logged and shown as a metric."""

    def __init__(self, *, metrics: RouterMetrics, log: Logger) -> None:
        self._metrics = metrics
        self._log = log
        self._reasons: dict[str, str] = {}

    def set(self, reason: str, is_set: bool, detail: str = "") -> None:
        """Sets or clears a reason; `detail` is logged with a change."""
        if is_set == (reason in self._reasons):
            return
        if is_set:
            self._reasons[reason] = detail
            self._log.warning("degraded", reason=reason, detail=detail)
        else:
            del self._reasons[reason]
            self._log.info("recovered", reason=reason)
        self._metrics.degraded.labels(reason=reason).set(float(is_set))

    @property
    def is_degraded(self) -> bool:
        """True if any reason holds."""
        return bool(self._reasons)

    @property
    def reasons(self) -> list[str]:
        """The reasons that hold, in order of name."""
        return sorted(self._reasons)
