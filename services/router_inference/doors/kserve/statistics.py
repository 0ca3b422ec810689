"""What `ModelStatistics` tells: counts and times of the requests that came through this door."""

from __future__ import annotations

from collections.abc import Iterable

from tritonclient.grpc import service_pb2 as kserve

from services.common.times import to_ns
from services.router_inference.doors.kserve.models import VERSION
from services.router_inference.job import Job

_NS_PER_MS = 1_000_000
_COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class _Counts:
    """What is counted of one model: requests, and times in nanoseconds."""

    __slots__ = ("fail_count", "fail_ns", "last_ms", "queue_ns", "success_count", "success_ns")

    def __init__(self) -> None:
        self.success_count = self.success_ns = self.queue_ns = 0
        self.fail_count = self.fail_ns = self.last_ms = 0

    def message(self, name: str) -> kserve.ModelStatistics:
        count = self.success_count
        found = kserve.ModelStatistics(
            name=name,
            version=VERSION,
            inference_count=count,
            execution_count=count,
            last_inference=self.last_ms,
        )
        stats = found.inference_stats
        for field in stats.DESCRIPTOR.fields:
            getattr(stats, field.name).SetInParent()
        for duration, duration_count, span_ns in (
            (stats.success, count, self.success_ns),
            (stats.fail, self.fail_count, self.fail_ns),
            (stats.queue, count, self.queue_ns),
            (stats.compute_infer, count, self.success_ns - self.queue_ns),
            # Nothing is told apart here, but `perf_analyzer` wants these counts to be the same.
            (stats.compute_input, count, 0),
            (stats.compute_output, count, 0),
        ):
            duration.count, duration.ns = duration_count, span_ns
        return found


class Statistics:
    """Counts per model since this process started; they become messages when somebody asks.

    A request that ended well counts as one inference and one execution. Its time in the queue is
    that until it was sent to its tier, its time of computing the rest.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Takes the names of the models."""
        self._models = {name: _Counts() for name in names}

    def on_end(self, model: str, job: Job) -> None:
        """Counts a request that has ended."""
        counts, arrival_s = self._models[model], job.arrival_s
        total_ns = to_ns(max(0.0, job.end_s - arrival_s))
        if not job.is_complete:
            counts.fail_count += 1
            counts.fail_ns += total_ns
            return
        counts.success_count += 1
        counts.success_ns += total_ns
        counts.queue_ns += to_ns(max(0.0, job.dispatch_s - arrival_s))
        counts.last_ms = job.wall_ns(job.end_s) // _NS_PER_MS

    def read(self, names: Iterable[str]) -> kserve.ModelStatisticsResponse:
        """Returns the statistics of some models."""
        return kserve.ModelStatisticsResponse(
            model_stats=[self._models[name].message(name) for name in names]
        )


def add(total: kserve.ModelStatisticsResponse, others: kserve.ModelStatisticsResponse) -> None:
    """Adds the statistics of other processes to those of the same models."""
    by_name = {found.name: found for found in total.model_stats}
    for more in others.model_stats:
        found = by_name[more.name]
        found.inference_count += more.inference_count
        found.execution_count += more.execution_count
        found.last_inference = max(found.last_inference, more.last_inference)
        for field in _COUNTED:
            duration = getattr(found.inference_stats, field)
            duration.count += getattr(more.inference_stats, field).count
            duration.ns += getattr(more.inference_stats, field).ns
