"""What `ModelStatistics` tells: counts and times of the requests that came through this door."""

from __future__ import annotations

from collections.abc import Iterable

from tritonclient.grpc import service_pb2 as kserve

from services.common.times import to_ns
from services.router_inference.doors.kserve.models import VERSION
from services.router_inference.job import Job

_NS_PER_MS = 1_000_000
_COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


class Statistics:
    """Counts per model since this process started.

    A request that ended well counts as one inference and one execution. Its time in the queue is
    that until it was sent to its tier, its time of computing the rest.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Takes the names of the models."""
        self._models = {name: _empty(name) for name in names}

    def on_end(self, model: str, job: Job) -> None:
        """Counts a request that has ended."""
        found = self._models[model]
        stats = found.inference_stats
        total_ns = to_ns(max(0.0, job.end_s - job.arrival_s))
        if not job.is_complete:
            stats.fail.count += 1
            stats.fail.ns += total_ns
            return
        queue_ns = to_ns(max(0.0, job.dispatch_s - job.arrival_s))
        found.inference_count += 1
        found.execution_count += 1
        found.last_inference = job.wall_ns(job.end_s) // _NS_PER_MS
        for duration, span_ns in (
            (stats.success, total_ns),
            (stats.queue, queue_ns),
            (stats.compute_infer, total_ns - queue_ns),
            # Nothing is told apart here, but `perf_analyzer` wants these counts to be the same.
            (stats.compute_input, 0),
            (stats.compute_output, 0),
        ):
            duration.count += 1
            duration.ns += span_ns

    def read(self, names: Iterable[str]) -> kserve.ModelStatisticsResponse:
        """Returns the statistics of some models."""
        return kserve.ModelStatisticsResponse(model_stats=[self._models[name] for name in names])


def _empty(name: str) -> kserve.ModelStatistics:
    found = kserve.ModelStatistics(name=name, version=VERSION)
    for field in found.inference_stats.DESCRIPTOR.fields:
        getattr(found.inference_stats, field.name).SetInParent()
    return found


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
