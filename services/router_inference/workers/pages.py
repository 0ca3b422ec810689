"""The parent's own metrics, and the workers' as one page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.router_inference.workers import merge

_ANSWER_S = 2.0

Told = tuple[merge.Families, list[str]]
"""What ended workers left, and the pages of the living."""


class ParentMetrics:
    """What only the parent of the workers knows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.workers = Gauge(
            "tiercel_workers", "Worker processes of the router that serve.", registry=registry
        )
        self.restarts = Counter(
            "tiercel_worker_restarts",
            "Worker processes that were followed by another one.",
            ["reason"],
            registry=registry,
        )


class MergedPages(Collector):
    """Asks the parent's loop for every worker's page at a scrape, and merges them in its thread."""

    def __init__(
        self, pages: Callable[[], Coroutine[Any, Any, Told]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Takes what gathers the pages, and the loop it runs in."""
        self._pages = pages
        self._loop = loop

    def collect(self) -> Iterator[Metric]:
        """Yields the merged metrics."""
        future: Future[Told] = asyncio.run_coroutine_threadsafe(self._pages(), self._loop)
        ended, pages = future.result(_ANSWER_S)
        yield from merge.merged(merge.add_pages(ended, pages))
